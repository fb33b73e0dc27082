"""The data sets: for each torchvision's class, and what is special about it."""

import os
import string
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from mnist_lightning.errors import InputError

PACKAGED = Path(__file__).parent.parent
"""The torchvision root in this package: it contains ``MNIST/raw``."""

Name = Literal["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST", "CIFAR10", "CIFAR100"]
Split = Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"]
"""How EMNIST groups its characters into classes."""


class DataSet(NamedTuple):
    """A row of the table: torchvision's class, the names of the classes, and channels, height and width."""

    source: Any
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int] = (1, 28, 28)

    @property
    def folder(self) -> str:
        """Where torchvision puts the files, below its root."""
        return getattr(self.source, "base_folder", f"{self.source.__name__}/raw")


DIGITS = tuple(string.digits)
_LETTERS = tuple(string.ascii_lowercase)  # torchvision begins with a class "N/A", which is empty
_EMNIST = {split: tuple(names) for split, names in datasets.EMNIST.classes_split_dict.items()} | {"letters": _LETTERS}
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

DATASETS = {
    "MNIST": DataSet(datasets.MNIST, DIGITS),
    "FashionMNIST": DataSet(datasets.FashionMNIST, tuple(datasets.FashionMNIST.classes)),
    "KMNIST": DataSet(datasets.KMNIST, tuple(datasets.KMNIST.classes)),
    "QMNIST": DataSet(datasets.QMNIST, DIGITS),
    **{f"EMNIST {split}": DataSet(datasets.EMNIST, names) for split, names in _EMNIST.items()},
    "CIFAR10": DataSet(datasets.CIFAR10, tuple(_CIFAR10.split()), (3, 32, 32)),
    "CIFAR100": DataSet(datasets.CIFAR100, tuple(_CIFAR100.split()), (3, 32, 32)),
}
"""By name. EMNIST's name has its split: ``"EMNIST letters"``."""


def load_images(name: str, root: str | os.PathLike[str], train: bool, download: bool = False) -> tuple[Tensor, Tensor]:
    """Read the training or the test images of a data set, a key of ``DATASETS``, by torchvision's own class.

    Returns:
        The pixels, ``(N, 28, 28)`` or ``(N, C, H, W)`` uint8 in 0 ... 255, and the classes, ``(N,)`` int64.

    Raises:
        InputError: If the files are missing, are damaged, or cannot be downloaded.
    """
    row, split = DATASETS[name], name.partition(" ")[2]
    options = {"split": split} if split else {}
    try:
        found = row.source(os.fspath(root), train=train, download=download, **options)
    except Exception as error:  # a damaged file can raise almost anything
        what = " ".join(f"{type(error).__name__}: {error}".split())
        right = "--data.download true fetches them"
        if name == "MNIST":
            right = "without data_dir, the copy in the package is used"
        raise InputError(
            f"no {name} in {os.fspath(root)!r} ({what}): data_dir must be a folder with its files in {row.folder}, as "
            f"torchvision leaves them; {right}"
        ) from error
    images, targets = torch.as_tensor(found.data), torch.as_tensor(found.targets)
    if split:  # EMNIST's images lie on their side
        images = images.transpose(1, 2).contiguous()
    if split == "letters":  # whose labels begin at 1
        targets = targets - 1
    if name == "QMNIST":  # seven more columns say who wrote the digit, and where it is in NIST's files
        targets = targets[:, 0]
    if row.image_shape[0] == 3:  # torchvision has the colours last
        images = images.permute(0, 3, 1, 2).contiguous()
    return images, targets


def checked(images: Tensor, targets: Tensor, image_shape: tuple[int, ...], num_classes: int) -> tuple[Tensor, Tensor]:
    """Check what was read, from files or by a user's own ``load``, and return it with targets of int64.

    The images must be ``(N, *image_shape)`` uint8, or ``(N, H, W)`` if they are grey, and the targets ``(N,)`` integers
    from 0 to ``num_classes - 1``; -1 is a class that is not known.
    """
    images, targets = torch.as_tensor(images), torch.as_tensor(targets)  # numpy's arrays, too
    count = len(images)
    shapes = [(count, *image_shape)]
    if image_shape[0] == 1:
        shapes.append((count, *image_shape[1:]))
    if not count or images.dtype != torch.uint8 or images.shape not in shapes:
        right, got = shapes[0], f"{images.dtype} of shape {tuple(images.shape)}"
        raise InputError(f"load must return images of uint8 and shape {right}, got {got}")
    if targets.shape != (count,) or targets.is_floating_point():
        got = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise InputError(f"load must return a class for each of {count:,} images, got {got}")
    least, most = int(targets.min()), int(targets.max())
    if least < -1 or most >= num_classes:
        raise InputError(f"load must return classes in 0 ... {num_classes - 1}, got {least} ... {most}")
    return images, targets.long()


def split_images(total: int, val_size: int | float, train_size: int | float | None) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images to train on and those held out, of ``total`` ones.

    Returns:
        Their indices: two sorted arrays of int64. One is taken from the end of a fixed permutation, the other from its
        beginning, so that a larger split contains the smaller ones.
    """
    num_val = _count("val_size", val_size, 0, total - 1, total)
    num_train = rest = total - num_val
    if train_size is not None:
        num_train = _count("train_size", train_size, 1, rest, total)
    shuffled = np.random.default_rng(0).permutation(total)
    return np.sort(shuffled[total - num_train :]), np.sort(shuffled[:num_val])


def _count(name: str, size: int | float, least: int, most: int, total: int) -> int:
    is_fraction = isinstance(size, (float, np.floating)) and size <= 1
    count = round(size * total) if is_fraction else size
    if count == int(count) and least <= count <= most and bool(count) == bool(size):
        return int(count)
    why = "the images that val_size leaves"
    if name == "val_size":
        why = "so that images are left to train on"
    raise InputError(
        f"{name} must be a count from {least:,} to {most:,}, {why}, or a fraction below 1.0 of the {total:,} "
        f"training images that gives such a count, got {size!r}"
    )
