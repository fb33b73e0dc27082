"""The data module: what setup loads, what its loaders give to a Trainer, and what others may change about it."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.data import PACKAGED
from mnist_lightning.data.datasets import split_images
from mnist_lightning.errors import InputError


def loaded(stage: str | None = "fit", **kwargs: Any) -> MNISTDataModule:
    data = MNISTDataModule(**kwargs)
    data.setup(stage)
    return data


def halved(images: Tensor) -> Tensor:
    return images / 2


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict", None])
def test_setup_loads_the_images_of_a_stage_or_of_all_once(stage: str | None) -> None:
    class Counted(MNISTDataModule):
        def load(self, train: bool) -> tuple[Tensor, Tensor]:
            calls.append(train)
            return super().load(train)

    calls: list[bool] = []
    data, names = Counted(val_size=10), ["train_dataset", "val_dataset", "test_dataset"]
    data.setup(stage)
    wanted = {"fit": names[:2], "validate": names[:2], None: names}.get(stage, names[2:])
    assert [name for name in names if getattr(data, name) is not None] == wanted
    data.setup()
    assert sorted(calls) == [False, True]
    assert [len(getattr(data, name)) for name in names] == [59_990, 10, 10_000]
    with pytest.raises(ValueError, match="stage must be fit, validate, test or predict, got 'train'"):
        data.setup("train")


@pytest.mark.parametrize(("name", "stage"), [("train", "fit"), ("val", "validate"), ("test", "test")])
def test_a_loader_that_is_not_ready_names_the_setup_it_wants(name: str, stage: str) -> None:
    with pytest.raises(RuntimeError, match=rf"_dataset is not loaded: call setup\('{stage}'\) first"):
        getattr(MNISTDataModule(val_size=10), f"{name}_dataloader")()


def test_without_images_held_out_only_a_fit_goes_on(trainer: Callable, kept: Any) -> None:
    data, model, other = MNISTDataModule(train_size=300), kept(), loaded()
    trainer().fit(model, datamodule=data)
    assert {*model.batches} == {"train"}
    other.trainer = trainer()  # Lightning 2.6 leaves torch's DataLoader changed if a loader is refused while it runs
    for ended_or_not_begun in (data, other, loaded("validate")):
        with pytest.raises(InputError, match="there are no images to validate on: give val_size"):
            ended_or_not_begun.val_dataloader()


def test_an_epoch_ends_with_a_validation(trainer: Callable, kept: Any, mnist: Callable) -> None:
    data, model = MNISTDataModule(train_size=200, val_size=300, seed=9), kept()
    trainer(max_epochs=2, num_sanity_val_steps=0).fit(model, datamodule=data)
    assert model.sizes("train") == [128, 72] * 2
    assert model.sizes("validate") == [128, 128, 44] * 2
    pixels, digits = mnist("train")
    for dataset, index in zip((data.train_dataset, data.val_dataset), split_images(60_000, 300, 200), strict=True):
        assert np.array_equal(dataset.images[:, 0], pixels[index])
        assert np.array_equal(dataset.targets, digits[index])
        assert dataset.images.dtype == torch.uint8
    assert model.all("validate")[1].tolist() == data.val_dataset.targets.tolist() * 2
    small = kept()
    trainer(max_epochs=2).fit(small, datamodule=MNISTDataModule(train_size=7))
    assert small.sizes("train") == [7, 7]


@pytest.mark.parametrize(("precision", "workers"), [("32-true", 0), ("64-true", 0), ("bf16-true", 0), ("64-true", 1)])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12's, as pytest-xdist has threads
def test_pixels_are_divided_in_the_model_s_dtype(precision: str, workers: int, trainer: Callable, kept: Any) -> None:
    data, model = MNISTDataModule(train_size=300, num_workers=workers), kept()
    trainer(precision=precision).fit(model, datamodule=data)
    images, pixels = model.all("train")[0], data.train_dataset.images[data.train_order(0)]
    assert images.dtype == {"32": torch.float32, "64": torch.float64, "bf": torch.bfloat16}[precision[:2]]
    assert torch.equal(images, (pixels.double() / 255).to(images.dtype))  # rounded once
    assert data.train_dataset.dtype is None  # a user's own loader has the default dtype


def test_workers_and_pinned_memory_are_handed_to_the_loaders() -> None:
    data = loaded(None, val_size=10, num_workers=2, pin_memory=True)
    for name in ("train", "val", "test", "predict"):
        loader = getattr(data, f"{name}_dataloader")()
        assert (loader.num_workers, loader.pin_memory) == (2, True)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_all_images_are_transformed_and_training_images_once_more(
    precision: str, dtype: torch.dtype, trainer: Callable, kept: Any, mnist: Callable
) -> None:
    given = []

    def normalised(images: Tensor) -> Tensor:
        given.append((*images.shape, images.dtype))
        return F.pad((images.double() - 0.1307) / 0.3081, (2, 2, 2, 2))  # comes back in the model's dtype

    def turned(images: Tensor) -> Tensor:
        given.append((*images.shape, images.dtype))
        return images.flip(3)

    data = MNISTDataModule(train_size=300, val_size=200, transform=normalised, train_transform=turned)
    few = {"limit_test_batches": 2, "limit_predict_batches": 2, "num_sanity_val_steps": 0}
    model, fit = kept(image_shape=(1, 32, 32)), trainer(precision=precision, **few)
    for run in (fit.fit, fit.test, fit.predict):
        run(model, datamodule=data)
    assert given[:6] == [(n, 1, size, size, dtype) for n in (128, 128, 44) for size in (28, 32)]  # a batch at a time
    assert given[6:] == [(n, 1, 28, 28, dtype) for n in (128, 72, 128, 128, 128, 128)]
    train, val = split_images(60_000, 200, 300)
    rows = {"train": train[data.train_order(0)], "validate": val, "test": np.arange(256), "predict": np.arange(256)}
    for stage, indices in rows.items():
        pixels, digits = mnist("train" if stage in ("train", "validate") else "t10k")
        wanted = F.pad(torch.from_numpy((pixels[indices] / 255 - 0.1307) / 0.3081), (2, 2, 2, 2))[:, None]
        images, targets = model.all(stage)
        assert images.dtype == dtype
        np.testing.assert_allclose(images, wanted.flip(3) if stage == "train" else wanted, atol=1e-6)
        assert np.array_equal(targets, digits[indices])


def test_a_writer_of_predictions_is_told_the_number_of_each_image(trainer: Callable) -> None:
    class Written(BasePredictionWriter):
        def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
            self.sizes, self.indices = [len(batch) for batch in predictions], batch_indices

    writer = Written("epoch")
    trainer(callbacks=[writer], limit_predict_batches=2).predict(MNISTClassifier(8), datamodule=MNISTDataModule())
    assert writer.sizes == [128, 128]
    assert writer.indices == [[[*range(128)], [*range(128, 256)]]]


class Own(MNISTDataModule):
    """Lightning's documented pattern: attributes after the base class's, and loaders of one's own."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.data_dir, self.batch_size, self.transform = root, 100, halved

    def setup(self, stage: str | None = None) -> None:
        super().setup()
        self.train_dataset = Subset(self.train_dataset, range(250))

    def val_dataloader(self) -> DataLoader:
        return self.test_dataloader()


