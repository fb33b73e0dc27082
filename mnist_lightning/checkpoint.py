"""Checkpoints: written whole or not at all, and read as data, never as code."""

import contextlib
import io
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from mnist_lightning.errors import InputError


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a Lightning checkpoint without running anything in it.

    Args:
        path: A local file; nothing is fetched.
        map_location: As in ``torch.load``.

    Returns:
        The checkpoint: plain values and tensors.

    Raises:
        InputError: If there is no such file, if it is cut short or no checkpoint of Lightning's, or
            if it holds anything but plain values and tensors.
    """
    checkpoint = _read(os.fspath(path), map_location)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(
            f"{os.fspath(path)!r} is no Lightning checkpoint (no state_dict in it): give a file that fit has written"
        )
    return checkpoint


def _read(path: str, map_location: Any) -> Any:
    if "://" in path:
        raise InputError(f"a checkpoint must be a local file, got {path!r}; download it first")
    if not Path(path).is_file():
        raise InputError(f"no checkpoint at {path!r}: give the path of a .ckpt file")
    try:
        if not zipfile.is_zipfile(path):  # its table of contents stands at the end
            raise EOFError
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path!r} holds more than plain values and tensors, and what it holds could be code that runs: only "
            "checkpoints that load with weights_only=True are read"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path!r} is no checkpoint, or was cut short: give a file that fit has written") from error


def safely(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``load_from_checkpoint``, with ``weights_only=True`` among them.

    Left to itself, Lightning loads an ``http`` address with full pickle, which runs what is in it.
    """
    if kwargs.get("weights_only") not in (None, True):
        raise InputError("weights_only=False would run code from the checkpoint: leave it out")
    return {**kwargs, "weights_only": True}


def plain(hparams: Any) -> None:
    """Turn paths among hyper-parameters, a subclass's too, into strings: a weights-only checkpoint has no paths."""
    for name, value in hparams.items():
        if isinstance(value, os.PathLike):
            hparams[name] = os.fspath(value)


class SafeCheckpointIO(CheckpointIO):
    """A file appears under its name only when it is whole and on disk; it is loaded weights-only.

    Lightning's own plugin writes through fsspec, which moves a file from the system's temporary
    folder: not atomic across file systems, and without fsync.
    """

    def __init__(self) -> None:
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
        """Read with ``weights_only=True``, whatever ``weights_only`` says."""
        checkpoint: dict[str, Any] = _read(os.fspath(path), map_location or "cpu")
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint beside those saved here, and nothing else: the path may come from a checkpoint."""
        with contextlib.suppress(OSError, ValueError):  # it may be no name of a file at all
            file = Path(path).resolve()
            if file.suffix == ".ckpt" and file.is_file() and file.parent in self._folders:
                file.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears at ``path`` when it is whole and on disk.

    A kill at any moment leaves either the file that was there before or the new one.

    Raises:
        InputError: If it cannot be written: the disk is full, or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            remove_leftovers(path.parent)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r} ({error.strerror}): make room or the folder writable; what was there before "
            "is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if os.name == "posix":  # The new name is on disk when the folder is.
        with contextlib.suppress(OSError):  # some file systems (SMB, 9p, FUSE) cannot do that
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine have left that were killed in a write, or as they claimed a folder."""
    if os.name != "posix":
        return  # Windows has no signal that only asks whether there is a process
    names = re.compile(r"\..+\.(?:ckpt|csv|json|png|yaml)\.(\d+)\.tmp|\.claim-(\d+)-[0-9a-f]+")
    for path in folder.iterdir():
        if left := names.fullmatch(path.name):
            try:
                os.kill(int(left[1] or left[2]), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
            except (PermissionError, OverflowError):
                pass  # another user's process, or no process's number
