"""The callback that makes a report of every test."""

from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import Batch, MNISTDataset
from mnist_lightning.results.figures import DIGITS
from mnist_lightning.results.predictions import are_probabilities, form, in_order
from mnist_lightning.results.report import Report, layer_weights


class ReportCallback(Callback):
    """Makes a :class:`Report` of every ``Trainer.test``, and does nothing in other stages.

    ``test_step`` must return the logits, ``(B, 10)``. The dataset of the loader must be an
    :class:`~mnist_lightning.data.MNISTDataset`, from which the report takes the images in the order of the loader's
    sampler. Otherwise there is no report, and a warning says why. The report covers the images of all processes.

    Attributes:
        report: The report of the last test, in the first process. ``None`` in other processes and before a test.
    """

    def __init__(self) -> None:
        self.report: Report | None = None
        self._logits: list[Tensor] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = None
        self._logits = []
        data = getattr(trainer, "datamodule", None)
        self._name, self._classes = "MNIST", DIGITS
        if isinstance(data, MNISTDataModule):
            self._name, self._classes = data.name, data.classes
        if not isinstance(getattr(trainer.test_dataloaders, "dataset", None), MNISTDataset):
            self._give_up("the test's loader must have an MNISTDataset")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        if self._logits is None:
            return
        if isinstance(outputs, Tensor) and outputs.shape == (len(batch[1]), len(self._classes)):
            self._logits.append(outputs)  # still on the device, so that no step waits for a copy
        else:
            self._give_up(f"test_step must return the logits, (B, {len(self._classes)}), got {form(outputs)}")

    def _give_up(self, why: str) -> None:
        self._logits = None
        rank_zero_warn(f"no report of this test: {why}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logits is None:
            return
        batches, self._logits = self._logits, None
        loader: Any = trainer.test_dataloaders
        sampled = np.hstack([np.empty(0, np.int64), *loader.sampler])  # single indices, or whole batches of them
        # With limit_test_batches, there are fewer logits than indices.
        indices, logits = in_order(trainer, sampled[: sum(map(len, batches))], batches)
        if not trainer.is_global_zero or not len(indices):
            return
        if are_probabilities(logits):
            return self._give_up("test_step must return the logits, got probabilities: leave its softmax out")
        self.report = Report.from_predictions(
            logits.softmax(dim=1),
            loader.dataset.targets.cpu()[indices],
            loader.dataset.images.cpu()[indices],
            *layer_weights(pl_module),
            indices=indices,
            name=self._name,
            classes=self._classes,
        )
