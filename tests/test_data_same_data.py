"""What a checkpoint records of its data, and what a fit that goes on with it must have in common."""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchvision.transforms import v2

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.data.same_data import check_same_data, transform_name
from mnist_lightning.errors import InputError


def halved(images: Tensor) -> Tensor:
    return images / 2


class Brightened:
    """Without a ``repr`` of its own."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, images: Tensor) -> Tensor:
        return images**self.gamma


NAMES: list[tuple[Any, str | None]] = [
    (None, None),
    (halved, f"{__name__}.halved"),
    (lambda images: images, f"{__name__}.<lambda>"),
    (Brightened(0.5), f"{__name__}.Brightened(gamma=0.5)"),
    (partial(halved), "functools.partial(<function halved>)"),
    (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), "Sequential( (0): ReLU() (1): Dropout(p=0.5, inplace=False) )"),
    (v2.RandomHorizontalFlip(0.25), "RandomHorizontalFlip(p=0.25)"),
]


@pytest.mark.parametrize(("transform", "name"), NAMES, ids=[str(name) for _, name in NAMES])
def test_a_transform_is_recorded_by_its_name_and_its_parameters(transform: Any, name: str | None) -> None:
    assert MNISTDataModule(transform=transform).state_dict()["transform"] == name
    assert MNISTDataModule(train_transform=copy.deepcopy(transform)).state_dict()["train_transform"] == name


@pytest.mark.parametrize("name", ["train_transform", "transform"])
@pytest.mark.parametrize("trained", [None, halved, Brightened(0.5)], ids=["none", "function", "object"])
def test_a_fit_goes_on_with_its_own_transform_alone(name: str, trained: Any, trainer: Callable, tmp_path: Path) -> None:
    def fit(transform: Any, ckpt_path: Path | None = None) -> Trainer:
        made = trainer(max_epochs=2 if ckpt_path else 1)
        data = MNISTDataModule(train_size=20, **{name: transform})
        made.fit(MNISTClassifier(8), datamodule=data, ckpt_path=ckpt_path)
        return made

    path, there = tmp_path / "a.ckpt", re.escape(repr(transform_name(trained)))
    fit(trained).save_checkpoint(path)
    fit(copy.deepcopy(trained), path)
    for other in {None, halved, Brightened(0.25)} - {trained}:
        with pytest.raises(InputError, match=rf"^the checkpoint was trained with {name} {there}, here it is .*: give"):
            fit(other, path)


def test_data_are_checked_against_any_checkpoint_with_data_of_this_kind() -> None:
    here = MNISTDataModule(train_size=20)
    here.setup()
    kept = {"Theirs": here.state_dict(), "state_dict": {"transform": 1}, "loops": {}, "epoch": 3}
    for resume in (True, False):
        check_same_data(kept, here, resume)
    order = {"seed": 3, "batch_size": 1, "train_size": 19, "val_size": 1, "train_transform": "x"}
    for name, value in {**order, "transform": "x", "dataset": "KMNIST", "classes": ["a"]}.items():
        other = {"Theirs": {**here.state_dict(), name: value}}
        for resume in (True, False):
            if name in order and not resume:
                check_same_data(other, here, resume)
                continue
            with pytest.raises(InputError, match=f"^the checkpoint was trained with {name} "):
                check_same_data(other, here, resume)
    old = {name: value for name, value in here.state_dict().items() if name != "dataset"}
    check_same_data({"MNISTDataModule": old}, here, resume=True)  # as before there was another
    with pytest.raises(InputError, match="with dataset 'MNIST', here it is 'KMNIST'"):
        check_same_data({"MNISTDataModule": old}, MNISTDataModule("nowhere", dataset="KMNIST"), resume=False)


@pytest.mark.parametrize("name", ["transform", "train_transform"])
@pytest.mark.parametrize("cls", ["torchvision.transforms.v2.RandomHorizontalFlip", "torch.nn.Identity"])
def test_the_command_names_a_transform_that_draws(name: str, cls: str, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--trainer.limit_train_batches=1", "--trainer.limit_test_batches=1", "--trainer.max_epochs=1"]
    for command in (["fit", *limits, f"--data.{name}={cls}"], ["test", limits[1]]):
        main(command)
        named = "Random   transform draws anew each time, for test images too" in capsys.readouterr().out
        assert named == (name == "transform" and "Random" in cls)
