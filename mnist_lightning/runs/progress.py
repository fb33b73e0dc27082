"""What a person sees during training: a bar that moves, and one line per epoch that stays."""

import shutil
import sys
import textwrap
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

BUSY = 0.2
"""The share of an epoch that the training may wait for a core before a line says so."""


class EpochProgress(TQDMProgressBar):
    """Draws a bar if there is a terminal, and prints a line at the end of every epoch.

    As in Keras, the line says the time and the means of loss and accuracy over the epoch. The figures of the
    validation images follow if there are any.
    """

    def __init__(self) -> None:
        super().__init__(leave=True)  # a bar for each epoch
        self._drawn = self._began = self._waited = self._share = 0.0
        self._line: str | None = None
        self._of_a_batch: set[str] = set()  # the figures in it that are no means
        self._told = False  # that the cores are busy

    @property
    def is_enabled(self) -> bool:
        return super().is_enabled and sys.stdout.isatty()

    def init_train_tqdm(self) -> Tqdm:
        return self._open(_epoch(self.trainer))

    def init_validation_tqdm(self) -> Tqdm:
        # Within a fit, the bar of the training stays: a second bar below it would flicker.
        return self._open("Validating", hidden=self.trainer.state.fn == "fit")

    init_sanity_tqdm = init_validation_tqdm

    def init_test_tqdm(self) -> Tqdm:
        return self._open("Testing")

    def init_predict_tqdm(self) -> Tqdm:
        return self._open("Predicting")

    def _open(self, what: str, hidden: bool = False) -> Tqdm:
        off = hidden or self.is_disabled
        form = f"{what} |{{bar}}| {{n_fmt}}/{{total_fmt}} [{{remaining}}]"
        return Tqdm(disable=off, leave=False, file=sys.stdout, dynamic_ncols=True, ascii=" #", bar_format=form)

    def _should_update(self, current: int, total: int) -> bool:
        # Lightning would draw after every batch. Ten times a second is enough, and costs nothing.
        due = self.is_enabled and time.perf_counter() - self._drawn >= 0.1
        if due:
            self._drawn = time.perf_counter()
        return due

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """Return no figures. The bar shows none, and Lightning would compute them for every batch."""
        return {}

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar, also between two epochs, when there is no bar."""
        Tqdm.write(sep.join(map(str, args)), **kwargs)

    def on_train_start(self, *args: Any) -> None:
        self.train_progress_bar = Tqdm(disable=True)  # every epoch opens its own

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        self._print_epoch(trainer)
        self._began, self._waited = time.perf_counter(), waited_for_a_core()
        super().on_train_epoch_start(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)  # it may not have done the last steps yet
        seconds = time.perf_counter() - self._began
        self._share = (waited_for_a_core() - self._waited) / seconds
        # The next hook prints the figures. Here, the first process would compute them alone, and wait for the others.
        self._line, self._of_a_batch = f"{_epoch(trainer)}  {seconds:.1f} s  ", of_a_batch(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        for bar in [part for part in vars(self).values() if isinstance(part, Tqdm)]:
            bar.close()
        self._print_epoch(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer)

    def _print_epoch(self, trainer: Trainer) -> None:
        line, self._line = self._line, None  # first of all: a signal during what follows must not print it again
        if line is not None and self._enabled:
            metrics = trainer.callback_metrics
            names = [f"{stage}_{what}" for stage in ("train", "val") for what in ("loss", "acc")]
            say(line, in_words({name: metrics[name] for name in names if name in metrics}, self._of_a_batch))
            if self._share > BUSY and not self._told:
                self._told = True
                say("Busy", f"other programs kept the training waiting for {self._share:.0%} of this time")


def waited_for_a_core() -> float:
    """How many seconds this process's first thread was ready to run and had no core; 0 where Linux does not say it."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def _epoch(trainer: Trainer) -> str:
    most = trainer.max_epochs or 0  # -1 is a training without an end
    return f"Epoch {trainer.current_epoch + 1}" + f"/{most}" * (most > 0)


def of_a_batch(trainer: Trainer) -> set[str]:
    """The figures of the last epoch's training that were logged for each batch alone: they are the last batch's.

    ``self.log`` in a ``training_step`` logs in this way, unless it gets ``on_epoch=True``.
    """
    results = trainer.fit_loop.epoch_loop._results.values()  # noqa: SLF001  # the public figures do not say this
    of_the_epoch = {result.meta.name for result in results if result.meta.on_epoch}
    return {result.meta.name for result in results if trainer.num_training_batches != 1} - of_the_epoch


def in_words(metrics: Mapping[str, Any], of_a_batch: Collection[str] = ()) -> str:
    """The figures as a text for :func:`say`, which breaks no line between a name and its figure."""
    figures = (f"{name} {float(value):.4f}{' (last batch)' * (name in of_a_batch)}" for name, value in metrics.items())
    return "  ".join(map(unbroken, figures))


def say(label: str, text: str) -> None:
    """Print a labelled line, wrapped to the terminal, in characters that any code page has."""
    width = max(shutil.get_terminal_size().columns, 40)
    options: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
    lines = textwrap.fill(unbroken(f"{label:<9}") + text, width - 1, subsequent_indent=" " * 9, **options)
    print(lines.replace("\0", " "), flush=True)


def unbroken(text: object) -> str:
    """Mark a path or a command so that :func:`say` does not break the line at its spaces."""
    text = str(text)
    return (text if text.isprintable() else repr(text)).replace(" ", "\0")
