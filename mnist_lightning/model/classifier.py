"""The tutorial's network and its training, as Keras 2.2.4 did it."""

import inspect
import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mnist_lightning.errors import InputError
from mnist_lightning.files import plain, plain_file, safely
from mnist_lightning.model.losses import LOSSES
from mnist_lightning.model.metrics import EpochMetrics, at_least_float32, refuse_not_finite
from mnist_lightning.model.optimizer import RMSprop

Batch = tuple[Tensor, Tensor]
"""``(images, targets)``: ``(B, 1, 28, 28)`` or ``(B, 784)`` float in [0, 1], and ``(B,)`` int64 in 0 ... 9."""

PIXELS, DIGITS = 28 * 28, 10
MAX_HIDDEN_SIZE = 65_536  # 52 million parameters: with gradients and RMSprop's averages, 0.6 GB.


class MNISTClassifier(LightningModule):
    """784 pixels, 512 ReLU units, 10 digits: 407,050 parameters, trained by RMSprop.

    The network of F. Chollet, Deep Learning with Python (2017), section 2.1. It logs
    ``train_loss``, ``train_acc``, ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``, the
    training figures in Keras's meaning: running means over the epoch, while the weights move.

    Args:
        hidden_size: Units of the hidden layer, 1 ... 65,536.
        learning_rate: RMSprop's, above 0.
        loss: ``"cross_entropy"``, torch's, on logits; or ``"keras"``, that of Keras 2.2.4, clipped.
        dropout: Fraction of the hidden units that a training step leaves out at random, 0 ... below
            1; the others are scaled up by 1 / (1 - dropout) (Srivastava et al. 2014, JMLR 15).
        weight_decay: RMSprop's, 0 or above: this times every parameter, biases too, is added to its
            gradient, as a penalty of weight_decay / 2 times their squares would. No logged loss has it.

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
    ) -> None:
        super().__init__()
        if isinstance(hidden_size, bool) or not isinstance(hidden_size, int) or not 1 <= hidden_size <= MAX_HIDDEN_SIZE:
            raise InputError(f"hidden_size must be a whole number from 1 to {MAX_HIDDEN_SIZE}, got {hidden_size!r}")
        if not _is_number(learning_rate) or not 0 < learning_rate < math.inf:
            raise InputError(f"learning_rate must be a finite number above 0, got {learning_rate!r}")
        if not isinstance(loss, str) or loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not _is_number(dropout) or not 0 <= dropout < 1:
            raise InputError(f"dropout must be a number from 0 to below 1, got {dropout!r}")
        if not _is_number(weight_decay) or not 0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay must be a finite number, 0 or above, got {weight_decay!r}")
        hidden_size, learning_rate = int(hidden_size), float(learning_rate)  # numpy's numbers are no plain values
        dropout, weight_decay = float(dropout), float(weight_decay)
        self.save_hyperparameters()
        plain(self.hparams)
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(PIXELS, hidden_size),  # 784 x 512 + 512 = 401,920 parameters
            # In the ReLU's own place, so that the layers' names are the same with dropout and without.
            nn.Sequential(nn.ReLU(), nn.Dropout(dropout)) if dropout else nn.ReLU(),
            nn.Linear(hidden_size, DIGITS),  # 512 x 10 + 10 = 5,130 parameters
        )
        for layer in self.network:
            if isinstance(layer, nn.Linear):  # as keras.layers.Dense; torch's own start differs in both
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.train_metrics = EpochMetrics(DIGITS)
        self.val_metrics = EpochMetrics(DIGITS)
        self.test_metrics = EpochMetrics(DIGITS)
        self._images: int = 0
        self._bad_images: int | Tensor = 0

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, *args: Any, **kwargs: Any
    ) -> "MNISTClassifier":
        """As Lightning's, but a checkpoint is data: weights, and hyper-parameters that are numbers or plain text.

        Raises:
            InputError: If the checkpoint holds anything else for a parameter that is not given here, or if
                ``weights_only=False`` is asked for.
        """
        kwargs = safely(kwargs)
        return super().load_from_checkpoint(
            plain_file(cls, checkpoint_path, map_location, kwargs), None, *args, **kwargs
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, ``(N, 10)``, of images, ``(N, 1, 28, 28)`` or ``(N, 784)`` float in [0, 1].

        Raises:
            InputError: If the images have another shape, or are not floats.
        """
        if images.shape[1:] not in ((1, 28, 28), (PIXELS,)):
            raise InputError(f"images must have shape (N, 1, 28, 28) or (N, 784), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise InputError(f"images must be floats in [0, 1] (uint8 / 255), got {images.dtype}")
        logits: Tensor = self.network(images)
        return logits

    def setup(self, stage: str) -> None:
        self._images = self._bad_images = 0  # forget those of a loop that was broken off
        # Lightning does so only after it has loaded a checkpoint: float64's weights went through float32.
        if self.trainer.precision == "64-true":
            self.double()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """RMSprop with the constants of Keras 2.2.4: rho 0.9 and epsilon 1e-7, outside the root."""
        rmsprop = RMSprop if self.device.type == "cpu" else torch.optim.RMSprop
        # torch's own defaults are lr 1e-2, alpha 0.99 and eps 1e-8.
        return rmsprop(
            self.parameters(),
            lr=self.hparams["learning_rate"],
            alpha=0.9,
            eps=1e-7,
            weight_decay=self.hparams["weight_decay"],
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of this process's share, scaled so that the mean over processes is the batch's."""
        loss, _ = self._step(batch, self.train_metrics)
        if self.trainer.world_size > 1:
            size = torch.tensor(len(batch[1]), dtype=loss.dtype, device=self.device)
            total = self.trainer.strategy.reduce(size.clone(), reduce_op="sum")  # reduces in place
            loss = loss * (size * self.trainer.world_size / total)
        return loss

    # Lightning looks on every step which parameters that has: a signature that is there is not made anew.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]  # inspect reads it, mypy does not know it

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._watch(self._step(batch, self.val_metrics)[1])

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits, ``(B, 10)`` of at least float32, for whoever wants more than the loss and the accuracy."""
        return self._watch(self._step(batch, self.test_metrics)[1])

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities, ``(B, 10)`` of at least float32, of a batch of images with or without targets."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return self._watch(at_least_float32(self(images))).softmax(dim=1)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes which hook it is in 44 times a step, and nn.Module looks whether the note is
        # a parameter, a module or a buffer: 0.07 ms of a step of 1.9 ms.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # Whatever a loop that was broken off has put aside is forgotten when the next one begins.
    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_train_epoch_end(self) -> None:
        # Before the checkpoint of the epoch is saved, and with one look at the device.
        bad = self.train_metrics.first_bad_step()
        self.train_metrics.log(self, "train")
        finite = torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).all()
        if not finite or not self.train_metrics.loss.compute().isfinite():
            where = f", at batch {bad + 1}" if bad is not None else ""
            raise InputError(
                f"the loss became infinite or NaN in epoch {self.current_epoch + 1}{where}: try a lower learning_rate "
                f"than {self.hparams['learning_rate']:g}; the checkpoint of the epoch before is as it was"
            )

    def on_validation_epoch_end(self) -> None:
        self.val_metrics.log(self, "val")
        if self.trainer.state.fn != "fit":  # a fit has the check above, which says more
            self._refuse_outputs(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self.test_metrics.log(self, "test")
        self._refuse_outputs(self.test_metrics)

    def on_predict_epoch_end(self) -> None:
        self._refuse_outputs()

    def _watch(self, outputs: Tensor) -> Tensor:
        """Count the images whose outputs are not finite, on the device: no step waits for it."""
        self._images += len(outputs)
        self._bad_images = self._bad_images + (~outputs.isfinite().all(1)).sum()
        return outputs

    def _refuse_outputs(self, metrics: EpochMetrics | None = None) -> None:
        """Refuse outputs, or a loss, that are not finite: in all processes, or in none."""
        counts = torch.tensor([int(self._bad_images), self._images], device=self.device)
        bad, images = self.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        loss = float(metrics.loss.compute()) if metrics is not None and images else 0.0
        refuse_not_finite(bad, images, "" if math.isfinite(loss) else f", and the loss is {loss}")

    def _step(self, batch: Batch, metrics: EpochMetrics) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, ``()``, and its logits, ``(B, 10)``."""
        images, targets = batch
        if targets.ndim != 1 or targets.is_floating_point():
            raise InputError(
                f"targets must be class indices of shape (N,), got {targets.dtype} of shape {tuple(targets.shape)}; "
                "one-hot targets become indices by targets.argmax(dim=1)"
            )
        # Half precision has 3 digits, or 2: too few for a sum of exponentials, and for what is logged.
        logits = at_least_float32(self(images))
        loss = LOSSES[self.hparams["loss"]](logits, targets)
        metrics.update(loss, logits, targets)
        return loss, logits

    @property
    def hidden_layer(self) -> nn.Linear:
        """From the pixels to the hidden units."""
        return self.network[1]  # type: ignore[return-value]

    @property
    def output_layer(self) -> nn.Linear:
        """From the hidden units to the digits."""
        return self.network[3]  # type: ignore[return-value]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
