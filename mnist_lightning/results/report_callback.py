"""The callback that makes a report of every test."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import Batch, MNISTDataset
from mnist_lightning.results.predictions import are_probabilities, form, in_order
from mnist_lightning.results.report import Report, layer_weights
from mnist_lightning.results.style import DIGITS


class ReportCallback(Callback):
    """Makes a :class:`Report` of every ``Trainer.test``, or warns why there is none.

    ``test_step`` must return the logits, ``(B, 10)``, and the loader must have an ``MNISTDataset``, in its order.

    Attributes:
        report: Of the last test, in the first process. ``None`` in others.
    """

    def __init__(self) -> None:
        self.report: Report | None = None
        self._logits: list[Tensor] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report, self._logits = None, []
        self._name, self._classes = "MNIST", DIGITS
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, MNISTDataModule):
            self._name, self._classes = data.name, data.classes
        loader: Any = trainer.test_dataloaders
        ordered = isinstance(getattr(loader, "sampler", None), (SequentialSampler, DistributedSampler))
        if not ordered or not isinstance(loader.dataset, MNISTDataset):
            self._give_up("the test's loader must have an MNISTDataset, in its order")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        if self._logits is None:
            return
        if isinstance(outputs, Tensor) and outputs.shape == (len(batch[1]), len(self._classes)):
            self._logits.append(outputs)  # still on the device, so that no step waits for a copy
        else:
            self._give_up(f"test_step must return the logits, (B, {len(self._classes)}), got {form(outputs)}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logits is None:
            return
        loader: Any = trainer.test_dataloaders
        images = sum(map(len, self._logits))  # with limit_test_batches, fewer than the sampler has
        indices, logits = in_order(trainer, [*loader.sampler][:images], self._logits)
        self._logits = None
        if not trainer.is_global_zero or not len(indices):
            return
        if are_probabilities(logits):
            return self._give_up("test_step must return the logits, got probabilities: leave its softmax out")
        targets, images = (tensor.cpu()[indices] for tensor in (loader.dataset.targets, loader.dataset.images))
        weights = layer_weights(pl_module)
        self.report = Report.from_predictions(
            logits.softmax(dim=1), targets, images, *weights, indices, self._name, self._classes
        )

    def _give_up(self, why: str) -> None:
        self._logits = None
        rank_zero_warn(f"no report of this test: {why}")
