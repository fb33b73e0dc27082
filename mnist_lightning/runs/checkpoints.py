"""The checkpoints of a run: when they are saved, how they are written, and which one is the last."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import write_atomically
from mnist_lightning.safe_checkpoints import load_checkpoint

UNFINISHED = "unfinished.ckpt"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def checkpoint_of(folder: Path, whole: bool = False) -> Path | None:
    """The run's checkpoint with the most training, if there is one: of a ``whole`` epoch, if training will go on."""
    files = [file for file in (folder / "checkpoints").glob("*.ckpt") if not whole or file.name != UNFINISHED]

    def progress(file: Path) -> tuple[Any, ...]:
        # Not the time of the file: copying a folder changes it.
        try:
            checkpoint = load_checkpoint(file)
        except InputError:
            checkpoint = {}
        is_first = whole and is_whole(checkpoint)
        return is_first, checkpoint.get("epoch", -1), checkpoint.get("global_step", -1), file.name

    return max(files, key=progress, default=None)


def is_whole(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved at the end of an epoch that was trained to its last batch."""
    try:
        loops = checkpoint["loops"]["fit_loop"]
        epochs, last = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]["is_last_batch"]
        return bool(last and epochs["processed"] == epochs["ready"] == checkpoint["epoch"] + 1)
    except KeyError:
        return False


class EpochCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` after every whole epoch: training goes on from it.

    A run that ends within an epoch, by ``max_time`` or ``max_steps``, has ``unfinished.ckpt`` too, for ``test``.
    """

    def __init__(self) -> None:
        # By default, Lightning saves after a validation, and some epochs have none.
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        others = [item for item in trainer.checkpoint_callbacks if isinstance(item, ModelCheckpoint) and item != self]
        if any(other.save_last or other.filename == "last" for other in others):
            self.filename = "last-epoch"  # the user's `last.ckpt` may be from the middle of an epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.dirpath is not None
        unfinished = Path(self.dirpath) / UNFINISHED
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)
            if trainer.is_global_zero:
                unfinished.unlink(missing_ok=True)
        else:
            trainer.save_checkpoint(unfinished)


class SafeCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all, which Lightning's own plugin does not, and reads it as data."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()  # in which it has saved

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        buffer = io.BytesIO()  # torch's own error would not say that the disk is full
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())
        self._folders.add(Path(path).resolve().parent)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        file = Path(path).resolve()
        # Lightning may have the path from a checkpoint, and a checkpoint may be forged.
        if file.suffix == ".ckpt" and file.parent in self._folders:
            file.unlink(missing_ok=True)


def check_hyper_parameters(part: Any) -> None:
    """Refuse hyper-parameters with which a checkpoint of this model or these data could not be read again."""
    for name, value in getattr(part, "hparams", {}).items():
        content = io.BytesIO()
        try:
            torch.save(value, content)
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:  # of many kinds: pickle calls the value's own code
            raise InputError(
                f"{type(part).__name__}'s hyper-parameter {name} is {shown(value)}, which no checkpoint can hold as "
                f"data: end __init__ by self.save_hyperparameters(ignore=[{name!r}])"
            ) from error
