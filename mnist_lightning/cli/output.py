"""Standard output that may be closed without stopping a training, and what is kept off it."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from mnist_lightning.cli.processes import OBSERVER
from mnist_lightning.errors import InputError


class _Stdout(io.FileIO):
    """Standard output that may be closed. ``fit | head`` trains to its end, and the rest of its lines is dropped."""

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
def lasting_output() -> Iterator[None]:
    """Replace standard output by one that survives a closed pipe and can print every character."""
    before: Any = sys.stdout
    if before is None:  # closed, by `>&-`; without this, the next file that is opened would get the output
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # os.devnull is a str; it stays open
    elif before == sys.__stdout__:  # otherwise it is the output of another program
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's tips and adverts, and remarks about this package's own choices, off the screen."""
    import logging  # not above: it registers with atexit, where the end of the process must come first

    names = ("lightning.pytorch", "lightning.fabric", "matplotlib")
    loggers = {logging.getLogger(name): logging.WARNING for name in names}
    # What a flag asks for is printed: a summary, a profile. So is the reason why Lightning kills a process.
    asked = ("lightning.pytorch.callbacks.model_summary", "lightning.pytorch.profilers.profiler", OBSERVER)
    loggers |= {logging.getLogger(name): logging.INFO for name in asked}
    with warnings.catch_warnings(), contextlib.ExitStack() as levels:
        for remark in (
            r".*does not have many workers",  # the data is in memory: a worker would only copy it
            r".*configure_optimizers` will be overridden",  # that is what --optimizer asks for
            r".*`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
            r".*Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own folder
            r".*is smaller than the logging interval",  # the figures are those of whole epochs
            r"The dirpath has changed from",  # a checkpoint from elsewhere begins a run of its own here
            r"The loaded checkpoint was produced with Lightning .* newer",  # resume.py compares it with this run
            r".*callbacks used to create the checkpoint need to be provided",  # not to evaluate it
            r".*You defined a `validation_step` but have no `val_dataloader`",  # the tutorial's way
            r"Total length of `list` across ranks is zero",  # as above
            r"You passed in a `val_dataloader` but have no `validation_step`",  # it is empty
        ):
            warnings.filterwarnings("ignore", message=remark)
        import lightning.pytorch  # noqa: F401  # sets its logger's level, which would undo what follows

        for logger, level in loggers.items():
            levels.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        yield
