"""MNIST as a LightningDataModule."""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lightning.data.dataset import Batch, MNISTDataset, _Samples
from mnist_lightning.data.idx_files import PACKAGED, TRAIN_IMAGES, load_mnist
from mnist_lightning.data.sampler import GlobalBatchSampler
from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import plain, plain_file, safely


class MNISTDataModule(LightningDataModule):
    """MNIST as it ships in this package: 60,000 images to train on, 10,000 to test on.

    A batch is ``(images, targets)``: ``(B, 1, 28, 28)`` float in [0, 1], which is ``uint8 / 255``
    computed in the model's dtype, and ``(B,)`` int64 in 0 ... 9. Every epoch holds each image once;
    its order follows from ``(seed, epoch)`` alone, on one process as on many, and its last batch
    holds what is left (96 of 60,000 at 128 a batch).

    To train on an order of your own, override :meth:`train_order`.

    Args:
        data_dir: Your own torchvision root (the folder that holds ``MNIST/raw``), read and never
            written; by default the copy inside the package.
        batch_size: Images in a batch, over all processes together.
        val_size: Training images to hold out for validation: a count, or a fraction below 1. Which
            ones they are depends on this number alone. 0 holds out none: no validation loop.
        seed: What the order of the training images follows from.
        train_size: How many of the images that are not held out are trained on, 1 ... 60,000 -
            ``val_size``; by default all. Which ones they are depends on this number alone, and a
            larger one trains on the same images and more.
        train_transform: What is done to a batch of training images, and to no others: a callable that
            takes ``(B, 1, 28, 28)`` float in [0, 1], on the device where it is gathered, and returns
            such a tensor. ``torchvision.transforms.v2`` draws once for all images of a batch, anew for
            each batch. It is no hyper-parameter, as a checkpoint holds no code; but a checkpoint
            describes it (a class of your own by its ``repr``), and no fit goes on with another.

    Raises:
        InputError: If an argument is out of range, or if there is anything but MNIST in ``data_dir``.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        val_size: int | float = 0,
        seed: int = 0,
        train_size: int | None = None,
        # It returns a Tensor; but where that stands, jsonargparse takes subclasses of Tensor instead.
        train_transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        if data_dir is not None and (not isinstance(data_dir, (str, os.PathLike)) or not os.fspath(data_dir)):
            raise InputError(f"data_dir must be the path of a folder, got {data_dir!r}")
        data_dir = None if data_dir is None else str(data_dir)
        self.num_val = _count(val_size)
        self.num_train = _train_count(train_size, TRAIN_IMAGES - self.num_val)
        val_size = float(val_size) if isinstance(val_size, float) else val_size  # numpy's is no plain value
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
                raise InputError(f"{name} must be a whole number from {least} to {2**32 - 1}, got {value!r}")
        if train_transform is not None and not callable(train_transform):
            raise InputError(f"train_transform must be None or a callable, got {train_transform!r}")
        # Not to the logger: a model of the user's may have a `batch_size` or `seed` too.
        self.save_hyperparameters(logger=False, ignore=["train_transform"])
        plain(self.hparams)
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self.train_size = train_size
        self.train_transform = train_transform
        self._transform_description = _description(train_transform)  # now: some change as they are called
        self.train_dataset: MNISTDataset | None = None
        self.val_dataset: MNISTDataset | None = None
        self.test_dataset: MNISTDataset | None = None
        if not self.num_val and type(self).val_dataloader is MNISTDataModule.val_dataloader:
            # Lightning plans a validation loop where this method differs from its own (and for an
            # empty loader it warns): without images held out, it is Lightning's own again.
            self.val_dataloader = partial(LightningDataModule.val_dataloader, self)  # type: ignore[method-assign]  # on purpose

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, *args: Any, **kwargs: Any
    ) -> "MNISTDataModule":
        """As Lightning's, but a checkpoint is data: hyper-parameters that are numbers or plain text.

        Raises:
            InputError: If the checkpoint holds anything else for a parameter that is not given here, or if
                ``weights_only=False`` is asked for.
        """
        kwargs = safely(kwargs)
        return super().load_from_checkpoint(
            plain_file(cls, checkpoint_path, map_location, kwargs), None, *args, **kwargs
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the data beside its hyper-parameters: a description of ``train_transform``."""
        return {"train_transform": self._transform_description}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See that a fit goes on with the ``train_transform`` that its checkpoint was trained with.

        Raises:
            InputError: If it would not.
        """
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.check_transform(state_dict)

    def check_transform(self, state_dict: dict[str, Any]) -> None:
        """See that the training images are transformed as they were when a state was saved.

        Raises:
            InputError: If they are not.
        """
        here = self._transform_description
        there = state_dict.get("train_transform", here) if isinstance(state_dict, dict) else state_dict
        if there is not None and type(there) is not str:
            raise InputError(f"the checkpoint's train_transform is {shown(there)}, which describes none: train anew")
        if there != here:
            raise InputError(
                f"the checkpoint was trained with train_transform {shown(there, 200)}, here it is {shown(here, 200)}: "
                "give the one that it was trained with, or train anew"
            )

    def setup(self, stage: str) -> None:
        """Load what a stage needs: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""
        self.hparams.pop("train_transform", None)  # where a subclass's own save_hyperparameters() has put it
        root = PACKAGED if self.data_dir is None else self.data_dir
        if stage in ("fit", "validate") and self.train_dataset is None:
            images, targets = load_mnist(root, train=True)
            if stage == "fit":  # what is wrong with the test images is said before training; it takes 16 ms
                load_mnist(root, train=False)
            train, val = self.split()
            if len(val):
                self.val_dataset = MNISTDataset(images[val], targets[val])
            if len(train) < TRAIN_IMAGES:
                images, targets = images[train], targets[train]
            self.train_dataset = MNISTDataset(images, targets, self.train_transform)
        if stage in ("test", "predict") and self.test_dataset is None:
            self.test_dataset = MNISTDataset(*load_mnist(root, train=False))

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Which of the 60,000 training images are trained on and which held out.

        Returns:
            Two sorted arrays of int64. They depend on ``train_size`` and ``val_size`` alone: a larger
            one takes the same images and more, from its own end of one fixed permutation.
        """
        shuffled = np.random.default_rng(0).permutation(TRAIN_IMAGES)
        return np.sort(shuffled[TRAIN_IMAGES - self.num_train :]), np.sort(shuffled[: self.num_val])

    def train_order(self, epoch: int) -> Sequence[int] | np.ndarray | Tensor:
        """The order in which an epoch takes the training images; override it to train on your own.

        Args:
            epoch: Counted from 0.

        Returns:
            One index into ``train_dataset`` for each image trained on. By default a random
            permutation that follows from ``(seed, epoch)`` alone.
        """
        # numpy mixes the two numbers, where torch's sampler adds them: there, epoch 1 of seed 0
        # has the order of epoch 0 of seed 1, and seeds are no independent draws.
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_train)

    def check_processes(self, processes: int) -> None:
        """See that this many processes can share every batch of an epoch.

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

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images, in the order of :meth:`train_order`; with ``overfit_batches``, always in their own."""
        self.check_processes(self._processes()[0])
        overfit = getattr(self.trainer, "overfit_batches", 0)
        return self._dataloader("train_dataset", None if overfit else self.train_order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The images held out, in their own order."""
        return self._dataloader("val_dataset")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The 10,000 test images in their own order."""
        return self._dataloader("test_dataset")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The 10,000 test images in their own order."""
        return self._dataloader("test_dataset")

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _dataloader(self, name: str, order: Callable[[int], Any] | None = None) -> DataLoader[Batch]:
        dataset: MNISTDataset | None = getattr(self, name)
        if dataset is None:
            raise RuntimeError(f"{name} is not loaded: call setup() first, as the Trainer does")
        if self.trainer is not None:
            dtype = self.trainer.lightning_module.dtype
            dataset.to(self.trainer.strategy.root_device, dtype if isinstance(dtype, torch.dtype) else None)
        processes, rank = self._processes()
        in_sequence = np.arange(len(dataset))
        sampler = GlobalBatchSampler(dataset, self.batch_size, order or (lambda epoch: in_sequence), processes, rank)
        return DataLoader(
            dataset,
            batch_size=max(sampler.share(self.batch_size), 1),  # all processes' batches end at the same images
            sampler=sampler,
            collate_fn=_Samples.collate,
            # A loader draws a seed for its workers whenever it is iterated: from a generator of its
            # own, the model's random numbers do not depend on how often that was.
            generator=torch.Generator(),
        )


