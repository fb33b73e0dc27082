"""How a run stops: by EarlyStopping, and by a signal."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException


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
