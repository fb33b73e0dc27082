"""The tutorial's network and its training, as in Keras 2.2.4."""

from collections.abc import Sequence
from math import inf, isfinite, prod
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from mnist_lightning.errors import InputError, real_number, whole_number
from mnist_lightning.files import PlainCheckpoints
from mnist_lightning.model.losses import LOSSES
from mnist_lightning.model.metrics import EpochMetrics, MeanOverImages, at_least_float32, refuse_not_finite
from mnist_lightning.model.optimizer import RMSprop

Batch = tuple[Tensor, Tensor]
"""``(images, targets)``: ``(B, 1, 28, 28)`` or ``(B, 784)`` float in [0, 1], and ``(B,)`` int64 in 0 ... 9."""

MAX_HIDDEN_SIZE = 65_536  # 52 million parameters: 0.6 GB, with their gradients and RMSprop's averages
MAX_WEIGHTS = 2**28  # 3.2 GB, with their gradients and RMSprop's averages


class MNISTClassifier(PlainCheckpoints, LightningModule):
    """784 pixels, 512 ReLU units, 10 digits: 407,050 parameters, trained by RMSprop.

    The network of F. Chollet, Deep Learning with Python (2017), section 2.1. It logs
    ``train_loss``, ``train_acc``, ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``. As in Keras,
    the training figures are running means over the epoch, while the weights change.

    It logs once an epoch. To log the loss on every step, ``self.log("loss", loss, prog_bar=True)`` takes
    11 % more time on one thread of a CPU, and every 50th step 0 to 2 %: ``scripts/README.md`` has a
    callback that does so, with Lightning's ``log_every_n_steps``.

    Args:
        hidden_size: Units of the hidden layer, 1 ... 65,536.
        learning_rate: The learning rate of RMSprop, above 0.
        loss: ``"cross_entropy"`` is torch's, on logits. ``"keras"`` is that of Keras 2.2.4, on clipped
            probabilities.
        dropout: Fraction of the hidden units that a training step leaves out at random, 0 ... below
            1; the others are scaled up by 1 / (1 - dropout) (Srivastava et al. 2014, JMLR 15).
        weight_decay: The weight decay of RMSprop, 0 or above. It adds weight_decay times each parameter,
            biases too, to the parameter's gradient. A term of weight_decay / 2 times the sum of all squares
            in the loss would do the same. The logged losses do not contain this term.
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
        hidden_size = whole_number("hidden_size", hidden_size, 1, MAX_HIDDEN_SIZE)
        learning_rate = real_number("learning_rate", learning_rate, lambda x: 0 < x < inf, "a finite number above 0")
        dropout = real_number("dropout", dropout, lambda x: 0 <= x < 1, "a number from 0 to below 1")
        weight_decay = real_number("weight_decay", weight_decay, lambda x: 0 <= x < inf, "a finite number, 0 or above")
        if not isinstance(loss, str) or loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        image_shape = _shape(image_shape)
        num_classes = whole_number("num_classes", num_classes, 1, 65_536)
        pixels = prod(image_shape)
        if hidden_size * (pixels + num_classes) > MAX_WEIGHTS:
            raise InputError(
                f"hidden_size {hidden_size:,} is too large for images of {pixels:,} pixels and {num_classes:,} "
                f"classes: give at most {MAX_WEIGHTS // (pixels + num_classes):,}"
            )
        self.save_hyperparameters()  # the arguments as checked above
        self.image_shape, self.num_classes = (*image_shape,), num_classes
        self._shapes = self.image_shape, (pixels,)
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, hidden_size),  # 784 x 512 + 512 = 401,920 parameters
            # ReLU and dropout are one layer, so that the layers have the same names in every checkpoint.
            nn.Sequential(nn.ReLU(), nn.Dropout(dropout)) if dropout else nn.ReLU(),
            nn.Linear(hidden_size, num_classes),  # 512 x 10 + 10 = 5,130 parameters
        )
        for layer in (self.hidden_layer, self.output_layer):  # as keras.layers.Dense begins; torch's differ
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.train_metrics, self.val_metrics, self.test_metrics = EpochMetrics(), EpochMetrics(), EpochMetrics()
        self._bad_outputs = MeanOverImages()

    __init__.__doc__ = __doc__  # without one, help() says nothing of the arguments

    @property
    def hidden_layer(self) -> nn.Linear:
        """The layer that sees the pixels. Its weights are ``(hidden_size, 784)``."""
        return self.network[1]  # type: ignore[return-value]  # Sequential has no types of its layers

    @property
    def output_layer(self) -> nn.Linear:
        """The layer that computes the logits. Its weights are ``(10, hidden_size)``."""
        return self.network[-1]  # type: ignore[return-value]  # Sequential has no types of its layers

    @LightningModule.example_input_array.getter  # type: ignore[attr-defined, untyped-decorator]  # mypy sees no property here
    def example_input_array(self) -> Any:
        """A black image, ``(1, 1, 28, 28)``: TensorBoard draws the network's graph with it."""
        given = super().example_input_array
        if given is not None or type(self).forward is not MNISTClassifier.forward:  # which may take other images
            return given
        return next(self.parameters()).new_zeros(1, *self.image_shape)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images.

        Args:
            images: ``(N, 1, 28, 28)`` or ``(N, 784)`` float in [0, 1], or normalised as in its training.

        Returns:
            ``(N, 10)`` float.

        Raises:
            InputError: If the images have another shape, or are not floats.
        """
        if images.shape[1:] not in self._shapes:
            right = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in self._shapes)
            raise InputError(f"images must have shape {right}, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise InputError(f"images must be floats in [0, 1] (uint8 / 255), got {images.dtype}")
        logits: Tensor = self.network(images)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """RMSprop with the constants of Keras 2.2.4: rho 0.9, and epsilon 1e-7, added after the root."""
        rmsprop = RMSprop if self.device.type == "cpu" else torch.optim.RMSprop
        # torch's own defaults are lr 1e-2, alpha 0.99 and eps 1e-8.
        return rmsprop(
            self.parameters(),
            lr=self.hparams["learning_rate"],
            alpha=0.9,
            eps=1e-7,
            weight_decay=self.hparams["weight_decay"],
        )

    def setup(self, stage: str) -> None:
        self._bad_outputs.reset()  # an interrupted epoch may have left counts
        # Lightning loads a checkpoint first, and makes the model float64 after that: float32 would round the weights.
        if self.trainer.precision == "64-true":
            self.double()

    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch. Override it to train with a loss of your own.

        Args:
            logits: ``(B, 10)`` float32 or float64.
            targets: ``(B,)`` int64 in 0 ... 9, as the data has them.

        Returns:
            ``()``.

        Raises:
            InputError: If the targets are no class indices.
        """
        if targets.ndim != 1 or targets.is_floating_point():
            raise InputError(
                f"targets must be class indices of shape (N,), got {targets.dtype} of shape {tuple(targets.shape)}; "
                "one-hot targets become indices by targets.argmax(dim=1)"
            )
        return LOSSES[self.hparams["loss"]](logits, targets.long())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a batch, ``()``.

        Several processes see a part of the batch each, and DDP averages their gradients. The loss of each
        is therefore scaled by its part's size, so that the average over processes is the batch's mean.
        """
        loss, _ = self._step(batch, batch_idx, "train")
        trainer = self._attached_trainer()
        if trainer is not None and trainer.world_size > 1:
            size = torch.tensor(len(batch[1]), dtype=loss.dtype, device=self.device)
            total = trainer.strategy.reduce(size.clone(), reduce_op="sum")  # reduce changes its argument
            loss = loss * (size * trainer.world_size / total)
        return loss

    # Lightning passes `dataloader_idx` if there are several loaders. With a parameter of this name, type checkers would
    # refuse a subclass that leaves it out.
    def validation_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._count_bad(self._step(batch, batch_idx, "val")[1], self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        """The logits, ``(B, 10)`` of at least float32, for callbacks that need more than loss and accuracy."""
        return self._count_bad(self._step(batch, batch_idx, "test")[1], self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        """Probabilities, ``(B, 10)`` of at least float32, of a batch of images with or without targets."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return self._count_bad(at_least_float32(self(images))).softmax(dim=1)

    def _step(self, batch: Batch, batch_idx: int, stage: str) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, ``()``, and its logits, ``(B, 10)``; the metrics take note of both."""
        if not isinstance(batch, (tuple, list)) or [isinstance(part, Tensor) for part in batch] != [True, True]:
            raise InputError(
                f"a batch must be (images, targets), two tensors of one loader, got {type(batch).__name__}"
            )
        images, targets = batch
        # Half precision has 2 or 3 decimal digits: too few for a sum of exponentials, or for a logged loss.
        logits = at_least_float32(self(images))
        try:
            loss = self.compute_loss(logits, targets)
        except IndexError as error:
            least, most, right = int(targets.min()), int(targets.max()), self.num_classes
            raise InputError(
                f"targets must be classes from 0 to {right - 1}, got {least} to {most} ({error}): "
                f"give {type(self).__name__}(num_classes=...)"
            ) from error
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}: take the mean" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"compute_loss must return one number, a tensor of shape (), got {got}")
        metrics: EpochMetrics = getattr(self, f"{stage}_metrics")
        metrics.update(loss, logits, targets)
        if batch_idx == 0 and self._attached_trainer() is not None:
            # Once is enough: Lightning asks these metrics at the end of the epoch. On every step, it would cost 0.1 ms.
            for what, metric in (("loss", metrics.loss), ("acc", metrics.acc)):
                metric.precision = torch.promote_types(loss.dtype, torch.float32)
                self.log(f"{stage}_{what}", metric, on_step=False, on_epoch=True)
        return loss, logits

    def _attached_trainer(self) -> Trainer | None:
        """The Trainer that runs a loop, or ``None`` in a loop of the user's own."""
        try:
            trainer = self.trainer
        except RuntimeError:
            return None
        return trainer if isinstance(trainer, Trainer) else None

    # Forget what an interrupted epoch may have left.
    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_train_epoch_end(self) -> None:
        # This is the last hook before Lightning saves the epoch's checkpoint: a network that has diverged is not
        # saved. A check at every step would make the program wait for the device.
        bad = self.train_metrics.first_bad_step()
        # All processes compute the figures here, together. Later, only the first process asks for them, and would wait
        # for any that have stopped.
        _ = self.trainer.callback_metrics
        finite = torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).all()
        if self.trainer.strategy.reduce_boolean_decision(bool(bad is not None or not finite), all=False):
            where = f", at batch {bad + 1}" if bad is not None else ""
            raise InputError(
                f"the loss became infinite or NaN in epoch {self.current_epoch + 1}{where}: try a lower learning_rate "
                f"than {self.hparams['learning_rate']:g}; earlier checkpoints are kept"
            )

    def on_validation_epoch_end(self) -> None:
        self._refuse_several("val", self.trainer.num_val_batches)
        if self.trainer.state.fn != "fit":  # in a fit, on_train_epoch_end refuses it, with a better message
            self._refuse_outputs(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._refuse_several("test", self.trainer.num_test_batches)
        self._refuse_outputs(self.test_metrics)

    def on_predict_epoch_end(self) -> None:
        self._refuse_outputs()

    def _refuse_several(self, stage: str, batches: Sequence[Any]) -> None:
        """Refuse figures that are one mean over several loaders. ``batches`` has a number for each loader."""
        metrics: EpochMetrics = getattr(self, f"{stage}_metrics")
        if len(batches) > 1 and metrics.loss.images > 0:
            raise InputError(f"{stage}_loss would be one mean over several loaders: evaluate one after the other")

    def _count_bad(self, outputs: Tensor, metrics: EpochMetrics | None = None) -> Tensor:
        """Count the images whose outputs are not finite. The count stays on the device: no step waits for it."""
        bad = (~outputs.isfinite().all(1)).sum()
        self._bad_outputs.add(bad, len(outputs))
        if metrics is not None:
            # Add NaN to the accuracy if an output is not finite, otherwise 0. torch.where(bad > 0, nan, 0.0) would copy
            # both numbers to a GPU, and wait for it.
            metrics.acc.add((outputs.detach() * 0).sum(), 0)
        return outputs

    def _refuse_outputs(self, metrics: EpochMetrics | None = None) -> None:
        """Refuse outputs, or a loss, that are not finite. All processes refuse them, or none does."""
        counts = torch.stack([self._bad_outputs.total.long(), self._bad_outputs.images])
        bad, images = self.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        loss = float(metrics.loss.compute()) if metrics is not None and images else 0.0
        refuse_not_finite(bad, images, "" if isfinite(loss) else f", and the loss is {loss}")


def two_layers(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The hidden layer and the output layer of the tutorial's network, or ``None`` for a network of another kind."""
    if not isinstance(module, MNISTClassifier):
        return None
    try:
        hidden, output = module.hidden_layer, module.output_layer
    except (AttributeError, LookupError, TypeError):
        return None  # a subclass has replaced the network
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    plain = layers == [hidden, output] and all(isinstance(layer, nn.Linear) for layer in layers)
    shapes = plain and hidden.in_features == prod(module.image_shape)
    return (hidden, output) if shapes and output.weight.shape == (module.num_classes, hidden.out_features) else None


def _shape(image_shape: Any) -> list[int]:
    """Channels, height and width as plain numbers, in a list: YAML has no tuples."""
    if not isinstance(image_shape, Sequence) or isinstance(image_shape, str) or len(image_shape) != 3:
        raise InputError(f"image_shape must be channels, height and width, such as (1, 28, 28), got {image_shape!r}")
    return [whole_number("image_shape", size, 1, 65_536) for size in image_shape]
