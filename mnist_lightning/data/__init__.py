"""MNIST, from the files to batches of tensors.

``idx_files.py`` reads the files, ``sampler.py`` chooses the images of each batch, ``dataset.py`` makes the batch, and
``datamodule.py`` connects the three: begin there. ``handwriting.py`` makes such images of any photograph.
"""

from typing import TYPE_CHECKING, Any

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.data.idx_files import PACKAGED, TEST_IMAGES, TRAIN_IMAGES, load_mnist
from mnist_lightning.data.sampler import GlobalBatchSampler

if TYPE_CHECKING:
    from mnist_lightning.data.handwriting import DigitImages, read_digits

__all__ = [
    "PACKAGED",
    "TEST_IMAGES",
    "TRAIN_IMAGES",
    "DigitImages",
    "GlobalBatchSampler",
    "MNISTDataModule",
    "MNISTDataset",
    "load_mnist",
    "read_digits",
]


def __getattr__(name: str) -> Any:
    # Lazily: no training needs scipy and Pillow.
    if name not in ("DigitImages", "read_digits"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mnist_lightning.data import handwriting

    return getattr(handwriting, name)
