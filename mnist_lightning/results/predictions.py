"""``predictions.csv``: the predictions for all test images."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomically
from mnist_lightning.model.metrics import refuse_not_finite


class PredictionsCSV(BasePredictionWriter):
    """Writes one row for each image, in the order of the images, with any number of processes.

    Args:
        path: The file. Its columns are ``index``, ``prediction`` (0 ... 9) and the probabilities ``p0`` ... ``p9``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        indices = np.hstack([index for batch in batch_indices[0] for index in batch])  # numbers, or batches of them
        check_outputs(predictions, len(indices))
        index, probabilities = in_order(trainer, indices, predictions)
        # Every process checks all outputs, so that all stop together. One that went on would wait for the others.
        check_probabilities(probabilities)
        if not trainer.is_global_zero:
            return
        table = np.column_stack([index, probabilities.argmax(1), probabilities])
        digits = range(probabilities.shape[1])
        text = io.StringIO()
        # Nine digits are enough to read every float32 back exactly.
        formats = ["%d", "%d", *("%.9g" for _ in digits)]
        header = ",".join(["index", "prediction", *(f"p{digit}" for digit in digits)])
        np.savetxt(text, table, formats, delimiter=",", header=header, comments="")
        write_atomically(self.path, text.getvalue().encode())


def check_outputs(outputs: Sequence[Any], images: int) -> None:
    """Refuse what ``predict_step`` has returned for so many images, unless it is a row, ``(B, 10)``, for each of them.

    Raises:
        InputError: If it is anything else.
    """
    if odd := [batch for batch in outputs if not isinstance(batch, Tensor) or batch.ndim != 2]:
        raise InputError(f"predict_step must return probabilities, (B, 10), got {form(odd[0])}")
    if (rows := sum(map(len, outputs))) != images:
        raise InputError(f"predict_step must return a row for each image, {images}, got {rows}")


def check_probabilities(outputs: Tensor) -> None:
    """Refuse rows, ``(N, 10)``, that are no probabilities.

    Raises:
        InputError: If they are none.
    """
    refuse_not_finite(int((~outputs.isfinite().all(1)).sum()), len(outputs))
    if not are_probabilities(outputs):
        raise InputError("predict_step must return probabilities, (B, 10), got rows that do not sum to 1")


def are_probabilities(outputs: Tensor) -> bool:
    """Whether all rows, ``(N, 10)``, have no negative number and a sum of 1."""
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 0.01).all())


def form(output: Any) -> str:
    """What a step has returned, in words: the shape of a tensor, the type of anything else."""
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def in_order(trainer: Trainer, indices: np.ndarray, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gather the indices and the outputs of all processes, and sort them by image. Every process must call this.

    A process has indices, ``(n,)`` int64, and outputs in the same order, ``(B, 10)`` for each batch. Every process gets
    all indices, ``(N,)`` int64, and all outputs, ``(N, 10)`` of at least float32.
    """
    share = indices, torch.cat([torch.empty(0), *(batch.detach().cpu() for batch in outputs)])
    shares = [share] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(shares, share)
    index, order = torch.from_numpy(np.concatenate([theirs for theirs, _ in shares])).sort()
    return index, torch.cat([theirs for _, theirs in shares])[order]
