"""What makes a resumed run equal one that never stopped."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mnist_lightning.errors import InputError, shown
from mnist_lightning.runs.checkpoints import is_whole
from mnist_lightning.runs.run import Run


class EpochSeed(Callback):
    """Seeds torch, numpy and ``random`` in every epoch of every process, from ``(seed, epoch, rank)``.

    A checkpoint could only hold the random state of one process. A generator of a transform's own is not seeded.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sequence = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank))
        seed = int(sequence.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # a user's transform may use the global generator
        random.seed(seed)


class SameOptimizers(Callback):
    """Refuses a checkpoint with other optimizers or schedulers: Lightning would silently take its options."""

    def __init__(self) -> None:
        self._own: dict[str, Any] = {}  # the options with which each parameter group and each scheduler began
        self._checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has yet to restore the options of the checkpoint.
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        groups = [(optimizer, group) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._own = {
            "optimizer": [_options(optimizer, group) for optimizer, group in groups],
            "lr_scheduler": [_options(scheduler, scheduler.state_dict()) for scheduler in schedulers],
        }
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        if any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers):
            # It steps after the checkpoint is written.
            raise InputError("a run with ReduceLROnPlateau cannot be resumed exactly: use another lr_scheduler")
        saved = checkpoint["optimizers"] if "optimizers" in checkpoint else _of_older(checkpoint)
        for what, own in self._own.items():
            _check_same(what, saved[what], own)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["optimizers"] = self._own


def _options(owner: Any, options: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in options.items() if name != "params"}  # the weights
    return {"class": type(owner).__name__, **values}


def _of_older(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The options in a checkpoint without this record, but for those that a scheduler changes."""
    groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    if checkpoint["lr_schedulers"]:
        changed = ("lr", "momentum", "betas")  # OneCycleLR and CyclicLR change the momentum
        groups = [{name: group[name] for name in group if name not in changed} for group in groups]
    return {"optimizer": groups, "lr_scheduler": [{} for _ in checkpoint["lr_schedulers"]]}


def _check_same(what: str, saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    right = "resume with the options that it was trained with"
    if len(saved) != len(own):
        raise InputError(f"the checkpoint has {len(saved)} {what}(s), here it is {len(own)}: {right}")
    for there, here in zip(saved, own, strict=True):
        for name in here:
            if name in there and there[name] != here[name]:  # another torch may have other options
                raise InputError(
                    f"the checkpoint's {what}.{name} is {shown(there[name])}, here it is {shown(here[name])}: {right}"
                )


def check_resumable(run: Run, max_epochs: int | None, max_steps: int) -> None:
    """Raise ``InputError`` if a run resumed with these limits of the Trainer would differ from one never stopped."""
    checkpoint, path = run.checkpoint, str(run.path)
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise InputError(f"{path!r} holds weights only: training cannot go on from it; 'test' evaluates it")
    if not is_whole(checkpoint):
        raise InputError(
            f"{path!r} was not saved at the end of an epoch: training cannot go on from it exactly; give a checkpoint "
            "that was, such as last.ckpt"
        )
    done = checkpoint["epoch"] + 1
    if max_epochs is not None and 0 <= max_epochs < done:
        raise InputError(
            f"trainer.max_epochs {max_epochs} is fewer than the {done} epochs that {path!r} was trained for: give at "
            f"least {done}"
        )
    if max_steps != -1:
        raise InputError(f"a run with trainer.max_steps {max_steps} cannot be resumed exactly: use trainer.max_epochs")
