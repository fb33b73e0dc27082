"""The callback that makes a report of every test."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mnist_lightning.data.dataset import Batch, MNISTDataset
from mnist_lightning.results.report import DIGITS, Report


class ReportCallback(Callback):
    """Makes a :class:`Report` of every ``Trainer.test``, and costs nothing in any other stage.

    ``test_step`` must return the logits, ``(B, 10)``, and the loader have an
    :class:`~mnist_lightning.data.MNISTDataset`, whose images the report takes in the order of the
    loader's sampler; otherwise a warning says why there is no report. With several processes, each
    contributes its share.

    Args:
        folder: Where to write the report and its pictures; by default it is only kept.

    Attributes:
        report: That of the last test, on the first process; ``None`` before and elsewhere.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.report: Report | None = None
        self._logits: list[Tensor] | None = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = None
        self._logits = []
        if not isinstance(getattr(trainer.test_dataloaders, "dataset", None), MNISTDataset):
            self._give_up("the test's loader must have an MNISTDataset")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        if self._logits is None:
            return
        if isinstance(outputs, Tensor) and outputs.shape == (len(batch[1]), DIGITS):
            self._logits.append(outputs)  # on the device still: no step waits for it
        else:
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            self._give_up(f"test_step must return the logits, (B, {DIGITS}), got {got}")

    def _give_up(self, why: str) -> None:
        self._logits = None
        rank_zero_warn(f"no report of this test: {why}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logits is None:
            return
        logits = torch.cat([torch.empty(0, DIGITS), *(batch.detach().cpu() for batch in self._logits)])
        self._logits = None
        loader: Any = trainer.test_dataloaders
        sampled = np.hstack([np.empty(0, int), *loader.sampler])  # single indices, or whole batches of them
        share = (sampled[: len(logits)].tolist(), logits)  # fewer than the sampler has: limit_test_batches
        shares = [share]
        if trainer.world_size > 1:
            shares = [share] * trainer.world_size
            torch.distributed.all_gather_object(shares, share)
        if not trainer.is_global_zero or not any(mine for mine, _ in shares):
            return
        indices = torch.tensor([index for mine, _ in shares for index in mine])
        indices, order = indices.sort()
        logits = torch.cat([theirs for _, theirs in shares])[order]  # of at least float32, by the empty one above
        layers = [layer for layer in pl_module.modules() if isinstance(layer, nn.Linear)]
        plain = len(layers) == 2 and layers[0].in_features == 28 * 28
        first, second = (layer.weight.detach().float().cpu() for layer in layers) if plain else (None, None)
        self.report = Report.from_predictions(
            logits.softmax(dim=1),
            loader.dataset.targets.cpu()[indices],
            loader.dataset.images.cpu()[indices],
            first,
            second,
            indices,
        )
        if self.folder is not None:
            self.report.write(self.folder)
