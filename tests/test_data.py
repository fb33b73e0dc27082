"""The data: what is in a batch, in which order, where it comes from, and who may use it."""

import copy
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.data import PACKAGED, GlobalBatchSampler
from mnist_lightning.data.datasets import DATASETS, load_images
from mnist_lightning.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

FEW = 59_000
"""A ``val_size`` that leaves 1,000 images to train on: epochs that take no time."""


def loaded(stage: str = "fit", **kwargs: Any) -> MNISTDataModule:
    data = MNISTDataModule(**kwargs)
    data.setup(stage)
    return data


class Everything(LightningModule):
    """Keeps the batches of all stages, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.batches.setdefault(stage, []).append(batch)
        return self.layer.weight.sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.keep("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.keep("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.keep("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.keep("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Seen(Callback):
    """The training batches as the Trainer hands them to the model, and the sizes of the batches it validated."""

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.validated.append(len(args[1][1]))


# ------------------------------------------------------------------ batches


def test_an_epoch_is_468_batches_of_128_images_and_a_last_one_of_96(mnist: Callable) -> None:
    data = loaded()
    loader = data.train_dataloader()
    assert len(loader) == 469
    sizes, digits = [], []
    for images, targets in loader:
        assert images.shape == (len(targets), 1, 28, 28)
        assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert images.min() == 0
        assert images.max() == 1
        sizes.append(len(targets))
        digits.append(targets)
    assert sizes == [128] * 468 + [96]
    assert torch.equal(torch.cat(digits), torch.from_numpy(mnist("train")[1].astype(int)[data.train_order(0)]))


@pytest.mark.parametrize(("stage", "name"), [("test", "test_dataloader"), ("predict", "predict_dataloader")])
def test_the_test_images_come_in_their_own_order(stage: str, name: str, mnist: Callable) -> None:
    batches = list(getattr(loaded(stage), name)())
    pixels, digits = mnist("t10k")
    assert len(digits) == 10_000
    assert torch.equal(torch.cat([targets for _, targets in batches]), torch.from_numpy(digits.astype(int)))
    assert np.array_equal(torch.cat([images for images, _ in batches])[:, 0], pixels.astype("f4") / np.float32(255))


def test_an_item_of_the_dataset_is_one_image_and_its_digit(mnist: Callable) -> None:
    dataset = loaded().train_dataset
    pixels, digits = mnist("train")
    assert len(dataset) == 60_000
    for index in (0, 1, 59_999):
        image, target = dataset[index]
        assert (image.shape, image.dtype) == ((1, 28, 28), torch.float32)
        assert (target.shape, target.dtype) == ((), torch.int64)
        assert np.array_equal(image[0], pixels[index].astype("f4") / np.float32(255))
        assert target == digits[index]


@pytest.mark.parametrize("transform", [None, lambda images: images.flip(3)], ids=["plain", "flipped"])
@pytest.mark.parametrize(
    "index",
    [slice(128), slice(None, None, -7), [3, 1, -1], [], np.array([5, 3, 5]), np.arange(4)[::-1], np.arange(60_000) < 9],
    ids=["slice", "slice backwards", "list", "empty list", "array", "array backwards", "mask"],
)
def test_several_indices_are_a_batch_of_their_images(transform: Any, index: Any, mnist: Callable) -> None:
    dataset = loaded(train_transform=transform).train_dataset
    images, targets = dataset[index]
    pixels, digits = mnist("train")
    rows = np.arange(60_000)[index]
    wanted = pixels[rows][:, :, ::-1] if transform else pixels[rows]
    assert (images.shape, images.dtype) == ((len(rows), 1, 28, 28), torch.float32)
    assert (targets.shape, targets.dtype) == ((len(rows),), torch.int64)
    assert np.array_equal(images[:, 0], wanted.astype("f4") / np.float32(255))
    assert np.array_equal(targets, digits[rows])


@pytest.mark.parametrize("index", [60_000, -60_001, [0, 60_000], np.array([60_000])], ids=repr)
def test_an_index_beyond_the_images_is_refused(index: Any) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        loaded().train_dataset[index]


def test_pixels_stay_uint8_in_memory(trainer: Callable) -> None:
    data = MNISTDataModule(val_size=FEW)
    trainer(limit_val_batches=1).fit(MNISTClassifier(8), datamodule=data)
    assert data.train_dataset.images.dtype == torch.uint8
    assert data.val_dataset.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.bfloat16)]
)
def test_pixels_are_divided_in_the_dtype_of_the_model(
    precision: str, dtype: torch.dtype, trainer: Callable, mnist: Callable
) -> None:
    data, seen = MNISTDataModule(), Seen()
    trainer(precision=precision, callbacks=[seen], limit_train_batches=3).fit(MNISTClassifier(8), datamodule=data)
    images = torch.cat([images for images, _ in seen.batches])
    pixels = mnist("train")[0][data.train_order(0)[: len(images)]]
    assert images.dtype == dtype
    assert set(np.unique(pixels)) == set(range(256))
    if dtype == torch.bfloat16:  # numpy has none; to nearest from float64, once
        assert torch.equal(images[:, 0], torch.from_numpy(pixels / 255).to(dtype))
    else:
        wanted = pixels.astype(images.numpy().dtype) / images.numpy().dtype.type(255)
        assert np.array_equal(images[:, 0], wanted)


def test_outside_a_trainer_pixels_have_the_default_dtype(mnist: Callable) -> None:
    data = loaded("test")
    torch.set_default_dtype(torch.float64)
    try:
        images, _ = next(iter(data.test_dataloader()))
        image, _ = data.test_dataset[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert images.dtype == image.dtype == torch.float64
    assert np.array_equal(images[:, 0], mnist("t10k")[0][:128] / 255)


# -------------------------------------------------------------------- order


@pytest.mark.parametrize("val_size", [0, 10_000])
def test_an_epoch_takes_each_image_once(val_size: int) -> None:
    data = loaded(val_size=val_size)
    sampler: Any = data.train_dataloader().sampler
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert sorted(np.concatenate([*sampler])) == list(range(60_000 - val_size))
        assert len(data.train_dataset) == 60_000 - val_size


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    order = MNISTDataModule(seed=3).train_order(2)
    torch.manual_seed(2)
    again = MNISTDataModule(seed=3, batch_size=17)
    again.train_order(0)
    assert np.array_equal(order, again.train_order(2))


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = [tuple(MNISTDataModule(seed=seed).train_order(epoch)) for seed in range(3) for epoch in range(3)]
    # Among them epoch 1 of seed 0 and epoch 0 of seed 1, which torch's own sampler gives the same order.
    assert len(set(orders)) == 9
    # Nor are they shifted copies: two random orders agree in about one place.
    for other in orders[1:]:
        assert np.count_nonzero(np.equal(orders[0], other)) < 20


def test_the_trainer_walks_through_the_orders_epoch_by_epoch(trainer: Callable, mnist: Callable) -> None:
    data, seen = MNISTDataModule(val_size=FEW, seed=5), Seen()
    trainer(max_epochs=3, limit_val_batches=0, callbacks=[seen]).fit(MNISTClassifier(8), datamodule=data)
    digits = mnist("train")[1].astype(int)[data.split()[0]]
    wanted = np.concatenate([digits[data.train_order(epoch)] for epoch in range(3)])
    assert np.array_equal(torch.cat([targets for _, targets in seen.batches]), wanted)


def test_a_module_of_ones_own_trains_on_an_order_of_ones_own(trainer: Callable, mnist: Callable) -> None:
    class Backwards(MNISTDataModule):
        def train_order(self, epoch: int) -> list[int]:
            return list(range(59_999, -1, -1)) if epoch == 0 else [7] * 60_000

    seen = Seen()
    trainer(max_epochs=2, limit_train_batches=2, callbacks=[seen]).fit(MNISTClassifier(8), datamodule=Backwards())
    digits = mnist("train")[1]
    assert torch.cat([targets for _, targets in seen.batches[:2]]).tolist() == digits[::-1][:256].tolist()
    assert torch.cat([targets for _, targets in seen.batches[2:]]).tolist() == [digits[7]] * 256


@pytest.mark.parametrize(
    "change",
    [
        lambda order: order[::-1],
        lambda order: order.astype(np.uint16),
        lambda order: torch.from_numpy(order),
        lambda order: order.tolist(),
        lambda order: range(60_000),
    ],
    ids=["reversed view", "uint16", "tensor", "list", "range"],
)
def test_an_order_may_be_any_sequence_of_whole_numbers(change: Callable) -> None:
    class Changed(MNISTDataModule):
        def train_order(self, epoch: int) -> Any:
            return change(super().train_order(epoch))

    data = Changed()
    data.setup("fit")
    assert np.concatenate([*data.train_dataloader().sampler]).tolist() == [int(index) for index in data.train_order(0)]


@pytest.mark.parametrize(
    "order",
    [
        np.arange(59_999),
        np.arange(60_001),
        np.arange(60_000).reshape(2, -1),
        np.arange(60_000) + 1,
        np.arange(60_000) - 1,
        np.arange(60_000.0),
        np.arange(60_000) % 2 == 0,
        [],
        [list(range(60_000))],
    ],
    ids=["short", "long", "two-dimensional", "too high", "negative", "floats", "mask", "empty", "nested"],
)
def test_a_wrong_order_is_refused(order: Any) -> None:
    class Wrong(MNISTDataModule):
        def train_order(self, epoch: int) -> Any:
            return order

    data = Wrong()
    data.setup("fit")
    with pytest.raises(InputError, match="order of epoch 0 must be 60000 indices from 0 to 59999"):
        next(iter(data.train_dataloader()))


def test_loaders_leave_the_global_random_numbers_alone() -> None:
    data = loaded(val_size=FEW)
    data.setup("test")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002  # numpy's global one
    for _ in range(2):
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002  # as above


# ------------------------------------------------------------ shared batches


@settings(database=None, deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 4))
def test_processes_share_every_batch_without_rest_or_repetition(n: int, batch_size: int, processes: int) -> None:
    order = np.random.default_rng(n).permutation(n)
    samplers = [GlobalBatchSampler(range(n), batch_size, lambda _: order, processes, rank) for rank in range(processes)]
    shares = [[share.tolist() for share in sampler] for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    for number, start in enumerate(range(0, n, batch_size)):
        batch = order[start : start + batch_size].tolist()
        taken = [share[number] for share in shares if number < len(share)]
        assert [index for share in taken for index in share] == batch
        assert max(map(len, taken)) - (min(map(len, taken)) if len(taken) == processes else 0) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 128}, "batch_size .* multiple of their number: 128 cannot be shared evenly by 3 processes"),
        ({"batch_size": 3, "val_size": 59_000 - 1}, "last batch of an epoch has 2 images, too few for 3 processes"),
        ({"batch_size": 3, "train_size": 2}, "last batch of an epoch has 2 images, too few for 3 processes"),
        ({"batch_size": 6, "val_size": 2}, "val_size holds out 2 images, too few for 3 processes"),
    ],
)
def test_batches_that_processes_cannot_share_are_refused(arguments: Any, message: str, trainer: Callable) -> None:
    data = loaded(**arguments)
    data.trainer = trainer(devices=3, strategy="ddp_spawn")
    with pytest.raises(InputError, match=message):
        data.train_dataloader()


@pytest.mark.parametrize(("overfit_batches", "batches"), [(2, 2), (1.0, 3)])
def test_overfit_batches_takes_the_same_images_in_every_epoch(
    overfit_batches: float, batches: int, trainer: Callable, mnist: Callable
) -> None:
    data, seen = MNISTDataModule(train_size=300, val_size=200), Seen()
    fit = trainer(max_epochs=2, overfit_batches=overfit_batches, num_sanity_val_steps=0, callbacks=[seen])
    fit.fit(MNISTClassifier(8), datamodule=data)  # a warning that its sampler is replaced would be an error here
    digits = mnist("train")[1].astype(int)[data.split()[0]]
    assert [len(targets) for _, targets in seen.batches] == [128, 128, 44][:batches] * 2
    assert torch.cat([targets for _, targets in seen.batches]).tolist() == [*digits[: 128 * batches]] * 2
    assert seen.validated == [128, 72] * 2


class Written(BasePredictionWriter):
    """What Lightning tells a user's own writer of the images that were predicted."""

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        self.sizes = [len(batch) for batch in predictions]
        self.indices = [np.hstack(batch).tolist() for batch in batch_indices[0]]


