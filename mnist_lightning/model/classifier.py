"""The tutorial's network and its training, as in Keras 2.2.4."""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mnist_lightning.errors import check
from mnist_lightning.model.losses import LOSSES
from mnist_lightning.model.metrics import EpochMetrics, at_least_float32, share_of_batch
from mnist_lightning.model.optimizer import RMSprop
from mnist_lightning.safe_checkpoints import SafeCheckpoints

Batch = tuple[Tensor, Tensor]
"""``(images, targets)``: ``(B, 1, 28, 28)`` or ``(B, 784)`` float in [0, 1], and ``(B,)`` int64 in 0 ... 9."""


class MNISTClassifier(SafeCheckpoints, LightningModule):
    """784 pixels, 512 ReLU units, 10 digits: 407,050 parameters, trained by RMSprop.

    The network of F. Chollet, Deep Learning with Python (2017), section 2.1. It logs ``train_loss``, ``train_acc``,
    ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``, once an epoch. As in Keras, the training figures are
    running means over the epoch, while the weights change.

    Args:
        hidden_size: Units of the hidden layer.
        learning_rate: The learning rate of RMSprop, above 0.
        loss: ``"cross_entropy"`` is torch's, on logits. ``"keras"`` is that of Keras 2.2.4, on clipped probabilities.
        dropout: Fraction of the hidden units that a training step leaves out at random, 0 ... below 1; the others are
            scaled up by 1 / (1 - dropout) (Srivastava et al. 2014, JMLR 15).
        weight_decay: This times each parameter, biases too, is added to the parameter's gradient; 0 or above.
        image_shape: Channels, height and width of an image. The commands take it from the data, and ``num_classes``,
            too.
        num_classes: The number of classes, and of the logits of an image.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        hidden_size: int = 512,
        learning_rate: float = 1e-3,
        loss: Literal["cross_entropy", "keras"] = "cross_entropy",
        dropout: float = 0.0,
        weight_decay: float = 0.0,
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        check("hidden_size", hidden_size, hidden_size >= 1, "at least 1")
        check("learning_rate", learning_rate, learning_rate > 0, "above 0")
        check("loss", loss, loss in LOSSES, f"one of {', '.join(LOSSES)}")
        check("dropout", dropout, 0 <= dropout < 1, "from 0 to below 1")
        check("weight_decay", weight_decay, weight_decay >= 0, "0 or above")
        image_shape = [*image_shape]  # in the hyper-parameters: YAML has no tuples
        self.save_hyperparameters()
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        pixels = prod(image_shape)
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, hidden_size),  # 784 x 512 + 512 = 401,920 parameters
            # ReLU and dropout are one layer, so that the layers have the same names in every checkpoint.
            nn.Sequential(nn.ReLU(), nn.Dropout(dropout)) if dropout else nn.ReLU(),
            nn.Linear(hidden_size, num_classes),  # 512 x 10 + 10 = 5,130 parameters
        )
        for layer in self.network:
            if isinstance(layer, nn.Linear):  # as keras.layers.Dense begins; torch's differ
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.train_metrics, self.val_metrics, self.test_metrics = EpochMetrics(), EpochMetrics(), EpochMetrics()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits, ``(N, 10)`` float, of images.

        Args:
            images: ``(N, 1, 28, 28)`` or ``(N, 784)`` float in [0, 1], or normalised as in its training.
        """
        logits: Tensor = self.network(images)
        return logits

    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, ``()``. Override it to train with a loss of your own.

        Args:
            logits: ``(B, 10)`` float32 or float64.
            targets: ``(B,)`` int64 in 0 ... 9, as the data has them.
        """
        return LOSSES[self.hparams["loss"]](logits, targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a batch, ``()``. Of several processes, each has its share of it."""
        loss, _ = self._step("train", batch, batch_idx)
        return share_of_batch(loss, len(batch[1]), self)

    # Lightning may pass `dataloader_idx`. If it stood here, type checkers would refuse a subclass that leaves it out.
    def validation_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        """The logits, ``(B, 10)`` of at least float32, for callbacks that need more than loss and accuracy."""
        return self._step("test", batch, batch_idx)[1]

    def predict_step(self, batch: Any, batch_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        """Probabilities, ``(B, 10)`` of at least float32, of a batch of images with or without targets."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return at_least_float32(self(images)).softmax(dim=1)

    def _step(self, stage: str, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, ``()``, and its logits, ``(B, 10)``; the metrics take note of both."""
        images, targets = batch
        # Half precision has 2 or 3 decimal digits: too few for a sum of exponentials, or for a logged loss.
        logits = at_least_float32(self(images))
        loss = self.compute_loss(logits, targets)
        metrics: EpochMetrics = getattr(self, f"{stage}_metrics")
        if batch_idx == 0:
            metrics.begin(self, stage, loss.dtype)
        metrics.update(loss, logits, targets)
        return loss, logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """RMSprop with the constants of Keras 2.2.4: rho 0.9, and epsilon 1e-7, added after the root."""
        rmsprop = RMSprop if self.device.type == "cpu" else torch.optim.RMSprop  # the same results, in less time
        return rmsprop(  # torch's own defaults are lr 1e-2, alpha 0.99 and eps 1e-8
            self.parameters(),
            lr=self.hparams["learning_rate"],
            alpha=0.9,
            eps=1e-7,
            weight_decay=self.hparams["weight_decay"],
        )

    def setup(self, stage: str) -> None:
        # Lightning loads a checkpoint first, and makes the model float64 after that: float32 would round the weights.
        if self.trainer.precision == "64-true":
            self.double()
