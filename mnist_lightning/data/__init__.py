"""MNIST, and its relatives, from the files to batches of tensors.

``datasets.py`` says where each data set's files are, and ``formats.py`` reads them. ``sampler.py`` chooses the images
of each batch, ``dataset.py`` makes the batch, and ``datamodule.py`` connects all: begin there. ``transforms.py``
recognises a user's own functions on the images, and ``handwriting.py`` turns a photograph into such images.
"""

from typing import TYPE_CHECKING, Any

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.data.datasets import DATASETS, PACKAGED, TEST_IMAGES, TRAIN_IMAGES, load_images
from mnist_lightning.data.sampler import GlobalBatchSampler

if TYPE_CHECKING:
    from mnist_lightning.data.handwriting import DigitImages, read_digits

__all__ = [
    "DATASETS",
    "PACKAGED",
    "TEST_IMAGES",
    "TRAIN_IMAGES",
    "DigitImages",
    "GlobalBatchSampler",
    "MNISTDataModule",
    "MNISTDataset",
    "load_images",
    "read_digits",
]

if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> Any:
        # Lazily: no training needs scipy and Pillow.
        if name not in ("DigitImages", "read_digits"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mnist_lightning.data import handwriting

        return getattr(handwriting, name)
