"""How a run stops: by EarlyStopping or by SIGTERM. Ctrl-C stands in ``cli/interrupt.py``."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException


class StayStopped(Callback):
    """Ends a resumed run at once if EarlyStopping had stopped it before.

    EarlyStopping saves its counts, but not that it has stopped the run. The resumed run would train for one more
    epoch. With ``min_epochs``, it might not stop at all.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(stopped_early(callback) for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True


def stopped_early(early_stopping: EarlyStopping) -> bool:
    """Whether EarlyStopping has told the run to stop."""
    # `stopped_epoch` is 0 both before stopping and after stopping in the first epoch.
    return early_stopping.stopped_epoch > 0 or early_stopping.wait_count >= max(early_stopping.patience, 1)


class StopOnSIGTERM(Callback):
    """Stops all processes of the run at once on SIGTERM.

    Lightning's own handler finishes the batch first. With several processes, it broadcasts from inside the handler,
    which may hang. Stopping at once loses nothing, because an interrupted epoch is repeated from its start. Under
    SLURM, Lightning's handlers stay: requeueing needs them.
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
        if self._ours:  # Lightning has installed its own handler by now, and will restore the one before it
            signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.trainer is not None and self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(signum)
        raise SIGTERMException
