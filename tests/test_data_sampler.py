"""The order of an epoch, the loaders that keep it, and the processes that share its batches."""

import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import TrainerStatus
from torch.utils.data import BatchSampler, DataLoader, Subset

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.data.sampler import EpochSampler, SharedSampler, check_processes, make_loader
from mnist_lightning.errors import InputError


def loaded(stage: str | None = "fit", cls: type[MNISTDataModule] = MNISTDataModule, **kwargs: Any) -> MNISTDataModule:
    data = cls(**kwargs)
    data.setup(stage)
    return data


def test_a_loader_is_an_ordinary_one_of_128_images() -> None:
    data = loaded()
    loader: Any = data.train_dataloader()
    assert type(loader) is DataLoader
    assert (loader.batch_size, loader.drop_last, len(loader)) == (128, False, 469)
    assert loader.dataset is data.train_dataset
    assert type(next(iter(loader.sampler))) is int
    assert [len(targets) for _, targets in loader] == [128] * 468 + [96]
    # As Opacus and others build another loader of a loader's parts.
    again = DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn)
    images, targets = next(iter(again))
    assert images.shape == (128, 1, 28, 28)
    assert torch.equal(targets, data.train_dataset.targets[:128])


def test_loaders_leave_the_global_random_numbers_alone() -> None:
    def numbers() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002  # numpy's global one

    data = loaded(None, val_size=59_000)
    before = numbers()
    for _ in range(2):
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            next(iter(loader))
    assert numbers() == before


@pytest.mark.parametrize("val_size", [0, 10_000])
def test_an_epoch_takes_each_image_once_in_the_order_of_its_number(val_size: int) -> None:
    data = loaded(val_size=val_size)
    sampler: Any = data.train_dataloader().sampler
    assert len(sampler) == len(data.train_dataset) == 60_000 - val_size
    for epoch in (3, 3, 0):
        sampler.set_epoch(epoch)
        assert [*sampler] == [*sampler] == data.train_order(epoch).tolist()
        assert sorted(sampler) == [*range(60_000 - val_size)]


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    def orders(**kwargs: Any) -> list[list[int]]:
        modules = [loaded(seed=seed, **kwargs) for seed in range(3)]
        return [data.train_order(epoch).tolist() for data in modules for epoch in range(3)]

    first = orders()
    # Among them epoch 1 of seed 0 and epoch 0 of seed 1, which torch's own sampler gives the same order.
    for other in first[1:]:  # Nor are they shifted copies: two random orders agree in about one place.
        assert np.count_nonzero(np.equal(first[0], other)) < 20
    assert len({*map(tuple, first)}) == 9
    torch.manual_seed(2)
    assert orders(batch_size=17) == first


@pytest.mark.parametrize(
    "order",
    [np.arange(9)[::-1], np.arange(9, dtype=np.uint16), torch.arange(9), [0] * 9, range(9)],
    ids=["reversed view", "uint16", "tensor", "list", "range"],
)
def test_an_order_may_be_any_sequence_of_whole_numbers(order: Any) -> None:
    indices = [*EpochSampler(range(9), lambda epoch: order)]
    assert indices == [int(index) for index in order]
    assert {type(index) for index in indices} == {int}


ORDER = np.arange(9)
WRONG = [
    ORDER[:8],
    np.arange(10),
    ORDER.reshape(3, 3),
    ORDER + 1,
    ORDER - 1,
    ORDER / 1,
    ORDER % 2 == 0,
    [],
    [[*range(9)]],
]


@pytest.mark.parametrize("order", WRONG, ids=str)
def test_a_wrong_order_is_refused(order: Any) -> None:
    class Wrong(MNISTDataModule):
        def train_order(self, epoch: int) -> Any:
            return order

    with pytest.raises(InputError, match=r"^the order of epoch 0 must be 9 indices from 0 to 8, got "):
        next(iter(loaded(cls=Wrong, train_size=9).train_dataloader()))


@pytest.mark.parametrize(
    "by_hand", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore:You requested"))]
)
@pytest.mark.parametrize(("overfit_batches", "batches"), [(2, 2), (1.0, 3)])
def test_overfit_batches_takes_the_same_images_each_time(
    overfit_batches: float, batches: int, by_hand: bool, trainer: Callable, kept: Any
) -> None:
    data, model = loaded(train_size=300, val_size=200), kept()
    given: dict[str, Any] = {"datamodule": data}
    if by_hand:
        given = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    trainer(max_epochs=2, overfit_batches=overfit_batches, num_sanity_val_steps=0).fit(model, **given)
    assert model.sizes("train") == [128, 128, 44][:batches] * 2
    assert model.all("train")[1].tolist() == data.train_dataset.targets[: 128 * batches].tolist() * 2
    assert model.sizes("validate") == [128, 72] * 2


@settings(database=None, deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 10), st.integers(1, 4))
def test_processes_share_every_batch_without_rest_or_repetition(images: int, share: int, processes: int) -> None:
    order, batch_size = np.random.default_rng(images).permutation(images), share * processes
    sampler = EpochSampler(range(images), lambda _: order)
    samplers = [SharedSampler(sampler, batch_size, processes, rank) for rank in range(processes)]
    for one in samplers:
        one.set_epoch(0)
    shares = [[*BatchSampler(one, share, drop_last=False)] for one in samplers]
    assert [len(one) for one in samplers] == [sum(map(len, batches)) for batches in shares]
    for number, start in enumerate(range(0, images, batch_size)):
        taken = [batches[number] if number < len(batches) else [] for batches in shares]
        assert [*chain(*taken)] == order[start : start + batch_size].tolist()
        assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_each_process_has_its_share_of_a_batch_in_a_running_trainer_alone(trainer: Callable) -> None:
    data = loaded(train_size=1_000)
    data.trainer = trainer(devices=4, strategy="ddp_spawn")
    data.trainer.strategy.connect(MNISTClassifier(8))
    loader: Any = data.train_dataloader()
    assert (loader.batch_size, len(loader)) == (32, 8)
    loader.sampler.set_epoch(2)
    assert [*loader.sampler][:33] == np.asarray(data.train_order(2))[[*range(32), 128]].tolist()
    subset = make_loader(Subset(data.train_dataset, range(0, 300, 2)), 128, None, data.trainer)
    assert [len(targets) for _, targets in subset] == [32, 6]
    data.trainer.state.status = TrainerStatus.FINISHED  # it stays attached
    loader = data.train_dataloader()
    assert (loader.batch_size, len(loader), len(loader.sampler)) == (128, 8, 1_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 128}, "batch_size .* multiple of their number: 128 cannot be shared evenly by 3 processes"),
        ({"batch_size": 3, "val_size": 58_999}, "last batch of an epoch has 2 images, too few for 3 processes"),
        ({"batch_size": 3, "train_size": 2}, "last batch of an epoch has 2 images, too few for 3 processes"),
    ],
)
def test_batches_that_processes_cannot_share_are_refused(arguments: Any, message: str, trainer: Callable) -> None:
    data = loaded(**arguments)
    data.trainer = trainer(devices=3, strategy="ddp_spawn")
    data.trainer.training = True
    for ask in (data.train_dataloader, lambda: check_processes(len(data.train_dataset), data.batch_size, 3)):
        with pytest.raises(InputError, match=message):
            ask()
    check_processes(len(data.train_dataset), data.batch_size, 1)
