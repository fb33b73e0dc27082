"""``predictions.csv``: what the network says of every test image."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from mnist_lightning.files import write_atomically
from mnist_lightning.model.metrics import refuse_not_finite


class PredictionsCSV(BasePredictionWriter):
    """One row per image, in the order of the images, whatever the number of processes.

    Args:
        path: The file: ``index``, ``prediction`` (0 ... 9) and the probabilities ``p0`` ... ``p9``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        indices = np.hstack([index for batch in batch_indices[0] for index in batch])  # numbers, or batches of them
        shares = [(indices, torch.cat(list(predictions)).cpu())]
        if trainer.world_size > 1:
            mine, shares = shares[0], [None] * trainer.world_size  # type: ignore[list-item]  # filled in by the others
            torch.distributed.all_gather_object(shares, mine)
        finite = torch.cat([p.isfinite().all(1) for _, p in shares])
        refuse_not_finite(int((~finite).sum()), len(finite))  # in every process: one left alone would wait
        if not trainer.is_global_zero:
            return
        index = np.concatenate([share for share, _ in shares])
        probabilities = torch.cat([p for _, p in shares]).numpy()
        rows = np.column_stack([index, probabilities.argmax(1), probabilities])[index.argsort()]
        digits = range(probabilities.shape[1])
        text = io.StringIO()
        # Nine digits give every float32 back exactly.
        formats = ["%d", "%d", *("%.9g" for _ in digits)]
        header = ",".join(["index", "prediction", *(f"p{digit}" for digit in digits)])
        np.savetxt(text, rows, formats, delimiter=",", header=header, comments="")
        write_atomically(self.path, text.getvalue().encode())
