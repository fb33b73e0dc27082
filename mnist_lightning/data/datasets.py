"""The data sets: a row for each. To add one, add its row to ``DATASETS`` and its name to ``Name``."""

import os
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from mnist_lightning.data.formats import NotOriginalError, parse_batch, parse_idx, read_bytes
from mnist_lightning.errors import InputError

PACKAGED = Path(__file__).parent.parent
"""The torchvision root in this package: it contains ``MNIST/raw``."""

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
"""The numbers of MNIST's images."""

Name = Literal["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST", "CIFAR10", "CIFAR100"]
Split = Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"]
"""How EMNIST groups its characters into classes."""


@dataclass(frozen=True)
class DataSet:
    """A row of the table.

    Attributes:
        source: torchvision's class. It downloads, and has the checksums of packed files.
        folder: Where torchvision puts the files, below ``data_dir``.
        classes: The names of the classes, in the order of their numbers.
        train: The names of the files of the training images.
        test: The names of the files of the test images.
        image_shape: Channels, height and width.
        checksums: The md5 or the sha256 of files, packed ones too, by name.
        parse: Makes arrays of the bytes of one file.
        straighten: Turns what a split's files hold into pixels, ``(N, 28, 28)`` or ``(N, C, H, W)`` uint8, and
            labels, ``(N,)`` from 0.
    """

    source: Any
    folder: str
    classes: tuple[str, ...]
    train: tuple[str, ...] = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    test: tuple[str, ...] = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    image_shape: tuple[int, int, int] = (1, 28, 28)
    checksums: Mapping[str, str] = field(default_factory=dict)
    parse: Callable[[np.ndarray], Any] = parse_idx
    straighten: Callable[..., tuple[np.ndarray, np.ndarray]] = lambda images, labels: (images, labels)


def _md5(*resources: Any) -> dict[str, str]:
    """Checksums of torchvision, by the name of the file."""
    return {os.path.basename(file): md5 for file, md5 in resources}  # noqa: PTH119  # some are addresses


def _emnist(split: str) -> DataSet:
    """The images lie on their side. The letters' labels are 1 ... 26; torchvision lists a class 0, which is empty."""
    first = 1 if split == "letters" else 0
    return DataSet(
        datasets.EMNIST,
        "EMNIST/raw",
        tuple(datasets.EMNIST.classes_split_dict[split][first:]),
        (f"emnist-{split}-train-images-idx3-ubyte", f"emnist-{split}-train-labels-idx1-ubyte"),
        (f"emnist-{split}-test-images-idx3-ubyte", f"emnist-{split}-test-labels-idx1-ubyte"),
        straighten=lambda images, labels: (images.swapaxes(1, 2), labels.astype(np.int64) - first),
    )


def _cifar(source: Any, classes: str) -> DataSet:
    return DataSet(
        source,
        source.base_folder,
        tuple(classes.split()),
        tuple(name for name, _ in source.train_list),
        tuple(name for name, _ in source.test_list),
        (3, 32, 32),
        _md5(*source.train_list, *source.test_list),
        parse_batch,
        _joined,
    )


def _joined(*batches: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels)


