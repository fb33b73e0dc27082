"""Loss and accuracy of an epoch, in Keras's meaning."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class EpochMetrics(nn.Module):
    """Running means over an epoch, while the weights move, each batch weighted by its size.

    The steps only put their results aside, on the device; torchmetrics sees them once, when the
    epoch ends, and combines the processes. Updating its metrics on every step costs 0.3 ms of a
    step of 4 ms (``MulticlassAccuracy`` 0.18, ``MeanMetric`` 0.11, measured on 2 cores).

    Args:
        num_classes: Number of classes of the accuracy.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy="disable")
        self.acc = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Put one step aside.

        Args:
            loss: Mean loss of the batch, ``()``.
            logits: ``(B, num_classes)``.
            targets: ``(B,)`` int64.
        """
        self._steps.append((loss.detach(), logits.detach().argmax(1), targets))

    def reset(self) -> None:
        """Forget the steps put aside."""
        self._steps.clear()

    def log(self, module: LightningModule, stage: str) -> None:
        """Log ``{stage}_loss`` and ``{stage}_acc`` of all steps put aside, and forget these."""
        if self._steps:
            losses, predictions, targets = zip(*self._steps, strict=True)
            self.reset()
            loss = torch.stack(losses)
            # Summed in float64 where the run is in float64, and never in half precision.
            loss = loss if loss.dtype == torch.float64 else loss.float()
            sizes = torch.tensor([len(target) for target in targets], dtype=loss.dtype, device=loss.device)
            self.loss.set_dtype(loss.dtype)
            self.loss.update(loss, sizes)
            self.acc.update(torch.cat(predictions), torch.cat(targets))
        module.log(f"{stage}_loss", self.loss)
        module.log(f"{stage}_acc", self.acc)
