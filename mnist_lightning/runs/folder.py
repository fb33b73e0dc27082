"""The folder of a run: how it is claimed, locked and found again."""

import contextlib
import io
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

from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import remove_leftovers, write_atomically
from mnist_lightning.runs.checkpoints import SafeCheckpointIO, has_checkpoint
from mnist_lightning.runs.history import RUNS, MetricsCSV


def claim_run(root: Path, fill: Callable[[Path], None]) -> Path:
    """Make the next ``lightning_logs/version_N`` below ``root``, in one step that only one process can win.

    Args:
        root: The folder that holds ``lightning_logs``.
        fill: Writes into the folder what must be there from its first moment.

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
                # A folder that is not empty cannot be replaced: of two processes, one tries the next number.
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
    """The fit run below ``root`` that was begun last.

    Args:
        root: The folder that holds ``lightning_logs``.
        with_checkpoint: Pass over runs that have saved none.

    Raises:
        InputError: If there is none.
    """
    for _, folder in sorted(_versions(root).items(), reverse=True):
        if (folder / "config.yaml").is_file() and (not with_checkpoint or has_checkpoint(folder)):
            return folder
    raise InputError(
        f"no fit run{' with a checkpoint' * with_checkpoint} in {str(root / RUNS)!r}: train one first with "
        "'python -m mnist_lightning fit', or name a checkpoint with --ckpt_path"
    )


def is_own_run(folder: Path, root: Path) -> bool:
    """Whether a folder is one of the runs below ``root``."""
    return folder.resolve().parent == (root / RUNS).resolve()


def lock_run(folder: Path) -> FileLock:
    """Keep all other processes from training in a run's folder until this one releases the lock or ends.

    The system releases the lock with the process, however it ends: a kill leaves nothing that blocks.

    Raises:
        InputError: If another process is training there.
    """
    lock, owner = FileLock(folder / ".lock"), folder / ".process"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        with contextlib.suppress(OSError):
            number = owner.read_text()
            raise InputError(
                f"process {number} is training in {str(folder)!r}: wait until it ends, or begin another run"
            ) from error
        raise InputError(f"another process is training in {str(folder)!r}: wait until it ends") from error
    owner.write_text(str(os.getpid()))  # not into the lock's own file, which every attempt empties
    return lock


def _versions(root: Path) -> dict[int, Path]:
    folders = (root / RUNS).glob("version_*")
    return {int(number): folder for folder in folders if (number := folder.name.removeprefix("version_")).isdecimal()}


class RunFolder(Callback):
    """Gives a fit its folder, agreed on by all processes, and keeps its history through kills.

    Nothing is written before all that a run needs is made and restored: a start that fails leaves no folder,
    and no change in the folder of a run that it was to resume.

    Args:
        root: The folder that holds ``lightning_logs``.
        save_config: Writes the run's configuration to a path.
        logger: The log that goes into the folder, unless the user wants none.
        folder: The folder of the run that is resumed, if one is.
        start: The checkpoint from elsewhere that a new run begins with, if one does. The run keeps a copy, to
            go on from until it has a checkpoint of its own.
    """

    def __init__(
        self,
        root: Path,
        save_config: Callable[[Path], None],
        logger: MetricsCSV | None,
        folder: Path | None = None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.root = root
        self.save_config = save_config
        self.logger = logger
        self.folder = folder
        self.start = start
        self._lock: FileLock | None = None
        self._checkpoints: list[ModelCheckpoint] = []
        self._claimed = False
        self._epoch_ends = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self._claimed:
            return
        for part in (pl_module, getattr(trainer, "datamodule", None)):
            _check_hyper_parameters(part)
        # Those that the user gave no folder; Lightning gives them one of its own in their setup.
        self._checkpoints = [
            callback
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None
        ]
        if self.folder is not None:
            self._on_first(trainer, self._lock_folder)
            self._direct(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._claim(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is None:  # there was nothing left to train: a run of one's own has all it needs
            self._claim(trainer, pl_module)
        elif self.logger is not None:
            self.logger.folder = self.folder

    def release(self) -> None:
        """Let other processes train in the folder."""
        if self._lock is not None:
            self._lock.release()

    def _claim(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._claimed:
            return

        def fill(folder: Path) -> None:
            self.save_config(folder / "config.yaml")
            data = getattr(getattr(trainer, "datamodule", None), "hparams", {})
            with tempfile.TemporaryDirectory() as scratch:  # Lightning writes it in place
                file = Path(scratch) / "hparams.yaml"
                save_hparams_to_yaml(str(file), {**data, **pl_module.hparams})
                write_atomically(folder / file.name, file.read_bytes())
            if self.start is not None:
                SafeCheckpointIO().save_checkpoint(self.start, folder / "checkpoints" / "start.ckpt")

        def claim() -> Path:
            if self.folder is None:
                self.folder = claim_run(self.root, fill)
                self._lock_folder()
            else:
                fill(self.folder)
            return self.folder

        self.folder = self._on_first(trainer, claim)
        self._direct(self.folder)
        if self.logger is not None:
            self.logger.folder = self.folder
            self.logger.save()  # without the rows that a killed process wrote after its last checkpoint
        self._claimed = True

    @staticmethod
    def _on_first(trainer: Trainer, action: Callable[[], Any]) -> Any:
        """Do something in the first process only. Its result, or its failure, is that of all processes."""
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

    def _direct(self, folder: Path) -> None:
        for callback in self._checkpoints:
            callback.dirpath = str(folder.absolute() / "checkpoints")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_ends = False
        if self.logger is not None:
            self.logger.epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_ends = True  # checkpoints are saved next, and only then does Lightning log the epoch's figures

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the history into the checkpoint, with the epoch's own row if that is still to be logged."""
        if self.logger is None:
            return
        rows = [dict(row) for row in self.logger.rows]
        # What Lightning is about to log, and as which step, from where it will take them; `callback_metrics` would
        # hold stale figures of validations that do not happen every epoch.
        results = trainer._results
        current = results.metrics(on_step=False)["log"] if results is not None and self._epoch_ends else {}
        if current:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
            MetricsCSV.add(rows, {**current, "epoch": trainer.current_epoch}, step)
        checkpoint["metrics_csv"] = rows

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.logger is not None and trainer.state.fn == "fit":
            self.logger.rows = [dict(row) for row in checkpoint.get("metrics_csv", [])]


def _check_hyper_parameters(part: Any) -> None:
    """Refuse hyper-parameters that no command could read again: a checkpoint holds plain values and tensors only."""
    for name, value in getattr(part, "hparams", {}).items():
        content = io.BytesIO()
        try:
            torch.save(value, content)
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:  # of many kinds: pickle calls the value's own code
            raise InputError(
                f"{type(part).__name__}'s hyper-parameter {name} is {shown(value)}, which no checkpoint can hold as "
                f"data: leave it out, by self.save_hyperparameters(ignore=[{name!r}]) at the end of __init__"
            ) from error