def test_a_writer_of_predictions_is_told_their_images(trainer: Callable) -> None:
    writer = Written("epoch")
    trainer(callbacks=[writer], limit_predict_batches=2).predict(MNISTClassifier(8), datamodule=MNISTDataModule())
    assert writer.sizes == [128, 128]
    assert writer.indices == [[*range(128)], [*range(128, 256)]]


# --------------------------------------------------------------- validation


def test_which_images_are_held_out_depends_on_val_size_alone() -> None:
    split = MNISTDataModule(val_size=10_000).split()
    for other in (
        MNISTDataModule(val_size=10_000, seed=9, batch_size=7),
        MNISTDataModule(val_size=1 / 6),
        MNISTDataModule(val_size=10_000, data_dir="elsewhere"),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(split, other.split(), strict=True))


@pytest.mark.parametrize(
    ("val_size", "held_out"),
    [(0, 0), (0.0, 0), (1, 1), (10_000, 10_000), (0.1, 6_000), (0.25, 15_000), (59_999, 59_999)],
)
def test_a_count_or_a_fraction_of_the_images_is_held_out(val_size: float, held_out: int) -> None:
    train, val = MNISTDataModule(val_size=val_size).split()
    assert (len(train), len(val)) == (60_000 - held_out, held_out)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(60_000))


