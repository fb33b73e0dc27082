"""MNIST, and its relatives, from torchvision's files to batches of tensors.

Begin with ``datamodule.py``. ``datasets.py`` reads the images by torchvision, ``dataset.py`` makes samples and batches
of them, ``sampler.py`` chooses the images of each batch, and ``same_data.py`` says what a resumed fit must have in
common with the one before. ``digit_images.py`` turns a photograph of handwriting into such images: ``picture.py`` reads
it, ``ink.py`` and ``digits.py`` find its digits, and ``normal_form.py`` makes them like MNIST's.
"""

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.data.datasets import DATASETS, PACKAGED, load_images

__all__ = ["DATASETS", "PACKAGED", "MNISTDataModule", "MNISTDataset", "load_images"]
