"""The way in: it answers what needs no torch, runs a command, and turns bad input into one line."""

import contextlib
import difflib
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnist_lightning import __version__
from mnist_lightning.cli import processes, speed, threads
from mnist_lightning.cli.help import COMMANDS, HELP
from mnist_lightning.cli.output import lasting_output, quiet
from mnist_lightning.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from mnist_lightning.data import MNISTDataModule


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
    own_process = args is None  # otherwise a program has called this, which has its own output and settings
    words = list(sys.argv[1:] if args is None else args)
    try:
        with contextlib.ExitStack() as stack:
            if own_process:
                stack.enter_context(lasting_output())
                stack.callback(gc.unfreeze)  # triton 3.9 reports on the terminal what is left frozen
            if not _answer(words):
                _run(words, own_process, model_class, data_class)
    except InputError as error:
        if processes.prints_errors():
            print(f"mnist_lightning: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def command() -> None:
    """Run the command that this process was started for; see :func:`main`."""
    with speed.end_without_cleaning():
        main()


def _answer(words: Sequence[str]) -> bool:
    """Answer without torch, which takes seconds to import; return whether this was all."""
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return True
    if words[0] == "--version":
        print(f"mnist-lightning {__version__}")
        return True
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        guess = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f" (did you mean {guess[0]!r}?)" if guess else ""
        raise InputError(f"no command {words[0]!r}{hint}: choose one of {', '.join(COMMANDS)}")
    return False


def _run(words: Sequence[str], own_process: bool, model_class: Any, data_class: Any) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as importing:
            if own_process:
                os.environ.pop("MPLBACKEND", None)  # a notebook sets one that cannot be imported here
                importing.enter_context(speed.freeze_imports())
                importing.enter_context(threads.short_waits())
            stack.enter_context(quiet())  # imports Lightning
            from mnist_lightning.cli.inspect_draw_export import draw, export, inspect
            from mnist_lightning.cli.mnist_cli import run_command
            from mnist_lightning.data import MNISTDataModule
            from mnist_lightning.model import MNISTClassifier
        if own_process:
            threads.limit()
        run = {"inspect": inspect, "draw": draw, "export": export}.get(words[0], run_command)
        run(words, model_class or MNISTClassifier, data_class or MNISTDataModule)
