"""The command line's front door: it answers what needs no torch, and turns bad input into one line."""

import contextlib
import difflib
import gc
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mnist_lightning import __version__, processes
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
        with _lasting_output() if own_process else contextlib.nullcontext():
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
        from mnist_lightning.data import MNISTDataModule
        from mnist_lightning.lightning_cli import inspect, run
        from mnist_lightning.model import MNISTClassifier

        if own_process:
            gc.freeze()
            gc.enable()
        if args[0] == "inspect":
            inspect(args[1:], data_class or MNISTDataModule)
        else:
            run(args, model_class or MNISTClassifier, data_class or MNISTDataModule)


class _Stdout(io.FileIO):
    """Standard output that a training outlives: what nobody reads any more, behind ``| head``, is not said."""

    _failed = False

    def write(self, data: Any) -> int:
        try:
            return len(data) if self._failed else super().write(data)
        except OSError as error:
            self._failed = True
            if isinstance(error, BrokenPipeError):
                return len(data)
            raise InputError(
                f"cannot write to the standard output ({error.strerror}): send it elsewhere; a training can be resumed"
            ) from error


@contextlib.contextmanager
def _lasting_output() -> Iterator[None]:
    """Make standard output one that lasts to the end, and that has a place for every character."""
    before: Any = sys.stdout
    own = before is sys.__stdout__  # or else the output of another program
    if before is None:  # closed, by `>&-`: what takes its place also keeps it from the next file that is opened
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    elif own:
        before.flush()
        raw = io.BufferedWriter(_Stdout(before.fileno(), "w", closefd=False))
        at_once = before.line_buffering or before.write_through
        sys.stdout = io.TextIOWrapper(raw, before.encoding, "backslashreplace", line_buffering=at_once)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdout = before


def _end_at_once(*args: object) -> None:
    os._exit(130)


def interruptible() -> None:
    """From here on, there is something to lose: Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's tips and adverts, and remarks about this package's own choices, off the screen."""
    names = ("lightning.pytorch", "lightning.fabric", "matplotlib")
    loggers = {logging.getLogger(name): logging.WARNING for name in names}
    # What a flag asks for is said: a summary, a profile; and the last words about a process that Lightning kills.
    asked = ("lightning.pytorch.callbacks.model_summary", "lightning.pytorch.profilers.profiler", processes.OBSERVER)
    loggers |= {logging.getLogger(name): logging.INFO for name in asked}
    with warnings.catch_warnings():
        for remark in (
            r".*does not have many workers",  # the data is in memory: a worker would only copy it
            r".*configure_optimizers` will be overridden",  # that is what --optimizer asks for
            r".*`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
            r".*Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own folder
            r".*is smaller than the logging interval",  # the figures are those of whole epochs
            r"The dirpath has changed from",  # a checkpoint from elsewhere begins a run of its own here
            r".*callbacks used to create the checkpoint need to be provided",  # not to evaluate it
            r".*You defined a `validation_step` but have no `val_dataloader`",  # the tutorial's way
        ):
            warnings.filterwarnings("ignore", message=remark)
        import lightning.pytorch  # noqa: F401  # sets its logger's level, which would undo what follows

        levels = [logger.level for logger in loggers]
        for logger, level in loggers.items():
            logger.setLevel(level)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
