"""Loss and accuracy of an epoch, in Keras's meaning, and the share of one process in a batch."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric


class EpochMetrics(nn.Module):
    """Running means over an epoch, while the weights change; each image counts once.

    Both stay on the device, so that no step waits for it, and take 0.03 ms a step; torchmetrics' own take 0.08 ms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss = MeanOverImages()
        self.acc = MeanOverImages()

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Take the mean loss of a batch, ``()``, its logits, ``(B, C)``, and its targets, ``(B,)`` or ``(B, C)``."""
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        self.loss.add(loss.detach() * len(classes), len(classes))
        self.acc.add((logits.detach().argmax(1) == classes).sum(), len(classes))

    def begin(self, module: LightningModule, stage: str, dtype: torch.dtype) -> None:
        """Forget what an interrupted epoch may have left, and have Lightning log both when this epoch ends.

        To log them on every step would cost 0.1 ms. Lightning adds a loader's number to the names.
        """
        for what, metric in (("loss", self.loss), ("acc", self.acc)):
            metric.reset()
            metric.precision = torch.promote_types(dtype, torch.float32)
            if attached_trainer(module) is not None:
                name = next(name for name, other in module.named_modules() if other is metric)
                shown = stage == "val"  # in Lightning's progress bar
                module.log(
                    f"{stage}_{what}", metric, on_step=False, on_epoch=True, prog_bar=shown, metric_attribute=name
                )


class MeanOverImages(Metric):
    """A mean over all processes, summed in float64 if the device has it, and returned in ``precision``.

    It is fed by :meth:`add`. ``update`` would count its calls, and ``torch.compile`` would compile each call anew.
    """

    update_called = True  # otherwise `compute` would warn
    precision = torch.float32
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, total: Tensor, images: int) -> None:
        """Add a sum over so many images, ``()``."""
        self.total.add_(total)
        self.images.add_(images)

    update = add

    def compute(self) -> Tensor:
        """The mean over all images, ``()``."""
        return (self.total / self.images).to(self.precision)

    def reset(self) -> None:
        super().reset()
        if self.total.device.type != "mps":  # which has no float64
            self.total = self.total.double()


def share_of_batch(loss: Tensor, images: int, module: LightningModule) -> Tensor:
    """Scale the mean loss of one process's part of a batch, as the parts of the last batch differ by one image.

    DDP takes the mean of the gradients of all processes: it is then that of the whole batch.
    """
    trainer = attached_trainer(module)
    if trainer is None or trainer.world_size == 1:
        return loss
    size = torch.tensor(images, dtype=loss.dtype, device=module.device)
    total = trainer.strategy.reduce(size.clone(), reduce_op="sum")  # reduce changes its argument
    return loss * (size * trainer.world_size / total)


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The Trainer that runs a loop, or ``None`` in a loop of the user's own, or in one of Fabric's."""
    try:
        trainer = module.trainer
    except RuntimeError:
        return None
    return trainer if isinstance(trainer, Trainer) else None


def at_least_float32(values: Tensor) -> Tensor:
    """Values of half precision as float32, which changes none of them; float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()
