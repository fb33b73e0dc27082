"""Files that appear whole or not at all."""

import contextlib
import os
from pathlib import Path

from mnist_lightning.errors import InputError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, or raise ``InputError``: whatever is killed, there is the file before or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r} ({error.strerror}): what was there before is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows and some file systems (SMB, 9p, FUSE) cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # only then is the new name on disk
        os.close(folder)
