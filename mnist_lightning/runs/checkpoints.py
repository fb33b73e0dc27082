"""The checkpoints of a run: when they are saved, how they are written, and which one is the last."""

import contextlib
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
from mnist_lightning.files import load_checkpoint, write_atomically

UNFINISHED = "unfinished.ckpt"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has saved a checkpoint. This reads none of them."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def checkpoint_of(folder: Path, whole: bool = False) -> Path | None:
    """The run's checkpoint with the most training; ``None`` if there is none.

    With ``whole``, checkpoints from the end of an epoch come first: training can go on from them.
    """
    # Training repeats an unfinished epoch, from the checkpoint of the epoch before or from the start.
    files = [file for file in (folder / "checkpoints").glob("*.ckpt") if not whole or file.name != UNFINISHED]
    if len(files) < 2:
        return files[0] if files else None

    def progress(file: Path) -> tuple[Any, ...]:
        # The time of the file decides last: copying a folder or setting the clock back changes it.
        try:
            checkpoint = load_checkpoint(file)
        except InputError:
            return False, -1, -1, 0, file.name
        trained = (checkpoint.get("epoch", -1), checkpoint.get("global_step", -1))
        return whole and is_whole(checkpoint), *trained, file.stat().st_mtime_ns, file.name

    return max(files, key=progress)


def is_whole(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved at the end of an epoch that was trained to its last batch."""
    try:
        loops = checkpoint["loops"]["fit_loop"]
        epochs, last = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]["is_last_batch"]
        return bool(last and epochs["processed"] == epochs["ready"] == checkpoint["epoch"] + 1)
    except (KeyError, TypeError):
        return False


class EpochCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` after every whole epoch, and ``unfinished.ckpt`` if the run ends within an epoch.

    ``max_time``, ``max_steps`` or EarlyStopping can end a run within an epoch. Such a run keeps both files: training
    goes on from the first, and ``test`` evaluates the second. If a ModelCheckpoint of the user's own writes a
    ``last.ckpt``, the first is called ``last-epoch.ckpt``.
    """

    def __init__(self) -> None:
        # After training, even if this epoch is not validated: only a whole epoch can be resumed exactly.
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
    """Writes a checkpoint so that it appears when it is whole and on disk, and loads it weights-only.

    Lightning's own plugin writes through fsspec, which moves the file from the system's temporary folder. That is
    not atomic across file systems, and nothing calls fsync.

    A checkpoint that is already loaded is not read again from its path: Lightning restores exactly what was checked.
    """

    def __init__(self, path: Any = None, checkpoint: dict[str, Any] | None = None) -> None:
        self._loaded = {} if checkpoint is None else {path: checkpoint}
        self._folders: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write to a file beside ``path``, then rename it. After a kill, the previous file is still there."""
        buffer = io.BytesIO()  # if torch wrote the file itself, its error would not say that the disk is full
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())
        self._folders.add(Path(path).resolve().parent)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint as data, even if ``weights_only`` is false."""
        return self._loaded.pop(path, None) or load_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint from a folder that this object has saved one in.

        Nothing else is removed, because Lightning may have taken the path from a checkpoint.
        """
        with contextlib.suppress(OSError, ValueError):  # the path may be anything
            file = Path(path).resolve()
            if file.suffix == ".ckpt" and file.is_file() and file.parent in self._folders:
                file.unlink()


def check_hyper_parameters(part: Any) -> None:
    """Refuse hyper-parameters that no command could read again: a checkpoint may only hold plain values and tensors."""
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
