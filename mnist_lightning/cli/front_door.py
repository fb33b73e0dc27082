"""The command line's front door: it answers what needs no torch, and turns bad input into one line."""

import contextlib
import difflib
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnist_lightning import __version__
from mnist_lightning.cli import processes
from mnist_lightning.cli.output import lasting_output, quiet
from mnist_lightning.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from mnist_lightning.data import MNISTDataModule


COMMANDS = {
    "inspect": "look at the data, in the terminal and as pictures, before any training",
    "fit": "train the network, then test it on the 10,000 test images",
    "validate": "evaluate a run on the training images it held out",
    "test": "evaluate a run on the 10,000 test images",
    "predict": "write a run's predictions for the 10,000 test images as CSV",
}

HELP = f"""\
usage: python -m mnist_lightning [-h] [--version] [--config CONFIG] COMMAND ...

Chollet's "A first look at a neural network" on PyTorch Lightning, offline.

commands:
{{commands}}

options:
  -h, --help       show this message
  --version        show the version, {__version__}
  --config CONFIG  a YAML file with options of one command

'python -m mnist_lightning COMMAND --help' lists the options of a command."""


def main(
    args: Sequence[str] | None = None,
    model_class: "type[LightningModule] | None" = None,
    data_class: "type[MNISTDataModule] | None" = None,
) -> None:
    """Run one command.

    Args:
        args: What stands behind ``python -m mnist_lightning``; by default, the process's own arguments.
        model_class: A subclass of ``MNISTClassifier`` of your own, to have these commands for it.
        data_class: A subclass of ``MNISTDataModule`` of your own.

    Raises:
        SystemExit: With code 2 where the input cannot be used, after one line that says why; with
            143 after SIGTERM, 130 after Ctrl-C, and 1 where another process of the run is gone.
    """
    own_process = args is None
    deaf = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if own_process and not deaf and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end_at_once)  # an import may swallow a KeyboardInterrupt
    try:
        with lasting_output() if own_process else contextlib.nullcontext():
            _command(list(sys.argv[1:] if args is None else args), own_process, model_class, data_class)
    except InputError as error:
        if processes.speaks():
            print(f"mnist_lightning: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        interruptible()
        if own_process:
            gc.unfreeze()


def _command(args: list[str], own_process: bool, model_class: Any, data_class: Any) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<15}  {does}" for name, does in COMMANDS.items())))
        return
    if args[0] == "--version":
        print(f"mnist-lightning {__version__}")
        return
    if not args[0].startswith("-") and args[0] not in COMMANDS:
        guess = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f" (did you mean {guess[0]!r}?)" if guess else ""
        raise InputError(f"no command {args[0]!r}{hint}: choose one of {', '.join(COMMANDS)}")
    processes.check_environment()
    # Only now: torch and Lightning take seconds to import. What is imported stays to the end, and looking for
    # garbage in it costs 0.3 s meanwhile. It is let go at the end: triton 3.9 calls whatever is left a leak.
    if own_process:
        os.environ.pop("MPLBACKEND", None)  # a notebook's makes the import fail; these pictures need no backend
        gc.disable()
    with quiet():
        from mnist_lightning.cli.parser import inspect, run
        from mnist_lightning.data import MNISTDataModule
        from mnist_lightning.model import MNISTClassifier

        if own_process:
            gc.freeze()
            gc.enable()
        if args[0] == "inspect":
            inspect(args[1:], data_class or MNISTDataModule)
        else:
            run(args, model_class or MNISTClassifier, data_class or MNISTDataModule)


def _end_at_once(*args: object) -> None:
    os._exit(130)


def interruptible() -> None:
    """From here on, there is something to lose: Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