def test_a_larger_split_holds_out_the_images_of_a_smaller_one_and_more() -> None:
    held_out = [set(MNISTDataModule(val_size=n).split()[1].tolist()) for n in (1, 100, 10_000, 0.5)]
    for smaller, larger in pairwise(held_out):
        assert smaller < larger


@pytest.mark.parametrize(("size", "part"), [("train_size", 0), ("val_size", 1)])
def test_fewer_images_and_those_held_out_are_a_random_draw(size: str, part: int, mnist: Callable) -> None:
    counts = np.bincount(mnist("train")[1][MNISTDataModule(**{size: 10_000}).split()[part]])
    assert counts.min() > 800
    assert counts.max() < 1_200


def test_training_and_validation_images_are_those_of_the_split(mnist: Callable) -> None:
    data = loaded(val_size=10_000)
    pixels, digits = mnist("train")
    for dataset, index in zip((data.train_dataset, data.val_dataset), data.split(), strict=True):
        assert np.array_equal(dataset.images[:, 0], pixels[index])
        assert np.array_equal(dataset.targets, digits[index])
    assert torch.equal(torch.cat([targets for _, targets in data.val_dataloader()]), data.val_dataset.targets)


def test_without_a_split_there_is_no_validation(trainer: Callable) -> None:
    seen = Seen()
    trainer(limit_train_batches=2, callbacks=[seen]).fit(MNISTClassifier(8), datamodule=MNISTDataModule())
    assert seen.validated == []


def test_with_a_split_every_epoch_ends_with_a_validation(trainer: Callable) -> None:
    seen = Seen()
    fit = trainer(max_epochs=2, limit_train_batches=2, num_sanity_val_steps=0, callbacks=[seen])
    fit.fit(MNISTClassifier(8), datamodule=MNISTDataModule(val_size=300))
    assert seen.validated == [128, 128, 44] * 2


def test_a_module_of_ones_own_validates_without_a_split(trainer: Callable) -> None:
    class OnTestImages(MNISTDataModule):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            super().setup("test")

        def val_dataloader(self) -> DataLoader:
            return self.test_dataloader()

    seen = Seen()
    fit = trainer(limit_train_batches=2, num_sanity_val_steps=0, callbacks=[seen])
    fit.fit(MNISTClassifier(8), datamodule=OnTestImages())
    assert sum(seen.validated) == 10_000


# --------------------------------------------------- which images are trained on


def test_which_images_are_trained_on_depends_on_train_size_alone() -> None:
    train = MNISTDataModule(train_size=1_000).split()[0]
    for other in ({"val_size": 10_000}, {"val_size": 59_000}, {"seed": 9, "batch_size": 7}):
        assert np.array_equal(train, MNISTDataModule(train_size=1_000, **other).split()[0])


