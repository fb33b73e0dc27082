"""A stranger's project that uses the two classes: its own network, its own loops, its own processes."""

import copy
import gc
import json
import multiprocessing
import os
import pickle
import pydoc
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner.tuning import Tuner
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import Pad

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.data import PACKAGED
from mnist_lightning.results import Report, figures
from mnist_lightning.results.report_callback import ReportCallback
from mnist_lightning.runs import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


class CNN(LightningModule):
    """A network of the stranger's own, as everybody writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Probabilities(CNN):
    """What the commands need, too."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits: Tensor = self.network(batch[0])
        self.log("test_loss", F.cross_entropy(logits, batch[1]))
        return logits

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.network(batch[0]).softmax(dim=1)


class Seen(Callback):
    """The digits of the training batches of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[list[int]]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.epochs[-1].append(batch[1].tolist())


def loaded(stage: str = "fit", **kwargs: Any) -> MNISTDataModule:
    data = MNISTDataModule(**kwargs)
    data.setup(stage)
    return data


# ---------------------------------------------------------------- several processes


def share(rank: int, store: str, loaders: list[Any], shares: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    shares.put((rank, [([batch.tolist() for batch in loader.sampler], len(loader)) for loader in loaders]))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12's, as pytest-xdist has threads
@pytest.mark.skipif(sys.platform != "linux", reason="fork")
def test_loaders_that_were_made_before_the_processes_are_shared_among_them(trainer: Callable, tmp_path: Path) -> None:
    data = MNISTDataModule(train_size=300, val_size=201)
    trainer(limit_train_batches=1, limit_val_batches=1).fit(CNN(), datamodule=data)  # which stays attached
    loaders = [data.train_dataloader(), data.val_dataloader()]
    context = multiprocessing.get_context("fork")
    shares = context.SimpleQueue()
    started = [
        context.Process(target=share, args=(rank, tmp_path / "store", loaders, shares), daemon=True) for rank in (0, 1)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    of = dict(shares.get() for _ in started)
    for number, loader in enumerate(loaders):
        (first, length), (second, other_length) = of[0][number], of[1][number]
        assert (len(first), len(second)) == (length, other_length)
        together = [a + b for a, b in zip(first, second, strict=True)]
        assert together == [batch.tolist() for batch in loader.sampler]  # as alone: each image once
        assert max(abs(len(a) - len(b)) for a, b in zip(first, second, strict=True)) <= 1


PROJECT = """
import json, sys
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Trainer
from test_as_library import CNN, Seen
from mnist_lightning import MNISTClassifier, MNISTDataModule

class Kept(Seen):  # nothing else of a callback comes back from a spawned process
    def on_train_end(self, trainer, pl_module):
        with open(f"seen-{trainer.world_size}-{trainer.global_rank}.json", "w") as file:
            json.dump(self.epochs, file)

def trained(processes, strategy, take):
    torch.manual_seed(0)
    data, seen, model = MNISTDataModule(train_size=300, val_size=100), Kept(), CNN()
    trainer = Trainer(accelerator="cpu", devices=processes, strategy=strategy, max_epochs=2, callbacks=[seen],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, *take(data))
    return trainer, model

def loaders(data):
    data.setup("fit")
    return data.train_dataloader(), data.val_dataloader()

def by_fabric(fabric, seen):
    data, model = MNISTDataModule(train_size=300), CNN()
    data.setup("fit")
    loader = fabric.setup_dataloaders(data.train_dataloader())
    for epoch in range(2):
        seen.append([targets.tolist() for _, targets in loader])

if __name__ == "__main__":
    way, processes = sys.argv[1], int(sys.argv[2])
    strategy = sys.argv[3] if processes > 1 else "auto"
    if way == "fabric":
        fabric, seen = Fabric(accelerator="cpu", devices=processes, strategy=strategy), []
        fabric.launch()
        by_fabric(fabric, seen)
        rank, weights = fabric.global_rank, []
    else:
        trainer, model = trained(processes, strategy, loaders if way == "loaders" else lambda data: (data,))
        rank = trainer.global_rank
        seen = json.load(open(f"seen-{processes}-{rank}.json"))
        weights = model.network[3].weight.tolist()
    with open(f"{way}-{processes}-{rank}.json", "w") as file:
        json.dump([seen, weights], file)
