"""What a person watches: a live bar, and one line per epoch that stays."""

import shutil
import sys
import textwrap
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


def say(label: str, text: str) -> None:
    """Print a labelled line, wrapped to the terminal, in characters that any code page has."""
    width = max(shutil.get_terminal_size().columns, 40)
    unbroken: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
    lines = textwrap.fill(whole(f"{label:<9}") + text, width - 1, subsequent_indent=" " * 9, **unbroken)
    print(lines.replace("\0", " "), flush=True)


def whole(text: object) -> str:
    """A path or a command for :func:`say` to print in one piece: no line breaks at its spaces."""
    text = str(text)
    return (text if text.isprintable() else repr(text)).replace(" ", "\0")


class EpochProgress(ProgressBar):
    """A bar while there is a terminal to draw it on, and a line for every epoch that is over.

    The line says what Keras's says: the time, and the running means of loss and accuracy, beside
    those of the validation images if there are any.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._began = 0.0
        self._line: str | None = None

    def disable(self) -> None:
        """On all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(" ".join(map(str, args)))

    def _open(self, description: str, total: int | float) -> None:
        self._close()
        self._bar = tqdm(
            total=int(total) if total != float("inf") else None,
            desc=description,
            unit="batch",
            leave=False,
            file=sys.stdout,
            disable=not (self._enabled and sys.stdout.isatty()),
            dynamic_ncols=True,
            ascii=" #",
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{remaining}]",
        )

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update()  # tqdm itself draws no more than ten times a second

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # The module logs an epoch's means in its own `on_train_epoch_end`, after the callbacks': they
    # are there for whatever hook comes next.
    def _print_epoch(self, trainer: Trainer) -> None:
        line, self._line = self._line, None  # at once: a signal during what follows would have it printed again
        if line is None:
            return
        metrics = trainer.callback_metrics
        names = [f"{stage}_{what}" for stage in ("train", "val") for what in ("loss", "acc")]
        figures = [f"{name} {float(metrics[name]):.4f}" for name in names if name in metrics]
        if self._enabled:
            say(line, "  ".join(figures))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        self._print_epoch(trainer)
        self._began = time.perf_counter()
        self._open(f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", self.total_train_batches)

    def on_train_batch_end(self, *args: Any) -> None:
        self._advance()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        seconds = time.perf_counter() - self._began
        self._line = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {seconds:.1f} s  "

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()
        self._print_epoch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._open("Validating", self.total_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("Testing", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("Predicting", sum(trainer.num_predict_batches))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.state.fn == "validate":
            self._advance()

    def on_test_batch_end(self, *args: Any) -> None:
        self._advance()

    def on_predict_batch_end(self, *args: Any) -> None:
        self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._close()

    def on_test_end(self, *args: Any) -> None:
        self._close()

    def on_predict_end(self, *args: Any) -> None:
        self._close()
