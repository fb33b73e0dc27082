"""The two formats of the data sets' files, IDX and CIFAR's batches, and the check that the bytes are the originals."""

import gzip
import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Bytes = np.ndarray
"""``(N,)`` uint8: the content of a file."""

MOST = 2**30  # bytes that a packed file may hold: the largest of EMNIST's has 0.55 GB
IDX_TYPES = {8: ">u1", 12: ">i4"}


class NotOriginalError(Exception):
    """A file has other bytes than the original."""


def read_bytes(file: Path, checksums: Mapping[str, str]) -> tuple[Bytes, bool]:
    """Read a file, or the ``.gz`` that torchvision leaves beside it.

    Args:
        file: The path of the unpacked file.
        checksums: The md5 or the sha256 of files, packed ones too, by name.

    Returns:
        The unpacked bytes, and whether a checksum proves them. The bytes are read once: those that are compared are
        those that are returned.

    Raises:
        NotOriginalError: If they have another checksum.
    """
    packed = file.with_name(f"{file.name}.gz")
    checksum, packed_checksum = checksums.get(file.name), checksums.get(packed.name)
    # Without a checksum of the file, its packed form may have one.
    is_packed = packed.exists() if checksum is None else not file.exists()
    path = packed if is_packed else file
    if path.exists() and not path.is_file():  # a pipe would be waited for without an end
        raise OSError(f"{path.name} is no file")
    content = np.fromfile(path, np.uint8)
    if is_packed:
        if checksum is None and packed_checksum is not None:
            _compare(content, packed.name, packed_checksum)
        with gzip.GzipFile(fileobj=io.BytesIO(content.data)) as unpacked:
            content = np.frombuffer(bytearray(unpacked.read(MOST)), np.uint8)
    if checksum is not None:
        _compare(content, file.name, checksum)
    return content, checksum is not None or (is_packed and packed_checksum is not None)


def _compare(content: Bytes, name: str, checksum: str) -> None:
    algorithm = "md5" if len(checksum) == 32 else "sha256"
    if hashlib.new(algorithm, content.data, usedforsecurity=False).hexdigest() != checksum:
        raise NotOriginalError(f"{name} is cut short, or not the original: its {algorithm} is not {checksum}")


def parse_idx(content: Bytes) -> np.ndarray:
    """The array in an IDX file.

    The file has two zeros, a type and a rank, one byte each, then the dimensions, then the values, big-endian.
    """
    zeros, kind, rank = content[:2], int(content[2]), int(content[3])
    start = 4 + 4 * rank
    if zeros.any():
        raise ValueError("no IDX file")
    return content[start:].view(IDX_TYPES[kind]).reshape(content[4:start].view(">u4").tolist())


def parse_batch(content: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """The pixels, ``(N, 3072)`` uint8, and the labels, ``(N,)``, of one of CIFAR's batches."""
    batch = _ArraysOnly(io.BytesIO(content.data), encoding="latin1").load()
    return batch["data"], np.array(batch["fine_labels" if "fine_labels" in batch else "labels"])


# Python 2 and numpy 1 wrote CIFAR's batches. numpy 2 has another name for the first module.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", _RECONSTRUCT.__name__): _RECONSTRUCT,
    ("numpy._core.multiarray", _RECONSTRUCT.__name__): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Makes numpy's arrays and Python's plain values, and calls nothing else: a pickle could name any function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _ARRAYS[module, name]
