"""The command line's front door: it answers what needs no torch, and turns bad input into one line."""

import contextlib
import difflib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnist_lightning import __version__
from mnist_lightning.cli import interrupt, processes, speed, threads
from mnist_lightning.cli.output import lasting_output, quiet
from mnist_lightning.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from mnist_lightning.data import MNISTDataModule


COMMANDS = {
    "inspect": "look at the data, in the terminal and as pictures, before any training",
    "fit": "train the network, then test it on the test images",
    "validate": "evaluate a run on the training images it held out",
    "test": "evaluate a run on the test images",
    "predict": "write a run's predictions for the test images, or read the digits in pictures",
    "draw": "write a page to draw on, which a run's network reads, and open it",
    "export": "write a run's network as ONNX or .pt2, for other programs",
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
        TypeError: If ``args`` is no list of texts.
        SystemExit: With code 2 where the input cannot be used, after one line that says why; with
            143 after SIGTERM, 130 after Ctrl-C, and 1 where another process of the run is gone.
    """
    if not isinstance(args, (list, tuple, type(None))) or not all(isinstance(arg, str) for arg in args or ()):
        raise TypeError(f"args must be a list of texts, as ['fit', '--trainer.max_epochs', '1'], got {args!r}")
    own_process = args is None
    with contextlib.ExitStack() as stack:
        if own_process:
            stack.enter_context(interrupt.exit_on_ctrl_c())
            stack.callback(speed.unfreeze_imports)
        try:
            with lasting_output() if own_process else contextlib.nullcontext():
                _run(list(sys.argv[1:] if args is None else args), own_process, model_class, data_class)
        except InputError as error:
            if processes.prints_errors():
                print(f"mnist_lightning: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def command(program: dict[str, Any] | None = None) -> None:
    """Run the command that this process was started for, by an installed script or by the program ``__main__.py``.

    Raises:
        SystemExit: As :func:`main` does.
    """
    with speed.end_without_cleaning(program):
        main()


def _run(args: list[str], own_process: bool, model_class: Any, data_class: Any) -> None:
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
    if own_process:
        os.environ.pop("MPLBACKEND", None)  # a notebook sets one that cannot be imported here; none is needed
    with contextlib.ExitStack() as stack:
        # Only now: torch and Lightning take seconds to import. `quiet` imports Lightning, too.
        with contextlib.ExitStack() as importing:
            if own_process:
                importing.enter_context(speed.freeze_imports())
                importing.enter_context(threads.short_waits())
            stack.enter_context(quiet())
            from mnist_lightning.cli.commands import run_command
            from mnist_lightning.cli.draw import draw
            from mnist_lightning.cli.export import export
            from mnist_lightning.cli.inspect import inspect
            from mnist_lightning.data import MNISTDataModule
            from mnist_lightning.model import MNISTClassifier
        if own_process:
            threads.limit()
        run = {"inspect": inspect, "draw": draw, "export": export}.get(args[0], run_command)
        run(args, model_class or MNISTClassifier, data_class or MNISTDataModule)