@pytest.mark.parametrize(
    ("train_size", "val_size"), [(1, 0), (100, 59_900), (50_000, 10_000), (60_000, 0), (30_000, 0.5)]
)
def test_train_size_images_are_trained_on_and_none_of_those_held_out(train_size: int, val_size: float) -> None:
    data = MNISTDataModule(train_size=train_size, val_size=val_size)
    train, val = data.split()
    assert len(train) == data.num_train == train_size
    assert np.array_equal(train, np.unique(train))
    assert np.array_equal(val, MNISTDataModule(val_size=val_size).split()[1])
    assert not set(train.tolist()) & set(val.tolist())


def test_all_images_that_are_left_are_the_same_as_no_train_size() -> None:
    for val_size in (0, 10_000):
        one, other = (
            MNISTDataModule(val_size=val_size),
            MNISTDataModule(val_size=val_size, train_size=60_000 - val_size),
        )
        assert np.array_equal(one.split()[0], other.split()[0])
        assert np.array_equal(one.train_order(1), other.train_order(1))


def test_a_larger_train_size_has_the_images_of_a_smaller_one_and_more() -> None:
    trained = [set(MNISTDataModule(train_size=n).split()[0].tolist()) for n in (1, 100, 10_000, 59_999, None)]
    for smaller, larger in pairwise(trained):
        assert smaller < larger


@pytest.mark.parametrize("val_size", [0, 500])
def test_an_epoch_takes_each_of_the_fewer_images_once(val_size: int, mnist: Callable) -> None:
    data = loaded(train_size=300, val_size=val_size)
    pixels, digits = mnist("train")
    index = data.split()[0]
    assert np.array_equal(data.train_dataset.images[:, 0], pixels[index])
    batches = [targets for _, targets in data.train_dataloader()]
    assert [len(targets) for targets in batches] == [128, 128, 44]
    assert np.array_equal(torch.cat(batches), digits[index][data.train_order(0)])
    assert (data.val_dataset is None) == (val_size == 0)


def test_fewer_images_than_a_batch_are_one_small_batch(trainer: Callable) -> None:
    seen = Seen()
    trainer(callbacks=[seen], max_epochs=2).fit(MNISTClassifier(8), datamodule=MNISTDataModule(train_size=7))
    assert [len(targets) for _, targets in seen.batches] == [7, 7]


# ------------------------------------------------------------------ transforms


def halved(images: Tensor) -> Tensor:
    return images / 2


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_training_images_are_transformed_a_batch_at_a_time_and_no_others(precision: str, trainer: Callable) -> None:
    given = []

    def transform(images: Tensor) -> Tensor:
        given.append((tuple(images.shape), images.dtype))
        return images.double() / 2  # comes back in the model's dtype

    plain, changed = Seen(), Seen()
    for seen, train_transform in ((plain, None), (changed, transform)):
        data = MNISTDataModule(train_size=300, val_size=100, train_transform=train_transform)
        fit = trainer(callbacks=[seen], precision=precision)
        fit.fit(MNISTClassifier(8), datamodule=data)
        for call in (fit.validate, fit.test, fit.predict):
            call(MNISTClassifier(8), datamodule=data)
    dtype = plain.batches[0][0].dtype
    assert given == [((n, 1, 28, 28), dtype) for n in (128, 128, 44)]
    for (images, targets), (halves, same) in zip(plain.batches, changed.batches, strict=True):
        assert torch.equal(halves, images / 2)
        assert halves.dtype == dtype
        assert torch.equal(targets, same)


def test_an_item_of_the_training_images_is_transformed_as_a_batch_of_one() -> None:
    plain, data = loaded(), loaded(train_transform=lambda images: images.flip(2, 3)[:, :1].clone())
    image, target = data.train_dataset[3]
    assert torch.equal(image, plain.train_dataset[3][0].flip(1, 2))
    assert target == plain.train_dataset[3][1]


def test_a_transform_may_change_its_batch_in_place_and_leaves_the_pixels_alone() -> None:
    data = loaded(train_size=10, train_transform=lambda images: images.zero_())
    assert not next(iter(data.train_dataloader()))[0].any()
    assert not data.train_dataset[0][0].any()
    assert data.train_dataset.images.any()


@pytest.mark.parametrize(
    ("transform", "got"),
    [
        (lambda images: images.flatten(1), r"torch.float32 of shape \(10, 784\)"),
        (lambda images: images[:5], r"torch.float32 of shape \(5, 1, 28, 28\)"),
        (lambda images: (images * 255).to(torch.uint8), r"torch.uint8 of shape \(10, 1, 28, 28\)"),
        (lambda images: images.numpy(), "ndarray"),
        (lambda images: None, "NoneType"),
    ],
    ids=["flat", "fewer", "uint8", "numpy", "nothing"],
)
def test_a_transform_that_returns_something_else_is_refused(transform: Any, got: str) -> None:
    data = loaded(train_size=10, train_transform=transform)
    wanted = r"^train_transform must return a float tensor of shape \(10, 1, 28, 28\), like its input, got "
    with pytest.raises(InputError, match=wanted + got):
        next(iter(data.train_dataloader()))