"""


def project(folder: Path, *args: str) -> None:
    (folder / "project.py").write_text(PROJECT)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "project.py", *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def result(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gloo with local processes is tested on POSIX")
@pytest.mark.parametrize("way", ["loaders", "datamodule", "fabric"])
def test_two_processes_train_on_the_batches_of_one(way: str, tmp_path: Path) -> None:
    project(tmp_path, way, "1")
    project(tmp_path, way, "2", "ddp")
    alone, weights = result(tmp_path, f"{way}-1-0")
    (first, first_weights), (second, second_weights) = (result(tmp_path, f"{way}-2-{rank}") for rank in (0, 1))
    assert [len(batch) for batch in alone[0]] == [128, 128, 44]
    assert alone[0] != alone[1]  # each epoch has an order of its own
    for epoch, a, b in zip(alone, first, second, strict=True):
        assert [one + other for one, other in zip(a, b, strict=True)] == epoch
    assert first_weights == second_weights
    np.testing.assert_allclose(first_weights, weights, atol=1e-6)


# ---------------------------------------------------------------- epochs


def orders(passes: int, loader: Any) -> list[list[int]]:
    return [torch.cat([targets for _, targets in loader]).tolist() for _ in range(passes)]


def expected(data: MNISTDataModule, epochs: Any) -> list[list[int]]:
    assert data.train_dataset is not None
    return [data.train_dataset.targets[data.train_order(epoch)].tolist() for epoch in epochs]


def test_each_pass_of_a_loop_of_ones_own_is_the_next_epoch() -> None:
    data = loaded(train_size=300, seed=5)
    loader = data.train_dataloader()
    assert orders(3, loader) == expected(data, (0, 1, 2))
    firsts = [next(iter(loader))[1].tolist() for _ in range(2)]  # a pass may stop early
    assert firsts == [order[:128] for order in expected(data, (3, 4))]


def test_an_epoch_that_is_told_holds() -> None:
    data = loaded(train_size=300, seed=5)
    loader: Any = data.train_dataloader()
    orders(1, loader)
    for epoch in (7, 0):
        loader.sampler.set_epoch(epoch)
        assert orders(2, loader) == expected(data, (epoch, epoch))


@pytest.mark.parametrize("by", ["loaders", "datamodule"])
def test_a_trainer_and_one_that_resumes_take_the_epochs_in_turn(by: str, trainer: Callable, tmp_path: Path) -> None:
    data, seen = loaded(train_size=300, val_size=100), Seen()

    def fit(epochs: int, ckpt_path: Path | None = None) -> Trainer:
        made = trainer(max_epochs=epochs, callbacks=[seen])  # it looks at validation batches first
        given = (data,) if by == "datamodule" else (data.train_dataloader(), data.val_dataloader())
        made.fit(CNN(), *given, ckpt_path=ckpt_path)
        return made

    fit(2).save_checkpoint(tmp_path / "a.ckpt")
    fit(4, tmp_path / "a.ckpt")
    assert [list(chain(*epoch)) for epoch in seen.epochs] == expected(data, range(4))


def test_fabric_takes_the_epochs_in_turn() -> None:
    data = loaded(train_size=300)
    loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(data.train_dataloader())
    assert orders(3, loader) == expected(data, (0, 1, 2))


# ---------------------------------------------------------------- datasets


class EasiestFirst(MNISTDataModule):
    """As in the README."""

    def train_order(self, epoch: int) -> np.ndarray:
        assert self.train_dataset is not None
        return np.argsort(self.train_dataset.images.sum(dim=(1, 2, 3)).numpy(), kind="stable")


DEVICES = [
    ("cpu", "64-true"),
    pytest.param("gpu", "64-true", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(("accelerator", "precision"), DEVICES)
def test_the_datasets_stay_as_they_were_made_whatever_a_trainer_needs(
    accelerator: str, precision: str, trainer: Callable
) -> None:
    data, seen = EasiestFirst(train_size=300, val_size=100), Seen()
    fit = trainer(accelerator=accelerator, precision=precision, max_epochs=2, callbacks=[seen])
    fit.fit(CNN(), datamodule=data)
    fit.predict(Probabilities(), datamodule=data)
    assert data.train_dataset is not None
    assert [list(chain(*epoch)) for epoch in seen.epochs] == expected(data, (0, 1))
    for dataset in (data.train_dataset, data.val_dataset, data.test_dataset):
        assert dataset is not None
        assert (dataset.images.dtype, dataset.images.device.type) == (torch.uint8, "cpu")
        for image, target in (dataset[0], next(iter(DataLoader(dataset, batch_size=8, shuffle=True)))):
            assert (image.dtype, image.device.type, target.device.type) == (torch.float32, "cpu", "cpu")
    images, _ = next(iter(data.train_dataloader()))  # that Trainer has ended
    assert (images.dtype, images.device.type) == (torch.float32, "cpu")


def test_a_trainer_on_the_cpu_has_no_second_copy_of_the_pixels(trainer: Callable) -> None:
    data = MNISTDataModule(val_size=100)
    fit = trainer(limit_train_batches=1, limit_val_batches=1, precision="64-true")
    fit.fit(CNN(), datamodule=data)
    assert data.train_dataset is not None
    assert fit.train_dataloader.dataset.images.data_ptr() == data.train_dataset.images.data_ptr()


# ---------------------------------------------------------------- resuming and loading


FIRST = {"val_size": 100, "train_size": 300, "batch_size": 64, "seed": 3}


@pytest.fixture
def checkpoint(trainer: Callable, tmp_path: Path) -> Path:
    fit = trainer()
    fit.fit(CNN(), datamodule=MNISTDataModule(**FIRST))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


@pytest.mark.parametrize(
    ("change", "there"),
    [
        ({"val_size": 0}, 100),
        ({"train_size": 500}, 300),
        ({"train_size": None}, 300),
        ({"batch_size": 10}, 64),
        ({"seed": 7}, 3),
    ],
    ids=repr,
)
def test_a_fit_goes_on_with_the_data_of_its_checkpoint_alone(
    change: dict[str, Any], there: int, trainer: Callable, checkpoint: Path
) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=rf"^{name} \d+ contradicts the checkpoint's {there}: .* or train anew$"):
        trainer(max_epochs=2).fit(CNN(), datamodule=MNISTDataModule(**FIRST | change), ckpt_path=checkpoint)


def test_the_same_data_in_other_words_goes_on(trainer: Callable, checkpoint: Path) -> None:
    fit = trainer(max_epochs=2)
    fit.fit(CNN(), datamodule=MNISTDataModule(**FIRST | {"val_size": 100 / 60_000}), ckpt_path=checkpoint)
    assert fit.global_step == 10
    trainer().validate(CNN(), datamodule=MNISTDataModule(val_size=7), ckpt_path=checkpoint)  # any images will do


def test_a_checkpoint_that_says_nothing_of_its_data_is_resumed(trainer: Callable, checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["MNISTDataModule"] = {"train_transform": None}  # as version 0.1.0 wrote it
    torch.save(content, checkpoint)
    fit = trainer(max_epochs=2)
    fit.fit(CNN(), datamodule=MNISTDataModule(**FIRST), ckpt_path=checkpoint)
    assert fit.global_step == 10


def test_the_tuner_finds_a_batch_size(trainer: Callable, tmp_path: Path) -> None:
    data = MNISTDataModule(train_size=300, val_size=100)
    tuned = trainer(default_root_dir=tmp_path)
    assert Tuner(tuned).scale_batch_size(CNN(), datamodule=data, max_trials=3) == data.batch_size
    tuned.fit(CNN(), datamodule=data)
    tuned.save_checkpoint(tmp_path / "a.ckpt")
    assert MNISTDataModule.load_from_checkpoint(tmp_path / "a.ckpt").batch_size == data.batch_size != 128


@pytest.mark.parametrize("make", [MNISTClassifier, MNISTDataModule])
def test_an_instance_cannot_be_loaded(make: Any, trainer: Callable, tmp_path: Path) -> None:
    fit = trainer(limit_train_batches=1)
    fit.fit(MNISTClassifier(8), datamodule=MNISTDataModule(train_size=20))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match=f"`{make.__name__}.load_from_checkpoint` cannot be called on an instance"):
        make().load_from_checkpoint(tmp_path / "a.ckpt")
    assert isinstance(make.load_from_checkpoint(tmp_path / "a.ckpt"), make)


class WithAClass(MNISTClassifier):
    def __init__(self, hidden_size: int = 8, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(hidden_size)
        self.save_hyperparameters()
        self.network[2] = activation()


def test_a_class_among_the_hyper_parameters_is_allowed_and_given_again(trainer: Callable, tmp_path: Path) -> None:
    fit = trainer(limit_train_batches=1)
    fit.fit(WithAClass(4, nn.GELU), datamodule=MNISTDataModule(train_size=20))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    allow = r"if you wrote it yourself, allow torch.nn.modules.activation.GELU by torch.serialization.add_safe_globals$"
    with pytest.raises(ValueError, match=allow):
        WithAClass.load_from_checkpoint(tmp_path / "a.ckpt", activation=nn.GELU)
    with torch.serialization.safe_globals([nn.GELU]):
        with pytest.raises(ValueError, match="give activation of WithAClass yourself"):
            WithAClass.load_from_checkpoint(tmp_path / "a.ckpt")
        loaded = WithAClass.load_from_checkpoint(tmp_path / "a.ckpt", activation=nn.GELU)
    assert isinstance(loaded.network[2], nn.GELU)
    assert loaded.hidden_layer.out_features == 4


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("when", ["before setup", "after setup"])
@pytest.mark.parametrize(
    "argument",
    [{"val_size": 1_000}, {"train_size": 5}, {"seed": 3}, {"train_transform": torch.relu}, {"transform": torch.relu}],
    ids="".join,
)
def test_an_argument_cannot_be_changed_after_construction(argument: dict[str, Any], when: str) -> None:
    data = MNISTDataModule(train_size=20) if when == "before setup" else loaded(train_size=20)
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=rf"^{name} cannot change: make another MNISTDataModule\({name}=.*\)$"):
        setattr(data, name, value)


def test_the_batch_size_can_be_changed_at_any_time(trainer: Callable, tmp_path: Path) -> None:
    data = loaded(train_size=100)
    data.batch_size = np.int64(30)
    assert [len(targets) for _, targets in data.train_dataloader()] == [30, 30, 30, 10]
    fit = trainer()
    fit.fit(CNN(), datamodule=data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    assert MNISTDataModule.load_from_checkpoint(tmp_path / "a.ckpt").batch_size == 30
    for wrong in (0, 2.5, "32"):
        with pytest.raises(ValueError, match=r"^batch_size must be a whole number"):
            data.batch_size = wrong


# ---------------------------------------------------------------- what everybody tries


def test_loaders_can_be_pickled() -> None:
    data = loaded(train_size=300, val_size=100)
    data.setup("test")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        twin = pickle.loads(pickle.dumps(loader))
        assert torch.equal(next(iter(twin))[0], next(iter(loader))[0])


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gloo with local processes is tested on POSIX")
def test_spawned_processes_train_on_the_batches_of_one(tmp_path: Path) -> None:
    project(tmp_path, "loaders", "1")
    project(tmp_path, "loaders", "2", "ddp_spawn")
    (alone, weights), (share, other_weights) = (result(tmp_path, f"loaders-{processes}-0") for processes in (1, 2))
    assert [[batch[: len(batch) // 2] for batch in epoch] for epoch in alone] == share
    np.testing.assert_allclose(other_weights, weights, atol=1e-6)


def test_validate_without_images_held_out_says_what_to_do(trainer: Callable) -> None:
    with pytest.raises(ValueError, match=r"^there are no images to validate on: give val_size"):
        trainer().validate(CNN(), datamodule=MNISTDataModule())


def test_a_loader_that_is_set_on_the_data_can_be_validated_on(trainer: Callable[..., Trainer]) -> None:
    data = MNISTDataModule()
    data.val_dataloader = lambda: DataLoader(TensorDataset(torch.rand(10, 784), torch.arange(10)), 5)
    (metrics,) = trainer().validate(MNISTClassifier(8), data, verbose=False)
    assert metrics["val_loss"] > 0


def test_help_names_the_arguments() -> None:
    assert "Images in a batch, over all processes together." in pydoc.render_doc(MNISTDataModule.__init__)
    assert "Units of the hidden layer" in pydoc.render_doc(MNISTClassifier.__init__)


def test_the_data_say_what_they_are() -> None:
    data = MNISTDataModule(batch_size=32, val_size=0.1)
    assert data.num_classes == 10
    assert data.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert repr(data) == (
        "MNISTDataModule(data_dir=None, batch_size=32, val_size=0.1, seed=0, train_size=None, dataset='MNIST', "
        "emnist_split=None, train_transform=None, transform=None)"
    )
    data = MNISTDataModule(train_transform=nn.ReLU(), transform=nn.Flatten())
    assert repr(data).endswith("train_transform=ReLU(), transform=Flatten(start_dim=1, end_dim=-1))")


def test_a_batch_to_look_at() -> None:
    data = MNISTDataModule(train_size=100)
    images, targets = data.sample(16)  # setup is not the user's concern here
    assert (images.shape, images.dtype, targets.shape) == ((16, 1, 28, 28), torch.float32, (16,))
    assert len(data.sample()[1]) == 16
    for count in (0, -1, 101):
        with pytest.raises(ValueError, match=f"count must be a whole number from 1 to 100, got {count}"):
            data.sample(count)
    assert data.train_dataset is not None
    assert torch.equal(targets, data.train_dataset.targets[:16])


class Padded(Probabilities):
    """For images of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 8, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))


