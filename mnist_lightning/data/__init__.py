"""MNIST, and its relatives, from the files to batches of tensors.

``datasets.py`` says where each data set's files are, and ``formats.py`` reads them. ``sampler.py`` chooses the images
of each batch, ``dataset.py`` makes the batch, and ``datamodule.py`` connects all: begin there. ``transforms.py`` tells
a user's own functions on the images apart.
"""

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.data.datasets import DATASETS, PACKAGED, TEST_IMAGES, TRAIN_IMAGES, load_images
from mnist_lightning.data.sampler import GlobalBatchSampler

__all__ = [
    "DATASETS",
    "PACKAGED",
    "TEST_IMAGES",
    "TRAIN_IMAGES",
    "GlobalBatchSampler",
    "MNISTDataModule",
    "MNISTDataset",
    "load_images",
]