class Brightened:
    """Without a ``repr`` of its own."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, images: Tensor) -> Tensor:
        return images**self.gamma


@pytest.mark.parametrize(
    ("transform", "description"),
    [
        (None, None),
        (halved, f"{__name__}.halved"),
        (Brightened(0.5), f"{__name__}.Brightened(gamma=0.5)"),
        (partial(halved), "functools.partial(<function halved>)"),
        (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), "Sequential( (0): ReLU() (1): Dropout(p=0.5, inplace=False) )"),
    ],
    ids=["none", "function", "object", "partial", "module"],
)
def test_a_fit_goes_on_with_the_transform_of_its_checkpoint_alone(
    transform: Any, description: str | None, trainer: Callable, tmp_path: Path
) -> None:
    def fit(train_transform: Any, ckpt_path: Path | None, epochs: int) -> Trainer:
        made = trainer(max_epochs=epochs, limit_train_batches=1)
        data = MNISTDataModule(train_size=20, train_transform=train_transform)
        made.fit(MNISTClassifier(8), datamodule=data, ckpt_path=ckpt_path)
        return made

    path = tmp_path / "a.ckpt"
    fit(transform, None, 1).save_checkpoint(path)
    assert torch.load(path, weights_only=True)["MNISTDataModule"]["train_transform"] == description
    fit(copy.deepcopy(transform), path, 2)
    for other in {None, halved, Brightened(0.25)} - {transform}:
        with pytest.raises(
            InputError, match=rf"trained with train_transform {re.escape(repr(description))}, here it is"
        ):
            fit(other, path, 2)
    for stage in ("validate", "test", "predict"):
        made = trainer(limit_test_batches=1, limit_predict_batches=1)
        data = MNISTDataModule(val_size=10, train_transform=halved)
        getattr(made, stage)(MNISTClassifier(8), datamodule=data, ckpt_path=path)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_the_images_of_every_split_are_transformed_and_those_to_train_on_after_that(
    precision: str, trainer: Callable, mnist: Callable
) -> None:
    given, dtype = [], torch.float64 if precision == "64-true" else torch.float32

    def normalised(images: Tensor) -> Tensor:
        given.append((tuple(images.shape[1:]), images.dtype))
        return F.pad((images.double() - 0.1307) / 0.3081, (2, 2, 2, 2))  # comes back in the model's dtype

    def turned(images: Tensor) -> Tensor:
        given.append((tuple(images.shape[1:]), images.dtype))
        return images.flip(3)

    data = MNISTDataModule(train_size=300, val_size=200, transform=normalised, train_transform=turned)
    few = {"limit_test_batches": 2, "limit_predict_batches": 2, "num_sanity_val_steps": 0}
    model, fit = Everything().to(dtype), trainer(precision=precision, **few)
    fit.fit(model, datamodule=data)
    fit.test(model, datamodule=data)
    fit.predict(model, datamodule=data)
    train, val = data.split()
    order = train[np.random.default_rng((0, 0)).permutation(300)]
    rows = {"train": ("train", order), "val": ("train", val), "test": ("t10k", np.arange(256))}
    rows["predict"] = rows["test"]
    assert model.batches.keys() == rows.keys()
    for stage, (split, indices) in rows.items():
        pixels, digits = mnist(split)
        wanted = np.full((len(indices), 1, 32, 32), 0.0)
        scaled = (pixels[indices] / np.ones((), np.dtype(str(dtype)[6:])) / 255).astype(np.float64)
        wanted[:, 0, 2:30, 2:30] = (scaled - 0.1307) / 0.3081
        images = torch.cat([images for images, _ in model.batches[stage]])
        assert images.dtype == dtype
        np.testing.assert_allclose(images, wanted[..., ::-1] if stage == "train" else wanted, atol=1e-6)
        assert np.array_equal(torch.cat([targets for _, targets in model.batches[stage]]), digits[indices])
    assert set(given) == {((1, 28, 28), dtype), ((1, 32, 32), dtype)}
    assert len(given) == 3 + 3 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (lambda images: images.flatten(1), (784,)),
        (lambda images: images.expand(-1, 3, -1, -1), (3, 28, 28)),
        (lambda images: F.pad(images, (2, 2, 2, 2)), (1, 32, 32)),
        (lambda images: images.mean((1, 2, 3)), ()),
        (lambda images: torch.from_numpy(images.numpy()), (1, 28, 28)),
    ],
    ids=["flat", "three channels", "padded", "numbers", "numpy"],
)
def test_the_transform_of_all_splits_may_return_another_shape(transform: Any, shape: tuple[int, ...]) -> None:
    plain, data = loaded(train_size=10), loaded(train_size=10, transform=transform)
    images, targets = data.train_dataset[:10]
    assert images.shape == (10, *shape)
    assert torch.equal(images, transform(plain.train_dataset[:10][0]))
    assert torch.equal(targets, plain.train_dataset.targets)
    assert torch.equal(data.train_dataset[3][0], images[3])
    assert data.train_dataset[[]][0].shape == (0, *shape)
    assert torch.equal(data.sample(4)[0], images[:4])
    assert torch.equal(data.train_dataset.images, plain.train_dataset.images)


@pytest.mark.parametrize(
    ("transform", "got"),
    [
        (lambda images: images[:5], r"torch.float32 of shape \(5, 1, 28, 28\)"),
        (lambda images: images.sum(), r"torch.float32 of shape \(\)"),
        (lambda images: (images * 255).to(torch.uint8), r"torch.uint8 of shape \(10, 1, 28, 28\)"),
        (lambda images: images.numpy(), "ndarray"),
    ],
    ids=["fewer", "number", "uint8", "numpy"],
)
def test_a_transform_of_all_splits_that_returns_something_else_is_refused(transform: Any, got: str) -> None:
    data = loaded(train_size=10, transform=transform)
    with pytest.raises(InputError, match=r"^transform must return a float tensor of shape \(10, ...\), .*, got " + got):
        next(iter(data.train_dataloader()))


def test_the_transform_for_training_keeps_the_shape_that_the_other_gave() -> None:
    data = loaded(train_size=10, transform=lambda x: F.pad(x, (2, 2, 2, 2)), train_transform=lambda x: x[..., :28, :28])
    with pytest.raises(
        InputError, match=r"^train_transform .* \(10, 1, 32, 32\), like its input, got .*\(10, 1, 28, 28\)"
    ):
        next(iter(data.train_dataloader()))


def checkpoint_of(trainer: Callable, path: Path, data: MNISTDataModule) -> Path:
    fit = trainer(limit_train_batches=1)
    fit.fit(MNISTClassifier(8), datamodule=data)
    fit.save_checkpoint(path)
    return path


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("trained", [None, Brightened(0.5)], ids=["plain", "brightened"])
def test_a_network_goes_on_with_the_transform_of_its_checkpoint_alone(
    trained: Any, stage: str, trainer: Callable, tmp_path: Path
) -> None:
    def run(transform: Any) -> None:
        data = MNISTDataModule(train_size=20, val_size=20, transform=transform)
        made = trainer(max_epochs=2, limit_train_batches=1, limit_test_batches=1, limit_predict_batches=1)
        getattr(made, stage)(MNISTClassifier(8), datamodule=data, ckpt_path=path)

    path = checkpoint_of(trainer, tmp_path / "a.ckpt", MNISTDataModule(train_size=20, val_size=20, transform=trained))
    run(copy.deepcopy(trained))
    there = repr(f"{__name__}.Brightened(gamma=0.5)" if trained else None)
    for other in {None, halved, Brightened(0.25)} - {trained}:
        with pytest.raises(InputError, match=rf"trained with transform {re.escape(there)}, here it is"):
            run(other)


def test_a_checkpoint_that_has_no_transform_was_trained_without(trainer: Callable, tmp_path: Path) -> None:
    path = checkpoint_of(trainer, tmp_path / "a.ckpt", MNISTDataModule(train_size=20))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["MNISTDataModule"]["transform"]  # as before there was one
    torch.save(checkpoint, path)
    made = trainer(limit_test_batches=1)
    made.test(MNISTClassifier(8), datamodule=MNISTDataModule(), ckpt_path=path)
    with pytest.raises(InputError, match=r"^the checkpoint was trained with transform None, here it is '.*halved': "):
        made.test(MNISTClassifier(8), datamodule=MNISTDataModule(transform=halved), ckpt_path=path)
    for state in ({"theirs": 1}, None):  # of a user's own class, or of no data module: nothing is known
        checkpoint["MNISTDataModule"] = state
        torch.save({name: part for name, part in checkpoint.items() if part is not None}, path)
        made.test(MNISTClassifier(8), datamodule=MNISTDataModule(transform=halved), ckpt_path=path)


def test_the_data_of_a_checkpoint_are_not_loaded_without_their_transform(trainer: Callable, tmp_path: Path) -> None:
    path = checkpoint_of(trainer, tmp_path / "a.ckpt", MNISTDataModule(train_size=20, transform=halved))
    with pytest.raises(InputError, match=r"^the checkpoint was trained with transform '.*halved', here it is None: "):
        MNISTDataModule.load_from_checkpoint(path)
    assert MNISTDataModule.load_from_checkpoint(path, transform=halved).transform is halved


def test_a_checkpoint_that_says_nothing_of_a_transform_is_resumed(trainer: Callable, tmp_path: Path) -> None:
    one = trainer(limit_train_batches=1)
    one.fit(MNISTClassifier(8), datamodule=MNISTDataModule(train_size=20))
    one.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del checkpoint["MNISTDataModule"]  # as it was before there were any
    torch.save(checkpoint, tmp_path / "a.ckpt")
    two = trainer(max_epochs=2, limit_train_batches=1)
    two.fit(MNISTClassifier(8), datamodule=MNISTDataModule(train_size=20), ckpt_path=tmp_path / "a.ckpt")
    assert two.global_step == 2


# -------------------------------------------------------------------- files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A torchvision root with a copy of the files."""
    shutil.copytree(PACKAGED / "MNIST" / "raw", tmp_path / "root" / "MNIST" / "raw")
    return tmp_path / "root"