def test_a_network_for_images_of_another_shape_is_trained_and_its_mistakes_are_drawn_as_they_are(
    trainer: Callable, mnist: Callable
) -> None:
    report = ReportCallback()
    made = trainer(limit_train_batches=3, limit_test_batches=4, callbacks=[report])
    data = MNISTDataModule(val_size=100, transform=Pad(2))
    made.fit(Padded(), data)
    made.test(Padded(), data, verbose=False)
    assert report.report is not None
    indices = [mistake.index for mistake in report.report.mistakes[:25]]
    assert np.array_equal(report.report.images.squeeze(1), mnist("t10k")[0][indices])


@pytest.mark.filterwarnings("ignore")
def test_a_network_for_images_of_another_shape_has_all_commands(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    padded = ["--data.transform", "torchvision.transforms.v2.Pad", "--data.transform.padding", "2"]
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--data.val_size", "100"]
    main(["fit", *few, *padded], model_class=Padded)
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"], model_class=Padded)
    for command in ("validate", "test", "predict"):
        main([command], model_class=Padded)
    assert len(Path("lightning_logs/version_0/predictions.csv").read_text().splitlines()) == 10_001


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"train_size": 0.5}, 30_000),
        ({"train_size": np.float32(0.25)}, 15_000),
        ({"train_size": 0.8, "val_size": 0.2}, 48_000),
        ({"train_size": 1 / 3, "val_size": 2 / 3}, 20_000),
    ],
    ids=repr,
)
def test_train_size_may_be_a_fraction_of_all_images(arguments: dict[str, Any], count: int) -> None:
    data = MNISTDataModule(**arguments)
    assert len(data.split()[0]) == data.num_train == count
    again = MNISTDataModule(**data.hparams)
    assert again.num_train == count


