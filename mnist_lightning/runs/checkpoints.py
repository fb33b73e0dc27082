"""The checkpoints of a run: when they are saved, and which one is the last."""

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

from mnist_lightning.errors import InputError
from mnist_lightning.files import load_checkpoint, write_atomically

UNFINISHED = "unfinished.ckpt"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has saved a checkpoint; none is read."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def checkpoint_of(folder: Path, whole: bool = False) -> Path | None:
    """The checkpoint of a run that was trained for the most steps, if there is any.

    Args:
        folder: The run's.
        whole: Prefer checkpoints from the end of an epoch, from which training can go on.
    """
    # An unfinished epoch is repeated: from the epoch before, or from the start.
    files = [file for file in (folder / "checkpoints").glob("*.ckpt") if not whole or file.name != UNFINISHED]
    if len(files) < 2:
        return files[0] if files else None

    def progress(file: Path) -> tuple[Any, ...]:
        # Not the file's time first: a copied folder or a clock that was set back would give another one.
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
    """``last.ckpt`` after every whole epoch; ``unfinished.ckpt`` where a run ends within one.

    Where a ModelCheckpoint of the user's own writes a ``last.ckpt``, this one is called ``last-epoch.ckpt``.
    A run that ``max_time``, ``max_steps`` or EarlyStopping ends within an epoch keeps both: the first to go on
    from, the second to evaluate.
    """

    def __init__(self) -> None:
        # Also where validation does not happen every epoch: only whole epochs can be resumed exactly.
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        others = [item for item in trainer.checkpoint_callbacks if isinstance(item, ModelCheckpoint) and item != self]
        if any(other.save_last or other.filename == "last" for other in others):
            self.filename = "last-epoch"  # `last.ckpt` is the user's, and may be of the middle of an epoch

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
    """A file appears under its name only when it is whole and on disk; it is loaded weights-only.

    Lightning's own plugin writes through fsspec, which moves a file from the system's temporary
    folder: not atomic across file systems, and without fsync.

    Args:
        path: Of a checkpoint that is loaded already, and not read again: what was checked is what is restored.
        checkpoint: What it holds.
    """

    def __init__(self, path: Any = None, checkpoint: dict[str, Any] | None = None) -> None:
        self._loaded = {} if checkpoint is None else {path: checkpoint}
        self._folders: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write next to ``path`` first, reach the disk, then rename: a kill leaves the file before."""
        buffer = io.BytesIO()  # torch turns a full disk into an error of its own
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())
        self._folders.add(Path(path).resolve().parent)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read as data, whatever ``weights_only`` says."""
        return self._loaded.pop(path, None) or load_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint beside those saved here, and nothing else: the path may come from a checkpoint."""
        with contextlib.suppress(OSError, ValueError):  # it may be no name of a file at all
            file = Path(path).resolve()
            if file.suffix == ".ckpt" and file.is_file() and file.parent in self._folders:
                file.unlink()
