"""The command line, on top of all.

``main.py`` answers what needs no torch, and runs a command. ``mnist_cli.py`` has LightningCLI's four commands: begin
there. ``inspect_draw_export.py`` has those without a Trainer. ``arguments.py`` makes options of arguments,
``checks.py`` says what is refused, ``messages.py`` what is printed, and ``processes.py`` how a command ends.
"""

from mnist_lightning.cli.help import COMMANDS
from mnist_lightning.cli.main import command, main
from mnist_lightning.cli.output import quiet

__all__ = ["COMMANDS", "command", "main", "quiet"]
