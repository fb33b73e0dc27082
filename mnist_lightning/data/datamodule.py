"""MNIST as a LightningDataModule."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lightning.data.dataset import Batch, MNISTDataset
from mnist_lightning.data.idx_files import PACKAGED, TRAIN_IMAGES, load_mnist
from mnist_lightning.data.sampler import GlobalBatchSampler, connected_processes
from mnist_lightning.data.transforms import TRANSFORMS, check_same, record
from mnist_lightning.errors import InputError, plain_number, shown, whole_number
from mnist_lightning.files import PlainCheckpoints


class MNISTDataModule(PlainCheckpoints, LightningDataModule):
    """MNIST as it ships in this package: 60,000 images to train on, 10,000 to test on.

    A batch is ``(images, targets)``: ``(B, 1, 28, 28)`` float in [0, 1], ``uint8 / 255``
    in the model's dtype, or what ``transform`` makes of them; and ``(B,)`` int64 in 0 ... 9.
    Every epoch takes each image once. Its order depends on ``seed`` and the epoch alone, on one
    process as on many. Its last batch is smaller: 60,000 images are 468 batches of 128 and one of 96.

    To train in an order of your own, override :meth:`train_order`.

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
            gives other figures. A checkpoint records it, too. A Trainer
            with a ``ckpt_path`` refuses another in every stage, and so does ``load_from_checkpoint``. This
            cannot be checked for weights that come without this data: from ``load_from_checkpoint`` of the
            model, with loaders instead of the data module, or with a data module of another class.

    Raises:
        InputError: If an argument is out of range, or if there is anything but MNIST in ``data_dir``.
    """

    num_classes = 10
    classes = tuple("0123456789")

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
    ) -> None:
        super().__init__()
        if data_dir is not None and (not isinstance(data_dir, (str, os.PathLike)) or not os.fspath(data_dir)):
            raise InputError(f"data_dir must be the path of a folder, got {data_dir!r}")
        data_dir = None if data_dir is None else str(data_dir)
        val_size, self.num_val = _size("val_size", val_size, 0, TRAIN_IMAGES - 1)
        self.num_train = TRAIN_IMAGES - self.num_val
        if train_size is not None:
            train_size, self.num_train = _size("train_size", train_size, 1, self.num_train)
        batch_size = whole_number("batch_size", batch_size, 1, 2**32 - 1)
        seed = whole_number("seed", seed, 0, 2**32 - 1)
        transforms = {"train_transform": train_transform, "transform": transform}
        for name, function in transforms.items():
            if function is not None and not callable(function):
                raise InputError(f"{name} must be None or a callable, got {function!r}")
        # Not to the logger: Lightning refuses a model whose hyper-parameters have the same names and other values.
        self.save_hyperparameters(logger=False, ignore=TRANSFORMS)
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self.train_size = train_size
        self.train_transform = train_transform
        self.transform = transform
        self._transforms = record(transforms)  # now, before a call can change a transform's repr
        self.train_dataset: MNISTDataset | None = None
        self.val_dataset: MNISTDataset | None = None
        self.test_dataset: MNISTDataset | None = None
        if not self.num_val and type(self).val_dataloader is MNISTDataModule.val_dataloader:
            # Lightning validates whenever this method is overridden. With nothing held out, put its own method back.
            self.val_dataloader = partial(LightningDataModule.val_dataloader, self)  # type: ignore[method-assign]  # for the reason above

    __init__.__doc__ = __doc__  # without one, help() says nothing of the arguments

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change an argument, which would be ignored; Lightning's Tuner may change the batch size."""
        if name in ("data_dir", "val_size", "seed", "train_size", *TRANSFORMS) and name in vars(self):
            raise InputError(f"{name} cannot change: make another {type(self).__name__}({name}={shown(value)})")
        if name == "batch_size":
            self.hparams["batch_size"] = value = whole_number(name, value, 1, 2**32 - 1)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        arguments = [f"{name}={value!r}" for name, value in self.hparams.items()]
        arguments += [f"{name}={self._transforms[name]}" for name in TRANSFORMS]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def sample(self, count: int = 16) -> Batch:
        """The first images of ``train_dataset`` and their digits, to look at, as a batch.

        The images are what a network would see in training: both transforms have changed them.

        Raises:
            InputError: If there are fewer images.
        """
        self.setup("fit")
        assert self.train_dataset is not None
        return self.train_dataset[: whole_number("count", count, 1, len(self.train_dataset))]

    def setup(self, stage: str) -> None:
        """Load the images of a stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""
        if stage == "validate" and "val_dataloader" in vars(self):
            raise InputError(
                "there are no images to validate on: give val_size, such as MNISTDataModule(val_size=10_000)"
            )
        for name in TRANSFORMS:
            self.hparams.pop(name, None)  # a subclass's own save_hyperparameters() puts it there
        root = PACKAGED if self.data_dir is None else self.data_dir
        if stage in ("fit", "validate") and self.train_dataset is None:
            images, targets = load_mnist(root, train=True)
            if stage == "fit":  # a fault in the test images is reported before the training; this takes 16 ms
                load_mnist(root, train=False)
            train, val = self.split()
            if len(val):
                self.val_dataset = MNISTDataset(images[val], targets[val], self.transform)
            if len(train) < TRAIN_IMAGES:
                images, targets = images[train], targets[train]
            self.train_dataset = MNISTDataset(images, targets, self.transform, self.train_transform)
        if stage in ("test", "predict") and self.test_dataset is None:
            self.test_dataset = MNISTDataset(*load_mnist(root, train=False), self.transform)

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Divide the 60,000 training images.

        Returns:
            The indices of the images to train on and of those held out: two sorted arrays of int64. One is
            taken from the end of a fixed permutation, the other from its beginning. Each depends on
            ``train_size`` or ``val_size`` alone, and a larger one contains the smaller ones.
        """
        shuffled = np.random.default_rng(0).permutation(TRAIN_IMAGES)
        return np.sort(shuffled[TRAIN_IMAGES - self.num_train :]), np.sort(shuffled[: self.num_val])

    def train_order(self, epoch: int) -> Sequence[int] | np.ndarray | Tensor:
        """The order of the training images in an epoch; override it to train in your own.

        With ``overfit_batches``, nobody asks it: as any loader's, the order is then the dataset's.

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
        may tell the epoch; it then holds until they tell another.
        """
        self.check_processes(self._processes()[0])
        overfit = getattr(self._running(), "overfit_batches", 0)
        return self._dataloader("train_dataset", None if overfit else self._train_order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The images held out, in the dataset's order."""
        return self._dataloader("val_dataset")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The 10,000 test images in the dataset's order."""
        return self._dataloader("test_dataset")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The 10,000 test images in the dataset's order."""
        return self._dataloader("test_dataset")

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
        return {**self._transforms, **self._fixed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed fit has the data of its checkpoint, and anything else its ``transform``.

        Raises:
            InputError: If it has others.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            self.check_transform(state_dict, ["transform"])
            return
        # Lightning's Tuner tries batch sizes, and then restores the rest from its own checkpoint of this name.
        if Path(self.trainer.ckpt_path or "").name.startswith(".scale_batch_size_"):
            return
        self.check_transform(state_dict)
        for name, here in self._fixed().items():
            there = state_dict.get(name, here)
            if type(there) is not int or there != here:
                raise InputError(
                    f"{name} {here} contradicts the checkpoint's {shown(there)}: give the one that it was trained "
                    "with, or train anew"
                )

    def _fixed(self) -> dict[str, int]:
        sizes = {"val_size": self.num_val, "train_size": self.num_train}  # counts, whatever the user gave
        return {**sizes, "batch_size": self.batch_size, "seed": self.seed}

    def check_transform(self, state_dict: dict[str, Any], names: Sequence[str] = TRANSFORMS) -> None:
        """Check that the transforms are those with which a state was saved.

        Raises:
            InputError: If one is another.
        """
        check_same(state_dict, self._transforms, names)


class _OwnGenerator(torch.Generator):
    """A generator that another process makes anew: torch 2.14 cannot send the state of one to a spawned process."""

    def __reduce__(self) -> Any:
        return type(self), ()


def _size(name: str, value: object, least: int, most: int) -> tuple[int | float, int]:
    """A size as a plain number, and the number of images that it stands for."""
    number = plain_number(value)
    count = round(number * TRAIN_IMAGES) if isinstance(number, float) and 0 <= number < 1 else number
    if number is not None and isinstance(count, int) and least <= count <= most and bool(count) == bool(number):
        return number, count
    why = "so that images are left to train on" if name == "val_size" else "the images that val_size leaves"
    raise InputError(
        f"{name} must be a count from {least:,} to {most:,}, {why}, or a fraction below 1.0 of the {TRAIN_IMAGES:,} "
        f"training images that gives such a count, got {value!r}"
    )
