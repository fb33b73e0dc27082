"""A training that has diverged ends, before its network is saved."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mnist_lightning.errors import InputError


class RefuseNotFinite(Callback):
    """Ends a run whose loss or weights have become infinite or NaN: in all processes, or in none."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total: float | Tensor = 0.0
        self._good_steps: int | Tensor = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Both stay on the device: no step waits for it. A sum that is not finite stays so.
            self._total = self._total + loss.detach().float()
            self._good_steps = self._good_steps + self._total.isfinite()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning saves the epoch's checkpoint after this hook.
        # All processes compute the metrics here. Later, the first process alone would wait for any that have stopped.
        _ = trainer.callback_metrics
        is_bad = not torch.as_tensor(self._total).isfinite()
        where = f", at batch {int(self._good_steps) + 1}" if is_bad else ""
        finite = torch.stack([parameter.isfinite().all() for parameter in pl_module.parameters()]).all()
        if trainer.strategy.reduce_boolean_decision(is_bad or not finite, all=False):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            raise InputError(
                f"the loss became infinite or NaN in epoch {trainer.current_epoch + 1}{where}: try a lower "
                f"learning_rate than {rate:g}; earlier checkpoints are kept"
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":  # in a fit, on_train_epoch_end has the better message
            _check_loss(trainer, "val_loss")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_loss(trainer, "test_loss")


def _check_loss(trainer: Trainer, name: str) -> None:
    loss = trainer.callback_metrics.get(name, torch.zeros(()))
    if trainer.strategy.reduce_boolean_decision(not loss.isfinite(), all=False):
        raise InputError(
            f"{name} is {float(loss)}: the network has diverged; take an earlier checkpoint, or train with a lower "
            "learning_rate"
        )
