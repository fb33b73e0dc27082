"""The folder of a run: how a run claims it, locks it, and finds it again."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.saving import save_hparams_to_yaml

from mnist_lightning.errors import InputError
from mnist_lightning.files import remove_leftovers, write_atomically
from mnist_lightning.runs.checkpoints import SafeCheckpointIO, check_hyper_parameters, has_checkpoint
from mnist_lightning.runs.history import RUNS, MetricsCSV


class RunFolder(Callback):
    """Gives all processes of a fit the same folder, and keeps the history of the run in its checkpoints.

    It writes nothing until Lightning has made and restored everything. A start that fails leaves no new folder, and
    does not change the folder of the run that it was meant to resume.
    """

    def __init__(
        self,
        root: Path,
        save_config: Callable[[Path], None],
        logger: MetricsCSV | None,
        folder: Path | None = None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.root = root  # the folder that holds `lightning_logs`
        self.save_config = save_config
        self.logger = logger
        self.folder = folder  # None until a new run has one
        # A checkpoint from elsewhere. The run keeps a copy, and is resumed from it until it has one of its own.
        self.start = start
        self._lock: FileLock | None = None
        self._checkpoints: list[ModelCheckpoint] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for part in (pl_module, getattr(trainer, "datamodule", None)):
            check_hyper_parameters(part)
        # Remember the callbacks without a folder of the user's: their setup runs next, and sets Lightning's folder.
        self._checkpoints = [
            callback
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None
        ]
        if self.folder is not None:
            self._in_first_process(trainer, self._lock_folder)
            self._set_checkpoint_folder(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._claim(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is None:  # a new run that had nothing to train; a resumed one has its files already
            self._claim(trainer, pl_module)
        elif self.logger is not None:
            self.logger.folder = self.folder

    def release(self) -> None:
        """Let other processes train in the folder."""
        if self._lock is not None:
            self._lock.release()

    def _claim(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def fill(folder: Path) -> None:
            self.save_config(folder / "config.yaml")
            data = getattr(getattr(trainer, "datamodule", None), "hparams", {})
            with tempfile.TemporaryDirectory() as scratch:  # Lightning would not write it as a whole
                file = Path(scratch) / "hparams.yaml"
                save_hparams_to_yaml(str(file), {**data, **pl_module.hparams})
                write_atomically(folder / file.name, file.read_bytes())
            if self.start is not None:
                SafeCheckpointIO().save_checkpoint(self.start, folder / "checkpoints" / "start.ckpt")

        def make_or_refill() -> Path:
            if self.folder is None:
                self.folder = claim_run(self.root, fill)
                self._lock_folder()
            else:
                fill(self.folder)
            return self.folder

        self.folder = self._in_first_process(trainer, make_or_refill)
        self._set_checkpoint_folder(self.folder)
        if self.logger is not None:
            self.logger.folder = self.folder
            self.logger.save()  # drops rows that a killed process wrote after its last checkpoint

    @staticmethod
    def _in_first_process(trainer: Trainer, action: Callable[[], Any]) -> Any:
        """Do something in the first process only. All processes get its result, or raise its error."""
        result: Any = None
        if trainer.is_global_zero:
            try:
                result = action()
            except InputError as error:
                result = error
        result = trainer.strategy.broadcast(result)
        if isinstance(result, InputError):
            raise result
        return result

    def _lock_folder(self) -> None:
        assert self.folder is not None
        self._lock = lock_run(self.folder)

    def _set_checkpoint_folder(self, folder: Path) -> None:
        for callback in self._checkpoints:
            callback.dirpath = str(folder.absolute() / "checkpoints")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.logger is not None:
            self.logger.epoch = trainer.current_epoch

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the history into the checkpoint, with the row of this epoch if Lightning has yet to log it.

        Put in the number of threads, too, which changes the last bits of sums; and the class of the model, as another
        class may compute something else from the same weights.
        """
        checkpoint["num_threads"] = torch.get_num_threads()
        checkpoint["model_class"] = type(pl_module).__qualname__
        if self.logger is None:
            return
        rows = [dict(row) for row in self.logger.rows]
        # `callback_metrics` would hold old figures of validations that do not happen every epoch.
        results = trainer._results  # noqa: SLF001  # the figures that Lightning is about to log
        epoch: Any = trainer.fit_loop.epoch_progress.current
        ends = epoch.processed > epoch.completed  # Lightning saves checkpoints first, and logs the figures after that
        current = results.metrics(on_step=False)["log"] if results is not None and ends else {}
        if current:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1  # noqa: SLF001  # and their step
            MetricsCSV.add(rows, {**current, "epoch": trainer.current_epoch}, step)
        checkpoint["metrics_csv"] = rows


def claim_run(root: Path, fill: Callable[[Path], None]) -> Path:
    """Make the next ``lightning_logs/version_N`` below ``root``. Two processes never get the same one.

    ``fill`` writes the first files into the folder, before it appears under its name.

    Raises:
        InputError: If the folder cannot be made.
    """
    runs = root / RUNS
    claim = runs / f".claim-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        claim.mkdir(parents=True)
        with contextlib.suppress(OSError):
            remove_leftovers(runs)
        fill(claim)
        number = max(_versions(root), default=-1) + 1
        while True:
            try:
                # Renaming cannot replace a folder that is not empty. A process that comes second tries the next number.
                return claim.rename(runs / f"version_{number}")
            except OSError:
                if not (runs / f"version_{number}").exists():
                    raise
                number += 1
    except OSError as error:
        raise InputError(
            f"cannot make a run's folder in {str(runs)!r} ({error.strerror}): choose another place with "
            "--trainer.default_root_dir"
        ) from error
    finally:
        shutil.rmtree(claim, ignore_errors=True)


def newest_run(root: Path, with_checkpoint: bool) -> Path:
    """The newest run of ``fit`` below ``root``, or the newest that has a checkpoint.

    Raises:
        InputError: If there is no such run.
    """
    for _, folder in sorted(_versions(root).items(), reverse=True):
        if (folder / "config.yaml").is_file() and (not with_checkpoint or has_checkpoint(folder)):
            return folder
    raise InputError(
        f"no fit run{' with a checkpoint' * with_checkpoint} in {str(root / RUNS)!r}: train one first with "
        "'python -m mnist_lightning fit', or name a checkpoint with --ckpt_path"
    )


def lock_run(folder: Path) -> FileLock:
    """Prevent other processes from training in the folder of a run until this process releases the lock or ends.

    The operating system releases the lock when the process ends, so that a killed process blocks nobody.

    Raises:
        InputError: If another process is training there.
    """
    lock, owner = FileLock(folder / ".lock"), folder / ".process"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        process = f"process {owner.read_text()}" if owner.is_file() else "another process"
        raise InputError(
            f"{process} is training in {str(folder)!r}: wait until it ends, or begin another run"
        ) from error
    owner.write_text(str(os.getpid()))  # not into the lock file: every attempt to lock empties it
    return lock


def _versions(root: Path) -> dict[int, Path]:
    folders = (root / RUNS).glob("version_*")
    return {int(number): folder for folder in folders if (number := folder.name.removeprefix("version_")).isdecimal()}