def test_a_subclass_may_set_what_it_likes(trainer: Callable, kept: Any, tmp_path: Path, mnist: Callable) -> None:
    (tmp_path / "MNIST").symlink_to(PACKAGED / "MNIST")
    model, data = kept(), Own(tmp_path)
    trainer(num_sanity_val_steps=0).fit(model, datamodule=data)
    assert model.sizes("train") == [100, 100, 50]
    assert model.sizes("validate") == [100] * 100
    images, order = model.all("train")[0], data.train_order(0)
    np.testing.assert_allclose(images[:, 0], mnist("train")[0][order] / 510, rtol=1e-6)
    with pytest.raises(InputError, match="no MNIST in "):
        Own(tmp_path / "nowhere").setup()


class Unlabelled(MNISTDataModule):
    """Images of the user's own, in colour; nobody knows what is on the test images."""

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        self.classes, self.image_shape = ("cat", "dog"), (3, 8, 8)
        images = torch.full((20, 3, 8, 8), 255, dtype=torch.uint8)
        return images, torch.arange(20, dtype=torch.int32) % 2 if train else torch.full((20,), -1)


def test_a_users_own_load_may_not_know_the_classes_of_the_images_to_predict(trainer: Callable) -> None:
    data, model = Unlabelled(val_size=4), MNISTClassifier(8, image_shape=(3, 8, 8), num_classes=2)
    fit = trainer()
    fit.fit(model, datamodule=data)
    assert "val_loss" in fit.callback_metrics
    assert (data.num_classes, data.train_dataset.targets.dtype) == (2, torch.int64)
    assert torch.cat(trainer().predict(model, datamodule=data)).shape == (20, 2)
    assert data.test_dataset[0][1] == -1