@pytest.mark.parametrize("arguments", [{"train_size": 0.9, "val_size": 0.2}, {"train_size": 1e-9}, {"train_size": 1.0}])
def test_a_fraction_that_is_no_number_of_images_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^train_size must be a count from 1 to .* or a fraction .*, got "):
        MNISTDataModule(**arguments)


# ---------------------------------------------------------------- the network


class Figures(Callback):
    """What a callback reads at the end of each epoch."""

    def __init__(self) -> None:
        self.read: list[tuple[str, dict[str, float]]] = []

    def note(self, hook: str, trainer: Trainer) -> None:
        self.read.append((hook, {name: float(value) for name, value in trainer.callback_metrics.items()}))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note("train", trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.note("val", trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note("test", trainer)


def test_callbacks_have_the_figures_of_the_epoch_in_every_hook(trainer: Callable) -> None:
    figures, model, data = Figures(), MNISTClassifier(8), MNISTDataModule(val_size=500)
    made = trainer(max_epochs=2, limit_train_batches=3, callbacks=[figures])
    made.fit(model, data)
    tested = made.test(model, data, verbose=False)
    assert [hook for hook, _ in figures.read] == ["val", "train", "val", "train", "test"]
    first, last = figures.read[1][1], figures.read[3][1]
    assert first.keys() == {"train_loss", "train_acc", "val_loss", "val_acc"}
    assert all(first[name] != last[name] for name in ("train_loss", "val_loss"))
    assert figures.read[2][1]["val_loss"] == last["val_loss"]
    assert figures.read[4][1] == tested[0]


def test_a_loss_that_is_not_one_number_is_refused(trainer: Callable) -> None:
    class Each(MNISTClassifier):
        def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(logits, targets, reduction="none")

    with pytest.raises(
        ValueError, match=r"compute_loss must return one number, a tensor of shape \(\), got shape \(128,\)"
    ):
        trainer().fit(Each(8), MNISTDataModule(train_size=128))


@pytest.mark.parametrize("name", ["mine", "smooth"])
def test_a_loss_of_ones_own_is_what_is_trained_and_logged(name: str, trainer: Callable) -> None:
    class Own(MNISTClassifier):
        def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            if name == "smooth":
                return F.cross_entropy(logits, targets, label_smoothing=0.1)
            return F.cross_entropy(logits, F.one_hot(targets, 10).double())  # soft targets

    torch.manual_seed(0)
    model, data = Own(8), loaded(train_size=128, batch_size=128)
    twin = copy.deepcopy(model)
    optimizer = twin.configure_optimizers()
    images, targets = next(iter(data.train_dataloader()))
    smoothing = 0.1 if name == "smooth" else 0.0
    loss = F.cross_entropy(twin(images), targets, label_smoothing=smoothing)
    loss.backward()
    optimizer.step()
    made = trainer()
    made.fit(model, data)
    assert made.callback_metrics["train_loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(model.hidden_layer.weight, twin.hidden_layer.weight, atol=1e-6)


def test_what_an_overridden_step_does_not_record_is_neither_logged_nor_judged(trainer: Callable) -> None:
    class Own(MNISTClassifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("mine", F.cross_entropy(self(batch[0]), batch[1]))

        def test_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0])

    model, data, made = Own(8), MNISTDataModule(val_size=500), trainer(limit_train_batches=3)
    made.fit(model, data)
    assert made.callback_metrics.keys() == {"mine"}
    assert made.test(model, data, verbose=False) == [{}]


def test_a_step_needs_no_trainer() -> None:
    model = MNISTClassifier(8)
    images, targets = next(iter(loaded().train_dataloader()))
    loss = model.training_step((images, targets.int()), 0)  # int32, as numpy often has it
    assert loss.item() == pytest.approx(F.cross_entropy(model(images), targets).item(), abs=1e-6)


def test_targets_of_more_classes_than_the_network_has_are_named() -> None:
    images = torch.rand(3, 1, 28, 28)
    with pytest.raises(
        ValueError, match=r"targets must be classes from 0 to 9, got 0 to 25 .* give MNISTClassifier\(num"
    ):
        MNISTClassifier(8).training_step((images, torch.tensor([0, 25, 3])), 0)
    MNISTClassifier(8, num_classes=26).training_step((images, torch.tensor([0, 25, 3])), 0)


def test_a_step_and_a_predict_step_train_and_evaluate_in_a_plain_loop() -> None:
    torch.manual_seed(0)
    data, model = loaded(train_size=1_000, val_size=500), MNISTClassifier(32)
    optimizer = model.configure_optimizers()
    for _ in range(3):
        for batch_idx, batch in enumerate(data.train_dataloader()):
            optimizer.zero_grad()
            model.training_step(batch, batch_idx).backward()
            optimizer.step()
    for batch_idx, batch in enumerate(data.val_dataloader()):
        model.validation_step(batch, batch_idx)
    right = [model.predict_step(batch, 0).argmax(1) == batch[1] for batch in data.val_dataloader()]
    assert torch.cat(right).float().mean() == model.val_metrics.acc.compute() > 0.7


@pytest.mark.parametrize("own", [False, True], ids=["as it is", "with dataloader_idx"])
def test_several_loaders_at_once_have_no_common_mean(own: bool, trainer: Callable) -> None:
    class Own(MNISTClassifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    model, data = Own(8) if own else MNISTClassifier(8), loaded(val_size=500)
    data.setup("test")
    loaders = [data.val_dataloader(), data.test_dataloader()]
    for loader in loaders:  # one after the other
        trainer().validate(model, loader, verbose=False)
    with pytest.raises(ValueError, match=r"^val_loss would be one mean over several loaders: evaluate one after"):
        trainer().validate(model, loaders)
    probabilities = trainer().predict(model, loaders)
    assert [sum(map(len, parts)) for parts in probabilities] == [500, 10_000]


def test_a_batch_of_another_kind_is_refused(trainer: Callable) -> None:
    loader, line = (
        loaded(train_size=20).train_dataloader(),
        r"^a batch must be \(images, targets\), .* of one loader, got ",
    )
    with pytest.raises(ValueError, match=line + "dict$"):
        trainer().fit(MNISTClassifier(8), {"a": loader, "b": loader})
    with pytest.raises(ValueError, match=line + "list$"):
        trainer().fit(MNISTClassifier(8), [loader, loader])


def test_a_step_may_take_a_batch_twice(trainer: Callable) -> None:
    class Mixup(MNISTClassifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, targets = batch
            mixed = 0.7 * images + 0.3 * images.flip(0)
            losses = (
                super(Mixup, self).training_step((mixed, digits), batch_idx) for digits in (targets, targets.flip(0))
            )
            return 0.7 * next(losses) + 0.3 * next(losses)

    made = trainer(limit_train_batches=3)
    made.fit(Mixup(8), MNISTDataModule())
    assert 1 < made.callback_metrics["train_loss"] < 4


@pytest.mark.filterwarnings("ignore:Precision bf16-mixed is not supported by the model summary")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_the_example_input_fits_the_network_and_stays_out_of_checkpoints(
    precision: str, trainer: Callable, tmp_path: Path
) -> None:
    model = MNISTClassifier(8)
    made = trainer(
        precision=precision, limit_train_batches=1, enable_model_summary=True
    )  # which runs the network on it
    made.fit(model, MNISTDataModule())
    assert model(model.example_input_array).shape == (1, 10)
    made.save_checkpoint(tmp_path / "a.ckpt")
    assert len(torch.load(tmp_path / "a.ckpt")["state_dict"]) == 4

    class Narrow(MNISTClassifier):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images[:, :, 2:30, 2:30])

    assert Narrow().example_input_array is None
    model.example_input_array = torch.zeros(3, 784)
    assert model.example_input_array.shape == (3, 784)


def test_memory_does_not_grow_with_the_steps_of_an_epoch(trainer: Callable) -> None:
    model = MNISTClassifier(8)

    tensors: list[int] = []

    class Sizes(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if args[-1] in (10, 200):
                gc.collect()
                tensors.append(sum(type(part) is Tensor for part in gc.get_objects()))

    trainer(limit_train_batches=202, callbacks=[Sizes()]).fit(model, MNISTDataModule(batch_size=1))
    assert abs(tensors[1] - tensors[0]) < 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_torch_compile_compiles_as_often_as_for_any_network(trainer: Callable) -> None:
    def graphs(model: LightningModule, batches: int) -> int:
        torch.compiler.reset()
        compiled: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            compiled.append(graph)
            return graph

        network: Any = torch.compile(model, backend=backend)
        trainer(limit_train_batches=batches, max_epochs=2).fit(network, MNISTDataModule(val_size=500))
        return len(compiled)

    assert graphs(MNISTClassifier(8), 5) == graphs(MNISTClassifier(8), 20) <= graphs(CNN(), 20) + 2


def started_as(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like one that ``python SCRIPT`` has started."""
    Path(script).touch()
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(Path(script).absolute()), raising=False)


def test_the_commands_work_for_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    started_as("my program.py", monkeypatch)
    state = torch.get_rng_state(), random.getstate(), {k: v for k, v in os.environ.items() if k.startswith("PL_")}
    main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"], model_class=Probabilities)
    main(["predict"], model_class=Probabilities)
    out = capsys.readouterr().out
    assert "Network  Probabilities, 1,554 parameters" in out
    assert "Next     python 'my program.py' predict\n" in out
    with pytest.raises(SystemExit):
        main(["fit"], model_class=CNN)
    assert "CNN has no test_step" in capsys.readouterr().err
    assert len(Path("lightning_logs/version_0/predictions.csv").read_text().splitlines()) == 10_001
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert "__setattr__" not in vars(Probabilities)  # no trick for speed stays behind
    assert {k: v for k, v in os.environ.items() if k.startswith("PL_")} == state[2]


@pytest.mark.slow
def test_what_fit_prints_for_a_class_of_ones_own_can_be_typed(tmp_path: Path) -> None:
    code = "from mnist_lightning import MNISTClassifier\nclass Own(MNISTClassifier):\n    pass\n"
    use = "from mnist_lightning.cli import main\nmain(model_class=Own)\n"
    for name, content in (
        ("my train.py", code + use),
        ("own/net.py", code),
        ("own/train.py", f"from .net import Own\n{use}"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.limit_test_batches", "2"]

    def run(*args: str) -> str:
        done = subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    for started, typed in (
        (["my train.py"], "python 'my train.py' predict"),
        (["-m", "own.train"], "python -m own.train predict"),
    ):
        out = run(*started, "fit", *few)
        assert f"Next     {typed}\n" in out
        assert "predictions.csv" in run(*shlex.split(typed)[1:])
    assert "Next" not in run("-c", code + use, "fit", *few)


class Errors(CNN):
    """Logs figures by names of its own, and predicts nothing."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits: Tensor = self.network(batch[0])
        self.log("error", (logits.argmax(1) != batch[1]).float().mean())
        return logits


def test_a_modules_own_figures_are_kept_and_only_what_it_can_do_is_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    started_as("mine.py", monkeypatch)
    main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"], model_class=Errors)
    out = capsys.readouterr().out
    found = json.loads(Path("lightning_logs/version_0/test.json").read_text())
    assert list(found) == ["error"]
    assert f"Test     error {found['error']:.4f}" in out
    assert "Next     python mine.py test\n" in out
    with pytest.raises(SystemExit):
        main(["predict"], model_class=Errors)
    assert "Errors has no predict_step: add one that returns probabilities (B, 10)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda images: {}, "probabilities, (B, 10), got dict"),
        (lambda images: images[:, 0, 0, 0], "probabilities, (B, 10), got shape (128,)"),
        (lambda images: images[:, 0, 0, :1], "probabilities, (B, 10), got rows that do not sum to 1"),
        (lambda images: images[:, 0, 0, :10] - 1, "probabilities, (B, 10), got rows that do not sum to 1"),
        (lambda images: torch.full((len(images) + 1, 10), 0.1), "a row for each image, 10000, got 10079"),
    ],
    ids=["a dict", "digits", "a column of digits", "logits", "a row too many"],
)
def test_what_is_no_table_of_probabilities_is_refused(
    wrong: Callable, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"], model_class=Probabilities)
    monkeypatch.setattr(Probabilities, "predict_step", lambda self, batch, batch_idx: wrong(batch[0]))
    with pytest.raises(SystemExit):
        main(["predict"], model_class=Probabilities)
    assert f"predict_step must return {says}" in capsys.readouterr().err
    assert not list(Path().rglob("predictions.csv"))


class Inverted(MNISTClassifier):
    """The same weights, another function."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(1 - images)


class Few(MNISTDataModule):
    """Of one argument of its own: the commands do not ask it for those of the class above."""

    def __init__(self, images: int = 50) -> None:
        super().__init__(train_size=images, batch_size=10)


def test_the_commands_work_for_data_with_arguments_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--trainer.limit_test_batches", "5"]
    main(["fit", "--data.images", "20", "--trainer.max_epochs", "1", *few], data_class=Few)
    for args in (["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"], ["test", *few], ["predict"]):
        main(args, data_class=Few)
    assert "20 training images" in capsys.readouterr().out
    assert [row["step"] for row in Run.newest().metrics] == [1, 3, 4]


class Fetched(MNISTDataModule):
    """Gets its files where Lightning has a data module get them."""

    def prepare_data(self) -> None:
        shutil.copytree(PACKAGED / "MNIST", f"{self.data_dir}/MNIST", dirs_exist_ok=True)


@pytest.mark.parametrize(
    "args", [["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"], ["inspect"]]
)
def test_the_commands_have_data_prepared_before_they_read_it(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main([*args, "--data.data_dir", "fetched"], data_class=Fetched)


class Prepared(MNISTDataModule):
    times = 0

    def prepare_data(self) -> None:
        Prepared.times += 1


@pytest.mark.parametrize("launched", [False, True])
def test_several_processes_leave_it_to_the_trainer_to_prepare_the_data_once(
    launched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Prepared, "times", 0)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("MASTER_PORT", "12345")  # as Lightning's own launcher sets both
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.limit_test_batches", "1"]
    main(["fit", *few], data_class=Prepared)
    assert Prepared.times == (2 if launched else 3)  # the Trainer asks for it before the training and before the test


class Noted(MNISTDataModule):
    """Its state in a checkpoint is its own."""

    state: ClassVar[dict[str, Any]] = {"transform": "blue"}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict == self.state


class Counted(Noted):
    state: ClassVar[dict[str, Any]] = Counter(seen=1)


@pytest.mark.parametrize("data_class", [Noted, Counted])
def test_data_may_have_any_state_of_its_own(data_class: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--trainer.limit_train_batches", "3", "--trainer.limit_test_batches", "2", "--trainer.max_epochs"]
    main(["fit", *few, "1"], data_class=data_class)
    for args in (["fit", "--ckpt_path", "last", *few, "2"], ["test", *few[2:4]], ["export", "--format", "pt2"]):
        main(args, data_class=data_class)


@pytest.mark.filterwarnings("ignore")
def test_the_weights_of_another_class_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"], model_class=Inverted)
    for args in (["test"], ["predict"], ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 2
        assert "was trained as 'Inverted', here the model is MNISTClassifier" in capsys.readouterr().err
    with pytest.raises(ValueError, match="was trained as 'Inverted'"):
        Run.newest().load(MNISTClassifier)
    assert isinstance(Run.newest().load(Inverted), Inverted)

    class Derived(Inverted):
        """Of the same function, as a class with one more callback would be."""

    main(["test"], model_class=Derived)
    assert (Run.newest().folder / "report.json").is_file()


def test_a_test_step_that_returns_probabilities_gets_no_report(trainer: Callable) -> None:
    class Wrong(Probabilities):
        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self.predict_step(batch, batch_idx)

    callback = ReportCallback()
    with pytest.warns(UserWarning, match="no report of this test: test_step must return the logits, got probabilities"):
        trainer(callbacks=[callback], limit_test_batches=2).test(Wrong(), MNISTDataModule())
    assert callback.report is None


def test_a_name_that_no_checkpoint_could_hold_is_refused_when_it_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Named(Probabilities):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.log("=cmd", 1.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"], model_class=Named)
    assert stop.value.code == 2
    assert "cannot log '=cmd': the name of a figure must begin with a letter" in capsys.readouterr().err


@pytest.mark.parametrize("on_epoch", [True, False])
def test_the_last_batch_s_figure_is_not_shown_as_the_epoch_s(
    on_epoch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Steps(Probabilities):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.log("train_acc", 0.1 * batch_idx, on_step=True, on_epoch=on_epoch)
            return super().training_step(batch, batch_idx)

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.log("test_acc", 0.0)
            return super().test_step(batch, batch_idx)

    monkeypatch.chdir(tmp_path)
    main(["fit", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3"], model_class=Steps)
    out = capsys.readouterr().out
    assert out.count("train_acc 0.1000\n" if on_epoch else "train_acc 0.2000 (last batch)\n") == 2
    assert ("Gap      +10.00 points" in out) == on_epoch
    assert ("Gap" in out) == on_epoch


@pytest.mark.slow
def test_a_command_with_processes_leaves_the_environment_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    ddp = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "1"]
    main(["fit", *ddp, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"])
    assert dict(os.environ) == before


@pytest.mark.parametrize("args", ["fit", {"fit": {}}, [1]], ids=str)
def test_arguments_that_are_no_list_of_texts_are_refused(args: Any) -> None:
    with pytest.raises(TypeError, match="args must be a list of texts"):
        main(args)


# ---------------------------------------------------------------- results


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), *layers)


def network_of(pixels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def batches(images: Tensor, targets: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(images, targets), batch_size=7)


def test_any_network_and_any_loader_have_a_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images, targets = network(nn.Dropout(0.5), nn.BatchNorm1d(10)), torch.rand(100, 784), torch.arange(100) % 10
    model[0].eval()  # as a user has it who freezes a part
    before = copy.deepcopy(model.state_dict())
    found = Report.of(model, batches(images, targets.int()), name="Noise of $1 and $\\")
    assert [module.training for module in model] == [False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    logits = model.eval()(images).detach()
    assert found.accuracy == (logits.argmax(1) == targets).float().mean()
    first = found.mistakes[0]
    assert first.confidence == pytest.approx(float(logits.softmax(1)[logits.argmax(1) != targets].max()))
    assert torch.equal(found.images[0], (images[first.index] * 255).round().byte().reshape(28, 28))
    assert {path.name for path in found.write(str(tmp_path))} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "mistakes.png").is_file()
    assert found.name == "Noise of $1 and $\\"
    titles = [
        figures.confusion_figure(found.confusion, found.name),
        figures.mistakes_figure(found.images, [], 0, 1, "N"),
    ]
    assert [title.texts[0].get_text().split(":")[0] for title in titles] == [found.name, "N"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_report_of_the_tutorials_network_is_that_of_its_test(dtype: torch.dtype, trainer: Callable) -> None:
    torch.manual_seed(0)
    model, data, callback = MNISTClassifier(8), MNISTDataModule(), ReportCallback()
    precision = {torch.float32: "32-true", torch.float64: "64-true", torch.bfloat16: "bf16-true"}[dtype]
    trainer(callbacks=[callback], precision=precision).test(model, data, verbose=False)
    found = Report.of(model, data.test_dataloader())
    assert model.dtype == dtype
    assert callback.report is not None
    if dtype == torch.float64:  # outside of a Trainer, the pixels are rounded to float32
        assert torch.equal(found.confusion, callback.report.confusion)
        return
    assert found.numbers() == callback.report.numbers()
    assert torch.equal(found.images, callback.report.images)
    assert torch.equal(found.weights, callback.report.weights)


@pytest.mark.parametrize(
    "images",
    [
        torch.linspace(-0.5, 3, 784).reshape(1, 28, 28),  # normalised
        torch.linspace(0, 255, 784).reshape(1, 1, 28, 28).round().byte(),
        torch.tensor([3, 3]).reshape(1, 2, 1, 1) * torch.linspace(-0.5, 3, 56 * 56).reshape(56, 56),
    ],
    ids=["normalised", "bytes", "large and of two channels"],
)
def test_the_pictures_are_of_whatever_images_there_are(images: Tensor) -> None:
    class SaysOne(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(10)[torch.ones(len(images), dtype=torch.long)] * 9

    (picture,) = Report.of(SaysOne(), [(images, torch.tensor([0]))]).images
    pixels = picture.flatten().tolist()
    assert pixels == sorted(pixels)
    assert pixels[0] <= 2
    assert pixels[-1] >= 253


def test_colours_stay_colours_in_the_pictures(tmp_path: Path) -> None:
    images = torch.rand(20, 3, 32, 32)
    found = Report.of(
        network_of(3 * 32 * 32, 4), [(images, torch.arange(20) % 4)], "Noise", ["a", "bee", "sea", "deer"]
    )
    first = found.mistakes[0]
    assert torch.equal(found.images[0], (images[first.index] * 255).round().byte())
    assert found.numbers()["classes"][1]["class"] == "bee"
    found.write(tmp_path)
    with Image.open(tmp_path / "mistakes.png") as picture:
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
    assert (abs(red - green) + abs(green - blue) > 60).mean() > 0.05


NAN = network()
NAN[1].weight.data[3, 5] = torch.nan
SMALL = torch.rand(8, 784), torch.arange(8)


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        (network(), [], "at least one image, but the loader has none"),
        (network(), [(SMALL[0][:0], SMALL[1][:0])], r"batches with images, got \(0, 784\)"),
        (NAN, [SMALL], "outputs are infinite or NaN for 8 of 8 images"),
        (network(nn.Softmax(1)), [SMALL], "the model returns probabilities, and a report needs logits"),
        (network(nn.Linear(10, 3)), [SMALL], r"must return logits, \(8, 10\), got shape \(8, 3\)"),
        (network(), [{"image": SMALL[0]}], r"batches \(images, targets\), two tensors, got \{'image'"),
        (network(), [SMALL[0]], r"batches \(images, targets\), two tensors, got tensor"),
        (network(), [(SMALL[0], torch.arange(8) + 3)], "targets must be integers in 0 ... 9"),
        (network(), [(SMALL[0], torch.eye(10)[:8])], "targets must be integers in 0 ... 9"),
        (nn.Linear(9, 10), [(torch.rand(8, 9), SMALL[1])], r"images must be \(B, 784\), .* got \(8, 9\)"),
    ],
)
def test_a_report_of_anything_else_is_refused_in_one_line(model: Any, loader: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Report.of(model, loader)
    with pytest.raises(ValueError, match=r"needs a torch.nn.Module, got 'model'"):
        Report.of("model", loader)
    assert "\n" not in str(refused.value)
    assert all(module.training for module in model.modules())


def test_a_run_of_the_past_is_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no fit run with a checkpoint in 'lightning_logs'"):
        Run.newest()
    short = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3", "--model.hidden_size", "8"]
    main(["fit", *short, "--data.val_size", "500"])
    main(["fit", *short, "--trainer.logger", "false", "--trainer.enable_checkpointing", "false"])
    run = Run.newest()
    assert repr(run) == repr(Run("lightning_logs/version_0")) == "Run('lightning_logs/version_0')"
    first, last, test = run.metrics
    assert (first["epoch"], last["epoch"], last["step"]) == (0, 1, 5)
    assert first["train_loss"] > last["train_loss"]
    assert test.keys() == {"epoch", "step", "test_loss", "test_acc"}
    model, data = run.load(MNISTClassifier), run.load(MNISTDataModule, batch_size=500)
    assert (model.hparams["hidden_size"], data.num_val, data.batch_size) == (8, 500, 500)
    data.setup("fit")
    data.setup("test")
    assert Report.of(model, data.test_dataloader()).accuracy == pytest.approx(test["test_acc"])
    assert Report.of(model, data.val_dataloader()).accuracy == pytest.approx(last["val_acc"])
    assert torch.equal(model.output_layer.bias, torch.load(run.checkpoint)["state_dict"]["network.3.bias"])
    empty = Run("lightning_logs/version_1")
    with pytest.raises(ValueError, match=r"^Run\('lightning_logs/version_1'\) has no metrics.csv"):
        _ = empty.metrics
    for odd in ("epoch,step\n0.5,1\n", "epoch,step\n1,2,3\n", "epoch,a\n1,x\n", 'epoch,a\n1,"2\n', "epoch\n\0\n"):
        (empty.folder / "metrics.csv").write_text(odd)
        with pytest.raises(
            ValueError, match=r"^Run\('lightning_logs/version_1'\): metrics.csv is not as fit writes it"
        ):
            _ = empty.metrics
    with pytest.raises(ValueError, match=r"^Run\('lightning_logs/version_1'\) has no checkpoint"):
        _ = empty.checkpoint
    with pytest.raises(ValueError, match=r"^no run in 'elsewhere'"):
        Run("elsewhere")


@pytest.mark.slow
def test_results_need_no_command_line() -> None:
    program = (
        "import sys; from mnist_lightning.results import Report; from mnist_lightning.runs import Run; "
        "print(*{'jsonargparse', 'lightning.pytorch.cli', 'mnist_lightning.cli'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "\n")


NOTEBOOK = [
    """
from lightning.pytorch import Trainer
from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.results import Report
from mnist_lightning.runs import Run

class Own(MNISTClassifier):
    "A class that no other process can import."

data = MNISTDataModule(train_size=1_000, val_size=500)
Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False).fit(Own(8), data)
""",
    'main(["fit", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3"], model_class=Own)',
    'main(["fit", "--model.hidden_size", "0"], model_class=Own)',
    'main(["test"], model_class=Own)',
    """
run = Run.newest()
data.setup("test")
report = Report.of(run.load(Own), data.test_dataloader())
print(abs(report.accuracy - run.metrics[-1]["test_acc"]) < 1e-6, [path.name for path in report.write("report")])
""",
]


@pytest.mark.slow
def test_a_notebook_trains_and_reads_its_run(tmp_path: Path) -> None:
    from nbclient import NotebookClient
    from nbformat import v4

    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in NOTEBOOK])
    notebook.cells[2].metadata["tags"] = ["raises-exception"]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [" ".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert "Epoch 2/2" in said[1]
    assert "hidden_size must be a whole number" in said[2]
    assert re.search(r"^accuracy +0\.\d{4}", said[3], re.MULTILINE)
    assert said[4].startswith("True ['report.json', 'confusion_matrix.png', 'mistakes.png', 'first_layer.png']")
