"""How a run stops: by EarlyStopping or by SIGTERM."""

import signal
import threading
from types import FrameType

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException


class StayStopped(Callback):
    """Ends a resumed run at once if EarlyStopping had stopped it: its checkpoint has the counts, but not this."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(stopped_early(callback) for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True


def stopped_early(early_stopping: EarlyStopping) -> bool:
    """Whether EarlyStopping has told the run to stop."""
    # `stopped_epoch` is 0 both before stopping and after stopping in the first epoch.
    return early_stopping.stopped_epoch > 0 or early_stopping.wait_count >= max(early_stopping.patience, 1)


class StopOnSIGTERM(Callback):
    """Stops all processes of the run at once on SIGTERM: an epoch that was broken off is repeated.

    Lightning's own handler broadcasts, which may hang. Under SLURM it stays: requeueing needs it.
    """

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self._ours = threading.current_thread() is threading.main_thread() and not SLURMEnvironment.detect()

    def __enter__(self) -> "StopOnSIGTERM":
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ours:  # Lightning has installed its own by now
            signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.trainer is not None and self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(signum)
        raise SIGTERMException