def test_a_data_module_can_be_copied_and_sent_to_another_process() -> None:
    data = loaded(None, val_size=100, seed=3)
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert dict(twin.hparams) == dict(data.hparams)
        assert np.array_equal(twin.train_order(1), data.train_order(1))
        assert torch.equal(twin.test_dataset[9_999][0], data.test_dataset[9_999][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "^batch_size must be at least 1, got 0"),
        ({"seed": -1}, "^seed must be 0 or above, got -1"),
        ({"dataset": "Fashion"}, r"must be one of FashionMNIST, got 'Fashion'"),
        ({"dataset": "x"}, r"must be one of MNIST, FashionMNIST, .*, got 'x'"),
        ({"dataset": "EMNIST"}, r"\(with emnist_split\) must be one of EMNIST byclass, EMNIST bymerge, "),
        ({"dataset": "CIFAR10", "emnist_split": "letters"}, "must be one of CIFAR10, CIFAR100, got 'CIFAR10 letters'"),
        ({"dataset": "CIFAR10"}, "CIFAR10 needs data_dir, the folder that holds cifar-10-batches-py"),
        ({"download": True}, "needs data_dir"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name_and_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        MNISTDataModule(**arguments)
    assert len(str(caught.value).splitlines()) == 1


NUMPYS = {"val_size": np.float32(0.25), "seed": np.uint8(3), "train_size": np.int64(20)}
CODE = {"train_size": 20, "train_transform": halved, "transform": halved}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ({"data_dir": PACKAGED, "batch_size": 64}, {"data_dir": str(PACKAGED), "batch_size": 64}),
        (NUMPYS, {"val_size": 0.25, "seed": 3, "train_size": 20}),
        (CODE, {"train_size": 20}),
    ],
    ids=["Path", "numpy's numbers", "transforms"],
)
def test_a_checkpoint_has_plain_values(arguments: Any, values: Any, trainer: Callable, tmp_path: Path) -> None:
    wanted = {"data_dir": None, "batch_size": 128, "val_size": 0, "seed": 0, "train_size": None, "dataset": "MNIST"}
    wanted |= {"emnist_split": None, "num_workers": 0, "pin_memory": False, **values}
    fit = trainer(limit_train_batches=1, limit_val_batches=1)
    fit.fit(MNISTClassifier(8), datamodule=MNISTDataModule(**arguments))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved == wanted
    assert [type(saved[name]) for name in wanted] == [type(value) for value in wanted.values()]
    transforms = {name: value for name, value in arguments.items() if value is halved}
    again = MNISTDataModule.load_from_checkpoint(tmp_path / "a.ckpt", **transforms)
    assert (again.train_size, again.transform) == (wanted["train_size"], arguments.get("transform"))


def test_a_model_with_hyper_parameters_of_the_same_names_trains(trainer: Callable, tmp_path: Path) -> None:
    class Named(MNISTClassifier):
        def __init__(self, batch_size: int = 1, seed: str = "mine") -> None:
            super().__init__(8)
            self.save_hyperparameters()

    model, data = Named(), MNISTDataModule(train_size=20)
    trainer(logger=CSVLogger(tmp_path), log_every_n_steps=1).fit(model, datamodule=data)
    assert (model.hparams["batch_size"], data.hparams["batch_size"]) == (1, 128)
    assert "seed: mine" in next(tmp_path.rglob("hparams.yaml")).read_text()