def _count(val_size: int | float) -> int:
    """The number of images that ``val_size`` stands for."""
    whole = isinstance(val_size, int) and not isinstance(val_size, bool)
    if whole and 0 <= val_size < TRAIN_IMAGES:
        return int(val_size)
    if isinstance(val_size, float) and 0 <= val_size < 1:
        count = round(val_size * TRAIN_IMAGES)
        if count < TRAIN_IMAGES and (count > 0 or val_size == 0):
            return count
    raise InputError(
        f"val_size must be a count from 0 to {TRAIN_IMAGES - 1:,} or a fraction from 0.0 to below 1.0, so that images "
        f"are left to train on, got {val_size!r}"
    )


def _description(transform: Callable[[Tensor], Any] | None) -> str | None:
    """A transform's name and parameters in one line that is the same in every process."""
    if transform is None:
        return None
    text = repr(transform)
    if hasattr(transform, "__qualname__"):  # a function
        text = f"{transform.__module__}.{transform.__qualname__}"
    elif text == object.__repr__(transform):  # an object without a repr of its own
        parameters = ", ".join(f"{name}={value!r}" for name, value in getattr(transform, "__dict__", {}).items())
        text = f"{type(transform).__module__}.{type(transform).__qualname__}({parameters})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))


def _train_count(train_size: int | None, left: int) -> int:
    """The number of images that ``train_size`` stands for, of those that are not held out."""
    if train_size is None:
        return left
    if isinstance(train_size, bool) or not isinstance(train_size, int) or not 1 <= train_size <= left:
        raise InputError(
            f"train_size must be None (all) or a whole number from 1 to {left:,}, the images that val_size leaves, "
            f"got {train_size!r}"
        )
    return train_size
