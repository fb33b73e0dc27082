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


class PredictionsCSV(BasePredictionWriter):
    """Writes ``index``, ``prediction`` and ``p0`` ... ``p9`` of each image, in order, with any number of processes."""

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        indices = [index for batch in batch_indices[0] for index in batch]
        check_outputs(predictions, len(indices))
        index, probabilities = in_order(trainer, indices, predictions)
        # Every process checks all outputs: one that went on alone would wait for the others.
        check_probabilities(probabilities)
        if not trainer.is_global_zero:
            return
        names = [f"p{number}" for number in range(probabilities.shape[1])]
        formats = ["%d", "%d"] + ["%.9g"] * len(names)  # nine digits read every float32 back exactly
        table = np.column_stack([index, probabilities.argmax(1), probabilities])
        text = io.StringIO()
        np.savetxt(text, table, formats, delimiter=",", header=",".join(["index", "prediction", *names]), comments="")
        write_atomically(self.path, text.getvalue().encode())


def check_outputs(outputs: Sequence[Any], images: int) -> None:
    """Refuse what ``predict_step`` has returned, unless it is a row for each image."""
    if odd := [batch for batch in outputs if not isinstance(batch, Tensor) or batch.ndim != 2]:
        raise InputError(f"predict_step must return probabilities, (B, 10), got {form(odd[0])}")
    if (rows := sum(map(len, outputs))) != images:
        raise InputError(f"predict_step must return a row for each image, {images}, got {rows}")


def check_probabilities(outputs: Tensor) -> None:
    """Refuse rows that are no probabilities, ``(N, 10)``."""
    refuse_not_finite(outputs)
    if not are_probabilities(outputs):
        raise InputError("predict_step must return probabilities, (B, 10), got rows that do not sum to 1")


def refuse_not_finite(outputs: Tensor) -> None:
    """Refuse infinite and NaN rows, whose argmax would be a class like any other."""
    if bad := int((~outputs.isfinite().all(1)).sum()):
        raise InputError(
            f"the network's outputs are infinite or NaN for {bad:,} of {len(outputs):,} images: take an earlier "
            "checkpoint, or train again with a lower learning_rate"
        )


def are_probabilities(outputs: Tensor) -> bool:
    """Whether all rows have no negative number and a sum of 1."""
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 0.01).all())


def form(output: Any) -> str:
    """What a step has returned, in words."""
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def in_order(trainer: Trainer, indices: Sequence[int], outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All processes' indices, ``(N,)`` int64, and outputs, ``(N, 10)``, by image. Every process must call this."""
    rows = torch.cat([torch.empty(0), *(batch.detach().cpu() for batch in outputs)])
    shares = [(torch.tensor(indices, dtype=torch.int64), rows)] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(shares, shares[0])
    index, order = torch.cat([theirs for theirs, _ in shares]).sort()
    return index, torch.cat([theirs for _, theirs in shares])[order]