def test_a_folder_of_the_users_own_is_read_and_never_written(root: Path, mnist: Callable) -> None:
    def state() -> dict[str, Any]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]}

    before = state()
    assert len(before) == 7
    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for stage in ("fit", "validate", "test", "predict"):
            data = loaded(stage, data_dir=root, val_size=100)
    finally:
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert state() == before
    assert np.array_equal(data.test_dataset.images[:, 0], mnist("t10k")[0])


def test_the_packaged_files_are_read_in_place() -> None:
    files = sorted((PACKAGED / "MNIST").rglob("*"))
    before = [(file, file.stat().st_mtime_ns) for file in files]
    for train in (True, False):
        load_images("MNIST", PACKAGED, train)
    assert [(file, file.stat().st_mtime_ns) for file in sorted((PACKAGED / "MNIST").rglob("*"))] == before
    assert set(DATASETS["MNIST"].checksums) == {file.name for file in files if file.parent.name == "raw"}


DAMAGES: dict[str, Any] = {
    "missing": None,
    "empty": lambda content: b"",
    "header cut short": lambda content: content[:6],
    "header alone": lambda content: content[: 4 + 4 * content[3]],
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"0",
    "one byte": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "another number": lambda content: content[:7] + bytes([content[7] ^ 1]) + content[8:],
    "huge numbers": lambda content: content[:4] + b"\xff" * 4 * content[3] + content[4 + 4 * content[3] :],
    "another shape": lambda content: content[:4] + content[8:12] + content[4:8] + content[12:],
    "int8": lambda content: content[:2] + b"\x09" + content[3:],
    "no type": lambda content: content[:2] + b"\x0a" + content[3:],
    "rank 255": lambda content: content[:3] + b"\xff" + content[4:],
    "no IDX file": lambda content: b"<!doctype html>",
}


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [*DAMAGES, "folder", "not ours to read"])
def test_files_that_are_not_mnist_are_refused_in_one_line_by_name(root: Path, name: str, damage: str) -> None:
    path = root / "MNIST" / "raw" / name
    content = path.read_bytes()
    if damage == "not ours to read":
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    else:
        path.unlink()
    if damage == "folder":
        path.mkdir()
    elif DAMAGES.get(damage):
        path.write_bytes(DAMAGES[damage](content))
    for stage in ("fit",) if name.startswith("train") else ("fit", "test", "predict"):
        with pytest.raises(InputError) as caught:
            loaded(stage, data_dir=root)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert message.startswith(f"no MNIST in {str(root)!r}: {name} ")
        assert "copy in the package" in message
        assert ("is missing" in message) == (damage == "missing")
        assert ("cannot be read" in message) == (damage in ("folder", "not ours to read"))


