"""The command line, on top of all."""

from mnist_lightning.cli.front_door import COMMANDS, command, main
from mnist_lightning.cli.output import quiet

__all__ = ["COMMANDS", "command", "main", "quiet"]
