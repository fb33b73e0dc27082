"""MNIST, from the files to batches of tensors.

``idx_files.py`` reads the files, ``sampler.py`` chooses the images of each batch, ``dataset.py`` makes the batch, and
``datamodule.py`` connects the three: begin there. ``transforms.py`` tells a user's own functions on the images apart.
"""

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.data.idx_files import PACKAGED, TEST_IMAGES, TRAIN_IMAGES, load_mnist
from mnist_lightning.data.sampler import GlobalBatchSampler

__all__ = [
    "PACKAGED",
    "TEST_IMAGES",
    "TRAIN_IMAGES",
    "GlobalBatchSampler",
    "MNISTDataModule",
    "MNISTDataset",
    "load_mnist",
]
