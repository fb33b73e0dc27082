"""MNIST, or another data set of images, as a LightningDataModule."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lightning.data.dataset import Batch, MNISTDataset
from mnist_lightning.data.datasets import (
    DATASETS,
    PACKAGED,
    TEST_IMAGES,
    TRAIN_IMAGES,
    Name,
    Split,
    download_missing,
    load_images,
)
from mnist_lightning.data.sampler import GlobalBatchSampler, connected_processes
from mnist_lightning.data.transforms import TRANSFORMS, check_same, data_states, record
from mnist_lightning.errors import InputError, plain_number, shown, whole_number
from mnist_lightning.files import PlainCheckpoints

FIXED = ("data_dir", "val_size", "seed", "train_size", "dataset", "emnist_split", "download", *TRANSFORMS)


class MNISTDataModule(PlainCheckpoints, LightningDataModule):
    """MNIST as it ships in this package: 60,000 images to train on, 10,000 to test on. Or another data set.

    A batch is ``(images, targets)``: ``(B, 1, 28, 28)`` float in [0, 1], ``uint8 / 255``
    in the model's dtype, or what ``transform`` makes of them; and ``(B,)`` int64 in 0 ... 9.
    Every epoch takes each image once. Its order depends on ``seed`` and the epoch alone, on one
    process as on many. Its last batch is smaller: 60,000 images are 468 batches of 128 and one of 96.

    To train in an order of your own, override :meth:`train_order`. For images of your own, override :meth:`load`.

    Args:
        data_dir: Your own torchvision root (the folder that contains ``MNIST/raw``). It is only read. By
            default, the files in the package are used.
        batch_size: Images in a batch, over all processes together.
        val_size: Training images to hold out for validation: a count, or a fraction below 1. Which
            images they are depends on this number alone. With 0, there is no validation.
        seed: The seed of the order of the training images.
        train_size: How many of the other images to train on, 1 ... 60,000 - ``val_size``, or a fraction of
            60,000; by default all. Which images they are depends on this number alone, and a larger number
            adds images to those of a smaller one.
        train_transform: A function that changes each batch of training images, and no others. It takes
            ``(B, 1, 28, 28)`` float in [0, 1], on the model's device, and returns a tensor of that shape.
            ``torchvision.transforms.v2`` draws anew for each batch, but once for all images of a batch.
            A checkpoint holds no code, so the function is no hyper-parameter. But a checkpoint records
            the function's name or ``repr`` and a digest of its parameters, and ``fit`` refuses to resume with another.
        transform: A function that changes each batch of images of all splits, before ``train_transform``. It
            takes ``(B, 1, 28, 28)`` float in [0, 1], in the model's dtype and on its device, and returns
            ``(B, ...)`` float, such as normalised or padded images. If it draws random numbers, each evaluation
            gives other figures. A checkpoint records it, too. A Trainer with a ``ckpt_path`` and
            ``load_from_checkpoint`` refuse another transform. Weights that are loaded without this data
            module, or with one of another class, cannot be checked.
        dataset: Another data set than MNIST, whose files are in ``data_dir``, as torchvision leaves them. CIFAR's
            images are ``(B, 3, 32, 32)``.
        emnist_split: Which of EMNIST's characters, such as ``"letters"``; for ``dataset="EMNIST"`` only.
        download: Whether torchvision may download files that are missing in ``data_dir``. No hyper-parameter: it
            is never taken from a checkpoint.

    Attributes:
        name: What the images are called: ``dataset``, with EMNIST's split.
        classes: The names of the classes.
        image_shape: Channels, height and width of an image in the files.
        num_test: The number of test images. Like ``num_train`` and ``num_val``, it is 0 for another data set than
            MNIST until its files are read.
        proven: Whether checksums prove all files that were read.

    Raises:
        InputError: If an argument is out of range; from ``setup``, if the files are missing or not the data set's.
    """

    never_from_checkpoints = ("download",)
    name: str = "MNIST"
    classes: tuple[str, ...] = DATASETS["MNIST"].classes
    image_shape: tuple[int, ...] = DATASETS["MNIST"].image_shape
    num_test = TEST_IMAGES
    proven = True

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        val_size: int | float = 0,
        seed: int = 0,
        train_size: int | float | None = None,
        # It returns a Tensor. But for `Callable[..., Tensor]`, jsonargparse accepts subclasses of Tensor instead.
        train_transform: Callable[[Tensor], Any] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        dataset: Name = "MNIST",
        emnist_split: Split | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        if data_dir is not None and (not isinstance(data_dir, (str, os.PathLike)) or not os.fspath(data_dir)):
            raise InputError(f"data_dir must be the path of a folder, got {data_dir!r}")
        data_dir = None if data_dir is None else str(data_dir)
        self._key = self.name = _name(dataset, emnist_split)
        row = DATASETS[self.name]
        for name in ("classes", "image_shape"):
            if getattr(type(self), name) is getattr(MNISTDataModule, name):  # a subclass's own stay
                setattr(self, name, getattr(row, name))
        if not isinstance(download, bool):
            raise InputError(f"download must be True or False, got {download!r}")
        if data_dir is None and (download or dataset != "MNIST"):
            which = "download" if download else f"dataset {dataset}"
            raise InputError(
                f"{which} needs data_dir, the folder that holds {row.folder}: only MNIST is in the package"
            )
        val_size = _plain("val_size", val_size)
        train_size = None if train_size is None else _plain("train_size", train_size)
        batch_size = whole_number("batch_size", batch_size, 1, 2**32 - 1)
        seed = whole_number("seed", seed, 0, 2**32 - 1)
        transforms = {"train_transform": train_transform, "transform": transform}
        for name, function in transforms.items():
            if function is not None and not callable(function):
                raise InputError(f"{name} must be None or a callable, got {function!r}")
        # Not to the logger: Lightning refuses to log one name with two values, the model's and the data's.
        self.save_hyperparameters(logger=False, ignore=(*TRANSFORMS, "download"))
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self.train_size = train_size
        self.dataset = dataset
        self.emnist_split = emnist_split
        self.download = download
        self.train_transform = train_transform
        self.transform = transform
        self._transforms = record(transforms)  # now, before a call can change a transform's repr
        self.train_dataset: MNISTDataset | None = None
        self.val_dataset: MNISTDataset | None = None
        self.test_dataset: MNISTDataset | None = None
        if self._key == "MNIST" and type(self).load is MNISTDataModule.load:
            self._divide(TRAIN_IMAGES)
        else:
            self._total = self.num_train = self.num_val = self.num_test = 0
        if not val_size and type(self).val_dataloader is MNISTDataModule.val_dataloader:
            # Lightning validates whenever this method is overridden. With nothing held out, put its own method back.
            self.val_dataloader = partial(LightningDataModule.val_dataloader, self)  # type: ignore[method-assign]  # for the reason above

    __init__.__doc__ = __doc__  # without one, help() says nothing of the arguments

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change an argument, which would be ignored; Lightning's Tuner may change the batch size."""
        if name in FIXED and name in vars(self):
            raise InputError(f"{name} cannot change: make another {type(self).__name__}({name}={shown(value)})")
        if name == "batch_size":
            self.hparams["batch_size"] = value = whole_number(name, value, 1, 2**32 - 1)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        arguments = [f"{name}={value!r}" for name, value in self.hparams.items()]
        arguments += [f"{name}={self._transforms[name]}" for name in TRANSFORMS]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def sample(self, count: int = 16) -> Batch:
        """The first images of ``train_dataset`` and their classes, to look at, as a batch.

        The images are what a network would see in training: both transforms have changed them.

        Raises:
            InputError: If there are fewer images.
        """
        self.setup("fit")
        assert self.train_dataset is not None
        return self.train_dataset[: whole_number("count", count, 1, len(self.train_dataset))]

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the images of the files; override it to read your own, and set ``classes`` and ``image_shape``, too.

        Args:
            train: Whether to read the training images or the test images.

        Returns:
            The pixels, ``(N, *image_shape)`` uint8 in 0 ... 255, or ``(N, H, W)`` if they are grey; and the classes,
            ``(N,)`` int64 from 0.
        """
        images, targets, proven = load_images(self._key, PACKAGED if self.data_dir is None else self.data_dir, train)
        self.proven = self.proven and proven
        return images, targets

    def prepare_data(self) -> None:
        """Download files that are missing, if ``download`` allows it."""
        if self.download and self.data_dir is not None:
            download_missing(self._key, self.data_dir)

    def setup(self, stage: str) -> None:
        """Load the images of a stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""
        if stage == "validate" and getattr(self.val_dataloader, "func", None) is LightningDataModule.val_dataloader:
            raise InputError(
                "there are no images to validate on: give val_size, such as MNISTDataModule(val_size=10_000)"
            )
        for name in TRANSFORMS:
            self.hparams.pop(name, None)  # a subclass's own save_hyperparameters() puts it there
        if stage in ("fit", "validate") and self.train_dataset is None:
            images, targets = self._loaded(train=True)
            self._divide(len(images))
            if stage == "fit":  # a fault in the test images is reported before the training; this takes 16 ms
                self.num_test = len(self._loaded(train=False)[0])
            train, val = self.split()
            if len(val):
                self.val_dataset = MNISTDataset(images[val], targets[val], self.transform)
            if len(train) < len(images):
                images, targets = images[train], targets[train]
            self.train_dataset = MNISTDataset(images, targets, self.transform, self.train_transform)
        if stage in ("test", "predict") and self.test_dataset is None:
            self.test_dataset = MNISTDataset(*self._loaded(train=False), self.transform)
            self.num_test = len(self.test_dataset)

    def _loaded(self, train: bool) -> tuple[Tensor, Tensor]:
        """What :meth:`load` returns, which may be a user's."""
        try:
            images, targets = self.load(train)
        except OSError as error:
            raise InputError(f"the images cannot be read: {error}") from error
        shapes = (len(images), *self.image_shape), (len(images), *self.image_shape[1:])
        grey = self.image_shape[0] == 1
        if not len(images) or images.dtype != torch.uint8 or images.shape not in shapes[: 1 + grey]:
            got = f"{images.dtype} of shape {tuple(images.shape)}"
            right = f"(N, {', '.join(map(str, self.image_shape))})"
            raise InputError(f"load must return images of uint8 and shape {right}, got {got}")
        if targets.shape != (len(images),) or targets.is_floating_point():
            got = f"{targets.dtype} of shape {tuple(targets.shape)}"
            raise InputError(f"load must return a class for each of {len(images):,} images, got {got}")
        if int(targets.min()) < 0 or int(targets.max()) >= self.num_classes:
            got = f"{int(targets.min())} ... {int(targets.max())}"
            raise InputError(f"load must return classes in 0 ... {self.num_classes - 1}, got {got}")
        return images, targets.long()

    def _divide(self, total: int) -> None:
        """Make numbers of images of ``val_size`` and ``train_size``."""
        self.num_val = _count("val_size", self.val_size, 0, total - 1, total)
        self.num_train = rest = total - self.num_val
        if self.train_size is not None:
            self.num_train = _count("train_size", self.train_size, 1, rest, total)
        self._total = total

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Divide the training images, once their number is known: MNIST has 60,000.

        Returns:
            The indices of the images to train on and of those held out: two sorted arrays of int64. One is
            taken from the end of a fixed permutation, the other from its beginning. Each depends on
            ``train_size`` or ``val_size`` alone, and a larger one contains the smaller ones.
        """
        if not self._total:
            raise RuntimeError("the number of training images is not known: call setup() first, as the Trainer does")
        shuffled = np.random.default_rng(0).permutation(self._total)
        return np.sort(shuffled[self._total - self.num_train :]), np.sort(shuffled[: self.num_val])

    def train_order(self, epoch: int) -> Sequence[int] | np.ndarray | Tensor:
        """The order of the training images in an epoch; override it to train in your own.

        It is not called with ``overfit_batches``: the order is then the dataset's.

        Args:
            epoch: The number of the epoch, from 0.

        Returns:
            As many indices into ``train_dataset`` as it has images. By default, this is a random
            permutation that depends on ``seed`` and ``epoch`` alone.
        """
        # numpy mixes the two numbers. torch's own sampler adds them, so that epoch 1 of seed 0 has the same order as
        # epoch 0 of seed 1.
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_train)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images in the order of :meth:`train_order`; with ``overfit_batches``, in the dataset's order.

        Each pass over the loader is the next epoch. A Trainer, Fabric or ``loader.sampler.set_epoch(epoch)``
        may set the epoch, which then stays until it is set again.
        """
        self.check_processes(self._processes()[0])
        overfit = getattr(self._running(), "overfit_batches", 0)
        return self._dataloader("train_dataset", None if overfit else self._train_order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The images held out, in the dataset's order."""
        return self._dataloader("val_dataset")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in the dataset's order."""
        return self._dataloader("test_dataset")

    predict_dataloader = test_dataloader

    def _dataloader(self, name: str, order: Callable[[int], Any] | None = None) -> DataLoader[Batch]:
        dataset: MNISTDataset | None = getattr(self, name)
        if dataset is None:
            raise RuntimeError(f"{name} is not loaded: call setup() first, as the Trainer does")
        trainer = self._running()
        if trainer is not None:
            dtype = trainer.lightning_module.dtype
            dataset = dataset.to(trainer.strategy.root_device, dtype if isinstance(dtype, torch.dtype) else None)
        return DataLoader(
            dataset,
            # One item of the sampler is a whole batch of indices. `batch_size=None` would say the same, but Lightning
            # then no longer tells a BasePredictionWriter which images it has predicted.
            batch_size=1,
            sampler=GlobalBatchSampler(dataset, self.batch_size, order, *(self._processes() if trainer else ())),
            collate_fn=itemgetter(0),
            # A loader draws a seed for its workers each time it is iterated over. With a generator of its own, it
            # leaves the random numbers of the model alone.
            generator=_OwnGenerator(),
        )

    def _train_order(self, epoch: int) -> Sequence[int] | np.ndarray | Tensor:
        # A loader may have been made before the processes were connected.
        self.check_processes(self._processes()[0])
        return self.train_order(epoch)

    def _running(self) -> Trainer | None:
        """The Trainer that asks for loaders, if one does: it stays attached after it has ended."""
        return None if self.trainer is None or self.trainer.state.stopped else self.trainer

    def _processes(self) -> tuple[int, int]:
        trainer = self._running()
        return connected_processes() if trainer is None else (trainer.world_size, trainer.global_rank)

    def check_processes(self, processes: int) -> None:
        """Check that this many processes can share every batch of an epoch.

        Raises:
            InputError: If they cannot.
        """
        rest = self.num_train % self.batch_size
        if self.batch_size % processes:
            raise InputError(
                f"batch_size is the batch of all processes together and must be a multiple of their number: "
                f"{self.batch_size} cannot be shared evenly by {processes} processes"
            )
        if 0 < rest < processes:
            raise InputError(
                f"the last batch of an epoch has {rest} images, too few for {processes} processes; "
                "choose another batch_size, val_size or train_size"
            )
        if 0 < self.num_val < processes:
            raise InputError(f"val_size holds out {self.num_val} images, too few for {processes} processes")

    def state_dict(self) -> dict[str, Any]:
        """What a fit must have in common with the one that it resumes: the images, their order, their transforms."""
        return {**self._transforms, **self._fixed(), "dataset": self.name, "classes": list(self.classes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed fit has all of this; for other stages, the data set, its classes and ``transform``.

        Raises:
            InputError: If it has others.
        """
        fit = self.trainer if self.trainer is not None and self.trainer.state.fn == "fit" else None
        # Lightning's Tuner tries batch sizes, and then restores the rest from its own checkpoint of this name.
        if fit is not None and Path(fit.ckpt_path or "").name.startswith(".scale_batch_size_"):
            return
        check_same(state_dict, self._transforms, TRANSFORMS if fit else ["transform"])
        self._check_dataset(state_dict)
        for name, here in self._fixed().items() if fit else ():
            there = state_dict.get(name, here)
            if type(there) is not int or there != here:
                raise InputError(
                    f"{name} {here} contradicts the checkpoint's {shown(there)}: give the one that it was trained "
                    "with, or train anew"
                )

    def _check_dataset(self, state_dict: dict[str, Any]) -> None:
        there = state_dict.get("dataset", "MNIST")  # older checkpoints know no other
        if there != self.name:
            raise InputError(
                f"the checkpoint was trained on {shown(there)}, here the data set is {self.name!r}: give the one that "
                "it was trained on, or train anew"
            )
        classes = state_dict.get("classes", list(self.classes))
        if classes != list(self.classes):
            raise InputError(
                f"the checkpoint was trained on the classes {shown(classes, 100)}, here they are "
                f"{shown(list(self.classes), 100)}: give the data that it was trained on, or train anew"
            )

    def _fixed(self) -> dict[str, int]:
        sizes = {"val_size": self.num_val, "train_size": self.num_train}  # counts, whatever the user gave
        return {**sizes, "batch_size": self.batch_size, "seed": self.seed}

    def check_transforms(self, checkpoint: Mapping[str, Any], names: Sequence[str]) -> None:
        """Check that the transforms are those of a checkpoint, also of one with data of another class.

        Raises:
            InputError: If one is another.
        """
        for state in data_states(checkpoint, type(self).__qualname__):
            check_same(state, self._transforms, names)


class _OwnGenerator(torch.Generator):
    """A generator that another process makes anew: torch 2.14 cannot send the state of one to a spawned process."""

    def __reduce__(self) -> Any:
        return type(self), ()


def _name(dataset: str, emnist_split: str | None) -> str:
    """The key of a data set in ``DATASETS``."""
    if not isinstance(dataset, str) or dataset not in get_args(Name):
        raise InputError(f"dataset must be one of {', '.join(get_args(Name))}, got {dataset!r}")
    splits = get_args(Split) if dataset == "EMNIST" else (None,)
    if emnist_split not in splits:
        right = f"one of {', '.join(splits)} for EMNIST" if dataset == "EMNIST" else f"left out for {dataset}"
        raise InputError(f"emnist_split must be {right}, got {emnist_split!r}")
    return dataset if emnist_split is None else f"{dataset} {emnist_split}"


def _plain(name: str, value: object) -> int | float:
    """A size as a plain number."""
    number = plain_number(value)
    if number is None:
        raise InputError(f"{name} must be a count of images, or a fraction of them below 1.0, got {value!r}")
    return number


def _count(name: str, size: int | float, least: int, most: int, total: int) -> int:
    """The number of images that a size stands for."""
    count = round(size * total) if isinstance(size, float) and 0 <= size < 1 else size
    if isinstance(count, int) and least <= count <= most and bool(count) == bool(size):
        return count
    why = "so that images are left to train on" if name == "val_size" else "the images that val_size leaves"
    raise InputError(
        f"{name} must be a count from {least:,} to {most:,}, {why}, or a fraction below 1.0 of the {total:,} "
        f"training images that gives such a count, got {size!r}"
    )