_DIGITS = tuple(string.digits)
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
    "MNIST": DataSet(
        datasets.MNIST,
        "MNIST/raw",
        _DIGITS,
        checksums={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "FashionMNIST": DataSet(
        datasets.FashionMNIST,
        "FashionMNIST/raw",
        tuple(datasets.FashionMNIST.classes),
        checksums={  # of the files in Debian's package dataset-fashion-mnist, unpacked
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "KMNIST": DataSet(
        datasets.KMNIST, "KMNIST/raw", tuple(datasets.KMNIST.classes), checksums=_md5(*datasets.KMNIST.resources)
    ),
    "QMNIST": DataSet(
        datasets.QMNIST,
        "QMNIST/raw",
        _DIGITS,
        ("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
        ("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int"),
        checksums=_md5(*chain(*datasets.QMNIST.resources.values())),
        # Seven more columns say who wrote the digit, and where it is in NIST's files.
        straighten=lambda images, labels: (images, labels[:, 0]),
    ),
    **{f"EMNIST {split}": _emnist(split) for split in datasets.EMNIST.splits},
    "CIFAR10": _cifar(datasets.CIFAR10, "airplane automobile bird cat deer dog frog horse ship truck"),
    "CIFAR100": _cifar(datasets.CIFAR100, _CIFAR100),
}
"""By name; the name of EMNIST's has its split, ``"EMNIST letters"``."""


def load_images(name: str, root: str | os.PathLike[str], train: bool) -> tuple[Tensor, Tensor, bool]:
    """Read the training or the test images of a data set, and compare each file with its checksum, if one is known.

    Args:
        name: A key of ``DATASETS``.
        root: The folder that contains the data set's folder. It is only read.
        train: Whether to read the training images or the test images.

    Returns:
        The pixels, ``(N, 28, 28)`` or ``(N, C, H, W)`` uint8 in 0 ... 255; the classes, ``(N,)`` int64; and whether
        checksums prove all of them.

    Raises:
        InputError: If the files are missing, cannot be read, or contain anything else.
    """
    row = DATASETS[name]
    files = row.train if train else row.test
    parts, proven = zip(*(_parse(name, root, file) for file in files), strict=True)
    try:
        images, labels = row.straighten(*parts)
        shape = images.shape if images.ndim == 4 else (len(images), 1, *images.shape[1:])
        if (*shape[1:],) != row.image_shape or images.dtype != np.uint8 or not len(images):
            raise ValueError(f"images of {images.dtype} and shape {images.shape}")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "ui":
            raise ValueError(f"labels of {labels.dtype} and shape {labels.shape} for {len(images):,} images")
        if int(labels.min()) < 0 or int(labels.max()) >= len(row.classes):
            raise ValueError(f"labels from {labels.min()} to {labels.max()} for {len(row.classes)} classes")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _refusal(name, root, f"{' and '.join(files)} do not fit together: {error}") from error
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    return pixels, torch.from_numpy(labels.astype(np.int64)), all(proven)


def _parse(name: str, root: str | os.PathLike[str], file: str) -> tuple[Any, bool]:
    """What one file holds, and whether a checksum proves it."""
    row = DATASETS[name]
    try:
        content, proven = read_bytes(Path(root) / row.folder / file, row.checksums)
        if row.parse is parse_batch and not proven:
            raise NotOriginalError(f"{file} has no checksum in the table, and a pickle is not read without one")
        return row.parse(content), proven
    except (FileNotFoundError, NotADirectoryError):
        what = f"{file} is missing"
    except NotOriginalError as error:
        what = str(error)
    except OSError as error:
        what = f"{file} cannot be read ({error.strerror or error})"
    except Exception as error:  # a damaged file can raise almost anything
        what = f"{file} is cut short, or of another kind ({type(error).__name__}: {error})"
    raise _refusal(name, root, what)


def _refusal(name: str, root: str | os.PathLike[str], what: str) -> InputError:
    folder = DATASETS[name].folder
    right = f"a folder with its files in {folder}, as torchvision leaves them; --data.download true fetches them"
    if name == "MNIST":
        right = f"a folder with the four unpacked files in {folder}, or left out to use the copy in the package"
    return InputError(f"no {name} in {str(root)!r}: {what}; data_dir must be {right}")


def download_missing(name: str, root: str | os.PathLike[str]) -> None:
    """Have torchvision download what is missing, with its checksums. Several processes do so one after the other.

    Raises:
        InputError: If the files cannot be had.
    """
    source_class = DATASETS[name].source
    lock = Path(root) / ".download.lock"
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            for train in (True, False):
                try:
                    load_images(name, root, train)
                except InputError:
                    # Not by its constructor, which would read the files, too, and unpickle CIFAR's.
                    source = source_class.__new__(source_class)
                    source.root, source.train, source.what = str(root), train, "train" if train else "test"
                    source.split = name.partition(" ")[2]
                    source.download()
    except (OSError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{name} cannot be downloaded into {str(root)!r}: {what}") from error
    finally:
        lock.unlink(missing_ok=True)  # a process that waits for it will find the files
