"""The command line, on top of all.

In the order of a run:

- ``front_door.py``: ``main``, which answers what needs no torch, and prints what is wrong
- ``parser.py``: a command's options, with ``start.py`` (which run and checkpoint), ``checks.py``, ``trainer.py``
- ``commands.py``: a function for each command, with ``messages.py`` and, for ``predict``, ``pictures.py``;
  ``inspect.py`` is a command of its own, and so are ``draw.py`` and ``export.py``, with ``network.py``
- ``interrupt.py`` (Ctrl-C), ``processes.py`` (several processes), ``output.py``, ``bad_input.py``, ``speed.py``
"""

from mnist_lightning.cli.front_door import COMMANDS, command, main
from mnist_lightning.cli.output import quiet

__all__ = ["COMMANDS", "command", "main", "quiet"]
