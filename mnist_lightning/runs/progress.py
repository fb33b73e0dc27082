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
    """Draws a bar in a terminal, and prints a line at the end of every epoch, as Keras does: its time and metrics."""

    def __init__(self) -> None:
        super().__init__(leave=True)  # a bar for each epoch
        self._drawn = self._began = self._waited = self._share = 0.0
        self._line: str | None = None
        self._told = False  # that the cores are busy

    @property
    def is_enabled(self) -> bool:
        return super().is_enabled and sys.stdout.isatty()

    def init_train_tqdm(self) -> Tqdm:
        return self._open(_epoch(self.trainer))

    def init_validation_tqdm(self) -> Tqdm:
        return self._open("Validating", hidden=self.trainer.state.fn == "fit")  # a second bar would flicker

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
        # Lightning would draw after every batch, which takes time.
        due = self.is_enabled and time.perf_counter() - self._drawn >= 0.1
        if due:
            self._drawn = time.perf_counter()
        return due

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {}  # the bar shows none, and Lightning would compute them for every batch

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
        # The next hook prints the metrics: here, the first process would compute them alone, and wait for the others.
        self._line = f"{_epoch(trainer)}  {seconds:.1f} s  "

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        for bar in [part for part in vars(self).values() if isinstance(part, Tqdm)]:
            bar.close()
        self._print_epoch(trainer)

    on_exception = on_train_end  # type: ignore[assignment]  # it needs the Trainer alone

    def _print_epoch(self, trainer: Trainer) -> None:
        line, self._line = self._line, None  # first: a signal during what follows must not print it again
        if line is None or not self._enabled:
            return
        metrics = trainer.callback_metrics
        names = ("train_loss", "train_acc", "val_loss", "val_acc")
        say(line, in_words({name: metrics[name] for name in names if name in metrics}, of_a_batch(trainer)))
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
    epoch, most = f"Epoch {trainer.current_epoch + 1}", trainer.max_epochs
    return f"{epoch}/{most}" if most and most > 0 else epoch  # -1 is a training without an end


def of_a_batch(trainer: Trainer) -> set[str]:
    """The metrics of the training that are the last batch's: those logged without ``on_epoch=True``."""
    if trainer.num_training_batches == 1:
        return set()
    results = trainer.fit_loop.epoch_loop._results.values()  # noqa: SLF001  # the public metrics do not say this
    of_the_epoch = {result.meta.name for result in results if result.meta.on_epoch}
    return {result.meta.name for result in results} - of_the_epoch


def in_words(metrics: Mapping[str, Any], of_a_batch: Collection[str] = ()) -> str:
    """The metrics as a text for :func:`say`."""
    words = []
    for name, value in metrics.items():
        what = " (last batch)" if name in of_a_batch else ""
        words.append(unbroken(f"{name} {float(value):.4f}{what}"))
    return "  ".join(words)


def say(label: str, text: str) -> None:
    """Print a labelled line, wrapped to the terminal."""
    width = max(shutil.get_terminal_size().columns, 40)
    options: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
    lines = textwrap.fill(unbroken(f"{label:<9}") + text, width - 1, subsequent_indent=" " * 9, **options)
    print(lines.replace("\0", " "), flush=True)


def unbroken(text: object) -> str:
    """A path or a command that :func:`say` does not break at its spaces."""
    text = str(text)
    return (text if text.isprintable() else repr(text)).replace(" ", "\0")