@pytest.mark.parametrize("images", [torch.uint8, torch.int8])
@pytest.mark.parametrize("targets", [lambda digits: digits + 256, lambda digits: digits.float()], ids=["256", "float"])
def test_what_an_old_torchvision_left_in_processed_is_never_read(
    root: Path, images: torch.dtype, targets: Callable, mnist: Callable
) -> None:
    (root / "MNIST" / "processed").mkdir()
    for split, name in (("train", "training"), ("t10k", "test")):
        pixels, digits = (torch.from_numpy(values) for values in mnist(split))
        torch.save((pixels.to(images), targets(digits.long())), root / "MNIST" / "processed" / f"{name}.pt")
    data = loaded(data_dir=root)
    data.setup("test")
    for dataset, split in ((data.train_dataset, "train"), (data.test_dataset, "t10k")):
        pixels, digits = mnist(split)
        assert (dataset.images.dtype, dataset.targets.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(dataset.images[:, 0], pixels)
        assert np.array_equal(dataset.targets, digits)


@pytest.mark.parametrize("data_dir", ["nowhere", __file__])
def test_a_folder_without_mnist_is_refused_in_one_line(data_dir: str) -> None:
    with pytest.raises(InputError, match=r"no MNIST in .* is missing; data_dir must be a folder with") as caught:
        loaded(data_dir=data_dir)
    assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments",
    [
        *({"batch_size": value} for value in (0, -1, True, np.True_, 2.5, "128", None)),
        *({"seed": value} for value in (-1, True, 1.0, "0", None)),
        *({"val_size": value} for value in (-1, 60_000, 60_001, 1.0, 1.5, -0.1, float("nan"), True, "0.1", None)),
        {"val_size": 0.999999},
        *({"train_size": value} for value in (0, -1, 60_001, 2.5, 0.0, True, "5")),
        *({name: value} for name in ("train_transform", "transform") for value in (3, "flip", [len])),
        {"data_dir": ""},
        {"data_dir": 5},
    ],
    ids=repr,
)
def test_an_argument_out_of_range_is_refused_by_name_and_value(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"^{name} must be") as caught:
        MNISTDataModule(**arguments)
    assert repr(value) in str(caught.value) or value == ""
    assert len(str(caught.value).splitlines()) == 1


def test_more_images_than_there_are_beside_those_held_out_are_refused() -> None:
    with pytest.raises(InputError, match=r"^train_size must be a count from 1 to 50,000, .*, got 50001"):
        MNISTDataModule(val_size=10_000, train_size=50_001)


def test_hyper_parameters_are_kept_as_plain_values() -> None:
    plain = {"data_dir": str(Path("some") / "where"), "batch_size": 64, "val_size": 0.5, "seed": 3, "train_size": 20}
    data = MNISTDataModule(**{**plain, "data_dir": Path("some") / "where"}, train_transform=halved, transform=halved)
    plain |= {"dataset": "MNIST", "emnist_split": None}
    assert dict(data.hparams) == plain  # and not the transforms, which are code
    assert [type(data.hparams[name]) for name in plain] == [str, int, float, int, int, str, type(None)]
    swept = {"batch_size": np.int64(64), "val_size": np.float32(0.5), "seed": np.uint8(3), "train_size": np.int32(20)}
    numpys = MNISTDataModule(**swept).hparams
    assert dict(numpys) == {**plain, "data_dir": None}
    assert [type(numpys[name]) for name in swept] == [int, float, int, int]
    assert type(MNISTDataModule(val_size=np.int64(5)).val_size) is int
    default = {"data_dir": None, "batch_size": 128, "val_size": 0, "seed": 0, "train_size": None}
    assert dict(MNISTDataModule().hparams) == {**default, "dataset": "MNIST", "emnist_split": None}


class OwnRoot(MNISTDataModule):
    """A user's subclass with a Path among its arguments."""

    def __init__(self, data_dir: Path, note: str = "") -> None:
        super().__init__(data_dir=data_dir)


