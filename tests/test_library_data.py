"""A stranger's use of the data module: parts of it, its attributes, its checkpoints, and what a Trainer lets be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, random_split

from mnist_lightning import MNISTClassifier, MNISTDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no images held out
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def loaded(stage: str | None = "fit", **kwargs: Any) -> MNISTDataModule:
    data = MNISTDataModule(**kwargs)
    data.setup(stage)
    return data


def test_parts_of_a_dataset_are_datasets(trainer: Callable) -> None:
    data = loaded(train_size=1_000, val_size=100)
    first, second = random_split(data.train_dataset, [0.8, 0.2])
    both: Any = ConcatDataset([first, second, data.val_dataset])
    digits = sorted(digit for _, digit in both)
    assert digits == sorted(torch.cat([data.train_dataset.targets, data.val_dataset.targets]).tolist())
    made = trainer()
    made.fit(MNISTClassifier(8), DataLoader(first, 100, shuffle=True), DataLoader(second, 100))
    assert made.global_step == 8
    assert "val_acc" in made.callback_metrics


def test_a_setup_that_divides_the_images_gets_all_of_them_each_time(trainer: Callable, kept: Any) -> None:
    class Divided(MNISTDataModule):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            if stage == "fit":
                self.train_dataset, self.val_dataset = random_split(self.train_dataset, [0.5, 0.5])

    data = Divided(train_size=100)
    for _ in range(2):
        model = kept()
        trainer().fit(model, data)
        assert (model.sizes("train"), len(data.val_dataset)) == ([50], 50)
    trainer().test(model, data, verbose=False)
    assert len(data.train_dataset) == 50
    assert data.sample()[0].shape == (16, 1, 28, 28)  # of a Subset


def test_attributes_can_be_set_at_any_time(trainer: Callable, kept: Any) -> None:
    data, model = loaded(None, train_size=20), kept()
    data.seed, data.batch_size = 3, 30
    assert data.train_dataloader().batch_size == 30
    data.train_size, data.val_size, data.transform = 50, 10, torch.neg
    trainer(max_epochs=2).fit(model, data)
    assert model.sizes("train") == [30, 20, 30, 20]
    order = np.random.default_rng((3, 1)).permutation(50)
    assert torch.equal(model.all("train")[1][50:], data.train_dataset.targets[order])
    assert len(data.val_dataset) == 10
    assert data.val_dataset[0][0].min() == -1
    trainer().test(model, data, verbose=False)
    assert data.test_dataset[0][0].min() == -1
    assert "batch_size=30, val_size=10, seed=3, train_size=50" in repr(data)


def test_the_data_say_what_they_are() -> None:
    data = MNISTDataModule(batch_size=32, val_size=0.1)
    assert data.num_classes == 10
    assert data.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert repr(data) == (
        "MNISTDataModule(data_dir=None, batch_size=32, val_size=0.1, seed=0, train_size=None, dataset='MNIST', "
        "emnist_split=None, num_workers=0, pin_memory=False, train_transform=None, transform=None)"
    )
    data = MNISTDataModule(train_transform=nn.ReLU(), transform=nn.Flatten())
    assert repr(data).endswith("train_transform=ReLU(), transform=Flatten(start_dim=1, end_dim=-1))")


def test_a_batch_to_look_at() -> None:
    data = MNISTDataModule(train_size=100, transform=torch.neg, train_transform=nn.Identity())
    images, targets = data.sample(16)  # setup is not the user's concern here
    assert (images.shape, images.dtype, images.min().item()) == ((16, 1, 28, 28), torch.float32, -1)
    assert torch.equal(targets, data.train_dataset.targets[:16])
    assert [len(data.sample(count)[1]) for count in (1, 16, 1_000)] == [1, 16, 100]


class EasiestFirst(MNISTDataModule):
    """As in the README."""

    def train_order(self, epoch: int) -> np.ndarray:
        return np.argsort(self.train_dataset.images.sum(dim=(1, 2, 3)).numpy(), kind="stable")


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_the_datasets_stay_as_they_were_made_whatever_a_trainer_needs(
    accelerator: str, trainer: Callable, kept: Any
) -> None:
    data, model = EasiestFirst(train_size=300, val_size=100), kept()
    fit = trainer(accelerator=accelerator, precision="64-true", max_epochs=2)
    fit.fit(model, data)
    if accelerator == "cpu":  # no second copy of the pixels
        assert fit.train_dataloader.dataset.images.data_ptr() == data.train_dataset.images.data_ptr()
    fit.predict(model, data)
    order = data.train_order(0)
    assert model.all("train")[1].tolist() == data.train_dataset.targets[order].tolist() * 2
    for dataset in (data.train_dataset, data.val_dataset, data.test_dataset):
        assert (dataset.images.dtype, dataset.images.device.type) == (torch.uint8, "cpu")
        images, targets = next(iter(DataLoader(dataset, batch_size=8, shuffle=True)))
        assert (images.dtype, images.device.type, targets.device.type) == (torch.float32, "cpu", "cpu")
    images, _ = next(iter(data.train_dataloader()))  # that Trainer has ended
    assert (images.dtype, images.device.type) == (torch.float32, "cpu")


FIRST = {"val_size": 100, "train_size": 300, "batch_size": 64, "seed": 3}


@pytest.fixture
def checkpoint(trainer: Callable, tmp_path: Path) -> Path:
    fit = trainer()
    fit.fit(MNISTClassifier(8), datamodule=MNISTDataModule(**FIRST))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def resumed(trainer: Callable, checkpoint: Path, **kwargs: Any) -> int:
    fit = trainer(max_epochs=2)
    fit.fit(MNISTClassifier(8), datamodule=MNISTDataModule(**FIRST | kwargs), ckpt_path=checkpoint)
    return fit.global_step


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"val_size": 0}, "val_size 100, here it is 0"),
        ({"train_size": 500}, "train_size 300, here it is 500"),
        ({"train_size": None}, "train_size 300, here it is 59900"),
        ({"batch_size": 10}, "batch_size 64, here it is 10"),
        ({"seed": 7}, "seed 3, here it is 7"),
    ],
)
def test_a_fit_goes_on_with_the_data_of_its_checkpoint_alone(
    change: dict[str, Any], says: str, trainer: Callable, checkpoint: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^the checkpoint was trained with {says}: .* or train anew$"):
        resumed(trainer, checkpoint, **change)


def test_the_same_data_in_other_words_or_in_none_goes_on(trainer: Callable, checkpoint: Path) -> None:
    assert resumed(trainer, checkpoint, val_size=100 / 60_000) == 10
    content = torch.load(checkpoint, weights_only=True)
    content["MNISTDataModule"] = {"train_transform": None, "transform": None}  # as older versions wrote it
    torch.save(content, checkpoint)
    assert resumed(trainer, checkpoint) == 10
    trainer().validate(MNISTClassifier(8), datamodule=MNISTDataModule(val_size=7), ckpt_path=checkpoint)


def test_a_test_of_robustness_is_told_that_its_images_are_others(trainer: Callable, checkpoint: Path) -> None:
    data = MNISTDataModule(transform=nn.Dropout(0.5))
    with pytest.warns(UserWarning, match=r"trained with transform None, here it is 'Dropout\(p=0.5, inplace=False\)'"):
        (noisy,) = trainer().test(MNISTClassifier(8), data, ckpt_path=checkpoint, verbose=False)
    (plain,) = trainer().test(MNISTClassifier(8), MNISTDataModule(), ckpt_path=checkpoint, verbose=False)
    assert noisy["test_loss"] > plain["test_loss"]


def test_data_with_a_transform_are_loaded_from_a_checkpoint_that_has_no_code(trainer: Callable, tmp_path: Path) -> None:
    class Own(MNISTDataModule):
        def __init__(self, transform: Any = None, margin: int = 0) -> None:
            super().__init__(train_size=20, transform=transform)
            self.save_hyperparameters()  # once more, as many write it

    fit = trainer()
    fit.fit(MNISTClassifier(8), Own(torch.neg, margin=3))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    data = Own.load_from_checkpoint(tmp_path / "a.ckpt", transform=torch.neg)
    assert (data.hparams["margin"], data.transform) == (3, torch.neg)
    with pytest.warns(UserWarning, match=r"trained with transform 'torch.*neg', here it is None"):
        assert Own.load_from_checkpoint(tmp_path / "a.ckpt").transform is None


def test_the_tuner_finds_a_batch_size_and_a_learning_rate(trainer: Callable, tmp_path: Path) -> None:
    data, model = MNISTDataModule(train_size=300, val_size=100), MNISTClassifier(8)
    tuned = trainer(default_root_dir=tmp_path)
    assert Tuner(tuned).scale_batch_size(model, datamodule=data, max_trials=3) == data.batch_size != 128
    found = Tuner(trainer(default_root_dir=tmp_path)).lr_find(model, datamodule=MNISTDataModule(), num_training=30)
    assert model.hparams["learning_rate"] == found.suggestion() != 0.001
    tuned.fit(model, datamodule=data)
    assert tuned.optimizers[0].param_groups[0]["lr"] == found.suggestion()
    tuned.save_checkpoint(tmp_path / "a.ckpt")
    assert MNISTDataModule.load_from_checkpoint(tmp_path / "a.ckpt").batch_size == data.batch_size


@pytest.mark.parametrize("make", [MNISTClassifier, MNISTDataModule])
def test_an_instance_cannot_be_loaded(make: Any, checkpoint: Path) -> None:
    with pytest.raises(TypeError, match=f"`{make.__name__}.load_from_checkpoint` cannot be called on an instance"):
        make().load_from_checkpoint(checkpoint)
    assert isinstance(make.load_from_checkpoint(checkpoint), make)
