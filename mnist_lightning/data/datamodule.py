"""MNIST, or another data set of images, as a LightningDataModule."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lightning.data.dataset import Batch, MNISTDataset, collate
from mnist_lightning.data.datasets import DATASETS, PACKAGED, Name, Split, checked, load_images, split_images
from mnist_lightning.data.same_data import TRANSFORMS, compare_with_state, data_state
from mnist_lightning.data.sampler import Order, make_loader
from mnist_lightning.errors import InputError, check
from mnist_lightning.safe_checkpoints import SafeCheckpoints


class MNISTDataModule(SafeCheckpoints, LightningDataModule):
    """MNIST as it ships in this package: 60,000 images to train on, 10,000 to test on. Or another data set.

    A batch is ``(images, targets)``: ``(B, 1, 28, 28)`` float in [0, 1], ``uint8 / 255`` in the model's dtype, or what
    ``transform`` makes of them; and ``(B,)`` int64 in 0 ... 9. Every epoch takes each image once, with one process as
    with many: 60,000 images are 468 batches of 128 and one of 96. To train in an order of your own, override
    :meth:`train_order`. For images of your own, override :meth:`load`.

    Args:
        data_dir: Your own torchvision root, the folder that contains ``MNIST/raw``. By default, the package's.
        batch_size: Images in a batch, over all processes of a Trainer together.
        val_size: Training images to hold out for validation: a count, or a fraction below 1. Which images they are
            depends on this number alone. With 0, there is no validation.
        seed: The seed of the order of the training images.
        train_size: How many of the other images to train on: a count, or a fraction of all training images; by
            default all. A larger number adds images to those of a smaller one.
        train_transform: A function that changes each batch of training images, and no others. It takes
            ``(B, 1, 28, 28)`` float in [0, 1], on the model's device, and returns a tensor of that shape.
            ``torchvision.transforms.v2`` draws anew for each batch, but once for all images of a batch.
        transform: A function that changes each batch of images of all splits, before ``train_transform``. It returns
            ``(B, ...)`` float, such as normalised or padded images. A checkpoint records both functions by name or
            ``repr``, and a ``fit`` does not go on with others.
        dataset: Another data set than MNIST, whose files are in ``data_dir``. CIFAR's images are ``(B, 3, 32, 32)``.
        emnist_split: Which of EMNIST's characters, such as ``"letters"``; for ``dataset="EMNIST"`` only.
        download: Whether torchvision may download files that are missing in ``data_dir``.
        num_workers: Processes of a loader. They gain nothing here: the images are in memory.
        pin_memory: As for a ``DataLoader``. It gains nothing here: the pixels are moved to the GPU once.

    Attributes:
        name: What the images are called: ``dataset``, with EMNIST's split.
        classes: The names of the classes.
        image_shape: Channels, height and width of an image in the files.

    Raises:
        InputError: If an argument cannot be used; from ``setup``, if the files are missing or damaged.
    """

    never_from_checkpoints = ("download", *TRANSFORMS)
    name: str = "MNIST"
    classes: tuple[str, ...] = DATASETS["MNIST"].classes
    image_shape: tuple[int, ...] = DATASETS["MNIST"].image_shape
    train_dataset: MNISTDataset = None  # type: ignore[assignment]  # until setup("fit")
    val_dataset: MNISTDataset = None  # type: ignore[assignment]  # it stays None without images held out
    test_dataset: MNISTDataset = None  # type: ignore[assignment]  # until setup("test")

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
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        check("batch_size", batch_size, batch_size >= 1, "at least 1")
        check("seed", seed, seed >= 0, "0 or above")
        # Not to the logger: Lightning refuses to log one name with two values, the model's and the data's.
        self.save_hyperparameters(logger=False, ignore=self.never_from_checkpoints)
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self.train_size = train_size
        self.train_transform = train_transform
        self.transform = transform
        self.download = download
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._images: dict[Any, Batch] = {}  # what was read, by `data_dir` and split
        if dataset != "MNIST" or emnist_split is not None:
            self.name = f"{dataset} {emnist_split or ''}".strip()
            right = ", ".join(key for key in DATASETS if key.startswith(str(dataset))) or ", ".join(DATASETS)
            check("dataset (with emnist_split)", self.name, self.name in DATASETS, f"one of {right}")
            _, self.classes, self.image_shape = DATASETS[self.name]
        if data_dir is None and (download or self.name != "MNIST"):
            where = f"{self.name} needs data_dir, the folder that holds {DATASETS[self.name].folder}"
            raise InputError(f"{where}: only MNIST is in the package")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def prepare_data(self) -> None:
        """Have torchvision download the files that are missing, if ``download`` allows it."""
        if self.download and self.data_dir is not None:
            for train in (True, False):
                load_images(self.name, self.data_dir, train, download=True)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the images of the files; override it to read your own, and set ``classes`` and ``image_shape``, too.

        Args:
            train: Whether to read the training images or the test images.

        Returns:
            The pixels, ``(N, *image_shape)`` uint8 in 0 ... 255, or ``(N, H, W)`` if they are grey; and the classes,
            ``(N,)`` int64 from 0, or -1 if the class of a test image is not known.
        """
        return load_images(self.name, PACKAGED if self.data_dir is None else self.data_dir, train)

    def setup(self, stage: str | None = None) -> None:
        """Make the datasets of a stage, or of all stages. The images are read once."""
        check("stage", stage, stage in (None, "fit", "validate", "test", "predict"), "fit, validate, test or predict")
        if stage in (None, "fit", "validate"):
            images, targets = self._read(train=True)
            train, val = split_images(len(images), self.val_size, self.train_size)
            held_out = MNISTDataset(images[val], targets[val], self.transform)
            self.val_dataset = held_out if len(val) else None  # type: ignore[assignment]  # as above
            if len(train) < len(images):
                images, targets = images[train], targets[train]
            self.train_dataset = MNISTDataset(images, targets, self.transform, self.train_transform)
        if stage in (None, "test", "predict"):
            self.test_dataset = MNISTDataset(*self._read(train=False), self.transform)

    def _read(self, train: bool) -> Batch:
        key = self.data_dir, train
        if key not in self._images:
            try:
                self._images[key] = checked(*self.load(train), self.image_shape, self.num_classes)
            except OSError as error:
                raise InputError(f"the images cannot be read: {error}") from error
        return self._images[key]

    def train_order(self, epoch: int) -> Sequence[int] | np.ndarray | Tensor:
        """The order of the training images in an epoch, counted from 0; override it to train in your own.

        With ``overfit_batches``, the order is the dataset's.

        Returns:
            As many indices into ``train_dataset`` as it has images. By default, this is a random permutation that
            depends on ``seed`` and ``epoch`` alone.
        """
        # numpy mixes the two numbers. torch's own sampler adds them, so that epoch 1 of seed 0 has the same order as
        # epoch 0 of seed 1.
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.train_dataset))

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images in the order of :meth:`train_order`. Each pass over the loader is the next epoch."""
        overfit = getattr(self._running_trainer(), "overfit_batches", 0)
        return self._loader("train_dataset", None if overfit else self.train_order)

    def val_dataloader(self) -> Any:
        """The images held out, in the dataset's order; no loader for a ``fit`` without such images."""
        if self.train_dataset is not None and self.val_dataset is None:
            trainer = self._running_trainer()
            if trainer is not None and trainer.state.fn == "fit":
                return []
            raise InputError("there are no images to validate on: give val_size, such as val_size=10_000")
        return self._loader("val_dataset")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in the dataset's order."""
        return self._loader("test_dataset")

    predict_dataloader = test_dataloader

    def _loader(self, name: str, order: Order | None = None) -> DataLoader[Batch]:
        dataset: MNISTDataset | None = getattr(self, name)
        if dataset is None:
            stage = {"train_dataset": "fit", "val_dataset": "validate"}.get(name, "test")
            raise RuntimeError(f"{name} is not loaded: call setup({stage!r}) first, as the Trainer does")
        options = {"num_workers": self.num_workers, "pin_memory": self.pin_memory}
        return make_loader(dataset, self.batch_size, order, self._running_trainer(), **options)

    def _running_trainer(self) -> Trainer | None:
        """The Trainer that asks for loaders, if one does: it stays attached after it has ended."""
        return None if self.trainer is None or self.trainer.state.stopped else self.trainer

    def sample(self, count: int = 16) -> Batch:
        """The first training images and their classes, to look at, as a batch. Both transforms have changed them."""
        self.setup("fit")
        return collate(self.train_dataset.__getitems__(range(len(self.train_dataset))[:count]))

    def state_dict(self) -> dict[str, Any]:
        return data_state(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        compare_with_state(self, state_dict)

    def __repr__(self) -> str:
        arguments = [f"{name}={getattr(self, name, self.hparams.get(name))!r}" for name in (*self.hparams, *TRANSFORMS)]
        return f"{type(self).__name__}({', '.join(arguments)})"
