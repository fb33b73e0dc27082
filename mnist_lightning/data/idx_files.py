"""The four files of MNIST, and the check that they are the originals."""

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file

from mnist_lightning.errors import InputError

PACKAGED = Path(__file__).parent.parent
"""The torchvision root in this package: it contains ``MNIST/raw``."""

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000

# The sha256 of the four original files, unpacked.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_mnist(root: str | os.PathLike[str], train: bool) -> tuple[Tensor, Tensor]:
    """Read the training or the test images with torchvision, and prove that every byte is MNIST's.

    Args:
        root: A torchvision root: the folder that contains ``MNIST/raw``. It is only read.
        train: Whether to read the 60,000 training images, or the 10,000 test images.

    Returns:
        The pixels, ``(N, 28, 28)`` uint8 in 0 ... 255, and the digits, ``(N,)`` int64 in 0 ... 9.

    Raises:
        InputError: If the files are missing, cannot be read, or contain anything but MNIST.
    """
    split = "train" if train else "t10k"
    images = _read(root, f"{split}-images-idx3-ubyte", read_image_file)
    return images, _read(root, f"{split}-labels-idx1-ubyte", read_label_file).long()


def _read(root: str | os.PathLike[str], name: str, read: Callable[[str], Tensor]) -> Tensor:
    """The tensor in one of the four files, uint8, in the shape that the file's header gives."""
    what = f"is cut short, or not the original: its sha256 is not {SHA256[name]}"
    try:
        # Read the file itself: torchvision's MNIST class would prefer a tensor in MNIST/processed.
        values = read(str(Path(root) / "MNIST" / "raw" / name)).to(torch.uint8)
        # An IDX file is a header (type and rank, then each dimension, big-endian) and the bytes of a tensor.
        # We hash the tensor itself: if we hashed the file, it could change before it is read.
        digest = hashlib.sha256(struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape))
        digest.update(values.contiguous().numpy().data)
        if digest.hexdigest() == SHA256[name]:
            return values
    except (FileNotFoundError, NotADirectoryError):
        what = "is missing"
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        pass  # torchvision raises these for a file of another kind
    raise InputError(
        f"no MNIST in {str(root)!r}: {name} {what}; data_dir must be a folder with the four unpacked files in "
        "MNIST/raw, or left out to use the copy in the package"
    )
