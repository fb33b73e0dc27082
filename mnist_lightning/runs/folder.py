"""The folder of a run: how a run claims it, locks it, and writes its first files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.saving import save_hparams_to_yaml

from mnist_lightning.errors import InputError
from mnist_lightning.runs.checkpoints import SafeCheckpointIO, check_hyper_parameters
from mnist_lightning.runs.history import RUNS, MetricsCSV, add_row
from mnist_lightning.runs.run import Run, run_folders


class RunFolder(Callback):
    """Gives all processes of a fit the same folder below ``root``, and keeps the run's history in its checkpoints.

    Nothing is written until Lightning has made and restored everything: a start that fails leaves no new folder, and
    does not change an old one. A fit that starts from the user's own ``run`` goes on in its folder.
    """

    def __init__(
        self, root: Path, save_config: Callable[[Path], None], logger: MetricsCSV | None, run: Run | None
    ) -> None:
        self.root = root
        self.save_config = save_config
        self.logger = logger
        self.run = run
        self.folder: Path | None = None  # a new run has one when its training starts
        if run is not None and run.config is not None:
            self.folder = run.folder
        self._lock: FileLock | None = None
        self._checkpoints: list[ModelCheckpoint] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for part in (pl_module, getattr(trainer, "datamodule", None)):
            check_hyper_parameters(part)
        # Those without a folder of the user's. Their setup runs next, and sets Lightning's folder.
        savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        self._checkpoints = [callback for callback in savers if callback.dirpath is None]
        if self.folder is not None:
            self._claim(trainer, self._lock_folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._claim(trainer, lambda: self._write_first_files(trainer, pl_module))
        if self.logger is not None:
            self.logger.folder = self.folder
            self.logger.save()  # drops rows that a killed process wrote after its last checkpoint

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is None:  # a new run that had nothing to train
            self.on_train_start(trainer, pl_module)
        elif self.logger is not None:
            self.logger.folder = self.folder

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _claim(self, trainer: Trainer, action: Callable[[], Path]) -> None:
        """Take the folder that an action in the first process returns; all processes raise its error."""
        result: Any = None
        if trainer.is_global_zero:
            try:
                result = action()
            except InputError as error:
                result = error
        result = trainer.strategy.broadcast(result)
        if isinstance(result, InputError):
            raise result
        self.folder = result
        for callback in self._checkpoints:
            callback.dirpath = str(result.absolute() / "checkpoints")

    def _lock_folder(self) -> Path:
        assert self.folder is not None
        self._lock = lock_run(self.folder)
        return self.folder

    def _write_first_files(self, trainer: Trainer, pl_module: LightningModule) -> Path:
        if self.folder is not None:
            self.save_config(self.folder / "config.yaml")
            return self.folder
        folder = _new_folder(self.root)
        try:
            self._lock = lock_run(folder)
            data = getattr(getattr(trainer, "datamodule", None), "hparams", {})
            save_hparams_to_yaml(str(folder / "hparams.yaml"), {**data, **pl_module.hparams})
            if self.run is not None:  # the new run resumes from this copy until it has a checkpoint of its own
                SafeCheckpointIO().save_checkpoint(self.run.checkpoint, folder / "checkpoints" / "start.ckpt")
            self.save_config(folder / "config.yaml")  # last: with this file, the folder is a run
        except BaseException:
            self.release()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.logger is not None:
            self.logger.epoch = trainer.current_epoch

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["num_threads"] = torch.get_num_threads()  # it changes the last bits of sums
        checkpoint["model_class"] = type(pl_module).__qualname__  # another may compute something else from the weights
        if self.logger is None:
            return
        rows = [dict(row) for row in self.logger.rows]
        # Lightning saves checkpoints at the end of an epoch before it logs the epoch's metrics.
        epoch: Any = trainer.fit_loop.epoch_progress.current
        results = trainer._results  # noqa: SLF001  # `callback_metrics` would hold those of older epochs, too
        if results is not None and epoch.processed > epoch.completed and (new := results.metrics(on_step=False)["log"]):
            step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1  # noqa: SLF001  # what Lightning will log
            add_row(rows, {**new, "epoch": trainer.current_epoch}, step)
        checkpoint["metrics_csv"] = rows


def lock_run(folder: Path) -> FileLock:
    """Lock a folder until this process releases it or ends; raise ``InputError`` if another is training there."""
    lock, owner = FileLock(folder / ".lock"), folder / ".process"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        process = f"process {owner.read_text()}" if owner.is_file() else "another process"
        raise InputError(f"{process} is training in {str(folder)!r}: wait until it ends") from error
    owner.write_text(str(os.getpid()))  # not into the lock file: every attempt to lock empties it
    return lock


def _new_folder(root: Path) -> Path:
    number = max(run_folders(root), default=-1) + 1
    folder = root / RUNS / f"version_{number}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if folder.exists():  # another process was quicker
            return _new_folder(root)
        raise InputError(
            f"cannot make a run's folder in {str(root / RUNS)!r} ({error.strerror}): choose another "
            "--trainer.default_root_dir"
        ) from error
    return folder