class OwnHyperParameters(MNISTDataModule):
    """A user's subclass that saves its arguments, whatever they are."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()


def transform_of(data: MNISTDataModule) -> dict[str, Any]:
    return {} if data.transform is None else {"transform": data.transform}


@pytest.mark.parametrize(
    "make",
    [
        lambda: MNISTDataModule(data_dir=PACKAGED, batch_size=64, val_size=0.25, seed=3),
        lambda: MNISTDataModule(batch_size=np.int64(64), val_size=np.float64(0.25)),
        lambda: MNISTDataModule(train_size=20, train_transform=halved),
        lambda: OwnRoot(PACKAGED),
        lambda: OwnHyperParameters(data_dir=PACKAGED, train_size=20, train_transform=halved, transform=halved),
    ],
    ids=["Path", "numpy's numbers", "transform", "subclass", "subclass with hyper-parameters"],
)
def test_a_checkpoint_with_this_data_loads_weights_only(make: Callable, trainer: Callable, tmp_path: Path) -> None:
    data = make()
    fit = trainer(limit_train_batches=1, limit_val_batches=1)
    fit.fit(MNISTClassifier(8), datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert kept == {**data.hparams, "data_dir": None if data.data_dir is None else str(PACKAGED)}
    again = type(data).load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, **transform_of(data))
    again.setup("fit")
    assert dict(again.hparams) == kept


def test_loaders_before_setup_say_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"train_dataset is not loaded: call setup\(\) first"):
        MNISTDataModule().train_dataloader()


# -------------------------------------------------------------- other users


class ConvolutionalNetwork(LightningModule):
    """Somebody else's, with hyper-parameters that are called like the data's."""

    def __init__(self, batch_size: int = 1, seed: str = "mine", val_size: float = 7.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_another_module_with_hyper_parameters_of_the_same_names_trains(trainer: Callable, tmp_path: Path) -> None:
    model, data = ConvolutionalNetwork(), MNISTDataModule(val_size=FEW)
    fit = trainer(logger=CSVLogger(tmp_path), max_epochs=4, limit_val_batches=8, log_every_n_steps=1)
    fit.fit(model, datamodule=data)
    assert fit.callback_metrics["val"] < 1.5  # 2.3 untrained
    assert (model.hparams["batch_size"], data.hparams["batch_size"]) == (1, 128)
    assert "seed: mine" in next(tmp_path.rglob("hparams.yaml")).read_text()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12's, as pytest-xdist has threads
@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.skipif(sys.platform != "linux", reason="fork"))]
)
def test_a_plain_dataloader_gives_the_same_pairs(workers: int) -> None:
    dataset = loaded("test").test_dataset
    context = {"multiprocessing_context": "fork"} if workers else {}
    batches = iter(DataLoader(dataset, batch_size=32, num_workers=workers, **context))
    for first in (0, 32):
        images, targets = next(batches)
        assert (images.shape, images.dtype) == ((32, 1, 28, 28), torch.float32)
        assert (targets.shape, targets.dtype) == ((32,), torch.int64)
        for offset in range(32):
            image, target = dataset[first + offset]
            assert torch.equal(images[offset], image)
            assert targets[offset] == target


@pytest.mark.parametrize("val_size", [0, 100])
def test_a_data_module_can_be_copied_and_sent_to_another_process(val_size: int) -> None:
    data = loaded("test", val_size=val_size, seed=3)
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert dict(twin.hparams) == dict(data.hparams)
        assert np.array_equal(twin.train_order(1), data.train_order(1))
        assert torch.equal(twin.test_dataset[9_999][0], data.test_dataset[9_999][0])


# ------------------------------------------------------------------- import

WATCHED = """
import logging, os, pathlib, random, signal, sys, warnings
{before}
import numpy, torch

def state():
    every = logging.root.manager.loggerDict.items()
    loggers = {{name: logger for name, logger in every if isinstance(logger, logging.Logger)}}
    return {{
        "environment": dict(os.environ),
        "files": sorted(map(str, pathlib.Path.cwd().rglob("*"))),
        "folder": os.getcwd(),
        "warnings": list(map(str, warnings.filters)),
        "logging": {{name: (logger.level, logger.propagate, len(logger.handlers)) for name, logger in loggers.items()}},
        "root": (logging.root.level, list(logging.root.handlers)),
        "torch": (torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),
                  torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        "random": (random.getstate(), str(numpy.random.get_state())),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "path": list(sys.path),
        "hooks": (sys.excepthook, sys.displayhook),
    }}

before = state()
import mnist_lightning
from mnist_lightning import MNISTClassifier, MNISTDataModule
import mnist_lightning.files, mnist_lightning.runs.folder, mnist_lightning.runs.progress
import mnist_lightning.results.predictions, mnist_lightning.results.report_callback
after = state()
new = set(after["logging"]) - set(before["logging"])
for name in new:
    del after["logging"][name]
for name in before:
    assert before[name] == after[name], f"{{name}}: {{before[name]}} became {{after[name]}}"
"""


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # Not this process's environment, which an import here may have changed already.
    plain = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP", "TMP", "USERPROFILE")
    env = {name: os.environ[name] for name in plain if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_importing_the_package_changes_nothing_and_prints_nothing(tmp_path: Path) -> None:
    before = "import torch, lightning.pytorch, torchvision.datasets, torchmetrics.classification"
    done = run_python(WATCHED.format(before=before), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_bare_import_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, mnist_lightning; print(sorted({'torch', 'lightning', 'numpy', 'torchvision'} & set(sys.modules)))"
    )
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
