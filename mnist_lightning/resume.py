"""What makes a run that was killed and resumed equal to one that never was, bit for bit."""

import random
import signal
import threading
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mnist_lightning.errors import InputError


class EpochSeed(Callback):
    """Seeds every epoch of every process from ``(seed, epoch, rank)``.

    A resumed epoch then draws what it would have drawn, dropout included, and the random state of
    the other processes, which is in no checkpoint, is not missed.

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = int(state_dict["seed"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sequence = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank))
        seed = int(sequence.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # a user's transform may draw from the global generator
        random.seed(seed)


class StayStopped(Callback):
    """Trains no further what EarlyStopping had stopped.

    EarlyStopping saves its counts but not its verdict: resumed, a stopped run would train for one
    more epoch before it noticed, and one that ``min_epochs`` keeps going might not stop at all.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(stopped_early(callback) for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True


def stopped_early(early_stopping: EarlyStopping) -> bool:
    """Whether EarlyStopping has told the run to stop."""
    # The epoch alone does not say it: 0 stands for the first one too.
    return early_stopping.stopped_epoch > 0 or early_stopping.wait_count >= max(early_stopping.patience, 1)


def seed_of(checkpoint: dict[str, Any] | None, default: Any) -> Any:
    """The seed of the run that saved a checkpoint; ``default`` without one, or where it kept none."""
    states = (checkpoint or {}).get("callbacks") or {}
    return states.get("EpochSeed", {}).get("seed", default)


class StopOnSIGTERM(Callback):
    """Stops at once on SIGTERM, all processes of the run together.

    Lightning finishes the batch first, and with several processes broadcasts from inside its signal
    handler, which may hang. Here nothing is lost by stopping at once: an interrupted epoch is
    repeated from its start. Under SLURM, whose requeue needs Lightning's handlers, these stay.
    """

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self._before: Any = None
        self._ours = threading.current_thread() is threading.main_thread() and not SLURMEnvironment.detect()

    def __enter__(self) -> "StopOnSIGTERM":
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ours:  # Lightning has put its own handler before this one; it restores it in the end.
            signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.trainer is not None and self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(signum)
        raise SIGTERMException


def check_resumable(checkpoint: dict[str, Any], config: Any, path: Any) -> None:
    """Refuse to resume what would not go on exactly as if it had never stopped.

    Args:
        checkpoint: The loaded checkpoint.
        config: The options of ``fit``.
        path: The checkpoint's path, for the message.

    Raises:
        InputError: If the checkpoint was not saved at the end of an epoch, or if the options make
            an exact continuation impossible.
    """
    try:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        whole = epochs["processed"] == epochs["ready"] == checkpoint["epoch"] + 1
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} holds weights only: training cannot go on from it, only 'test' can") from error
    if not whole:
        raise InputError(
            f"{str(path)!r} was not saved at the end of an epoch: training cannot go on from it exactly; give a "
            "checkpoint that was"
        )
    if config.trainer.max_steps != -1:
        raise InputError(
            f"a run with trainer.max_steps {config.trainer.max_steps} cannot be resumed exactly: use trainer.max_epochs"
        )
    if "ReduceLROnPlateau" in str((config.get("lr_scheduler") or {}).get("class_path")):
        raise InputError(
            "a run with ReduceLROnPlateau cannot be resumed exactly, as it steps after the checkpoint is written: use "
            "another lr_scheduler"
        )
