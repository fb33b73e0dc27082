"""The commands for a stranger's own model and data."""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.data import PACKAGED
from mnist_lightning.runs import Run

# Their networks have no validation_step, and the data nothing to validate on.
pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")

FEW = ["--trainer.limit_train_batches", "3", "--trainer.max_epochs"]


class CNN(LightningModule):
    """A network of the stranger's own, as everybody writes it."""

    def __init__(self, size: int = 28) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
        self.network(torch.zeros(1, 1, size, size))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Probabilities(CNN):
    """What the commands need, too."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits: Tensor = self.network(batch[0])
        self.log("error", (logits.argmax(1) != batch[1]).float().mean())
        return logits

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.network(batch[0]).softmax(dim=1)


class Padded(Probabilities):
    """For images of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__(32)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))


def started_as(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like one that ``python SCRIPT`` has started."""
    Path(script).touch()
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(Path(script).absolute()), raising=False)


def test_the_commands_work_for_any_module_and_leave_the_program_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    started_as("my program.py", monkeypatch)
    state = torch.get_rng_state(), random.getstate(), dict(os.environ)
    padded = ["--data.transform", "torchvision.transforms.v2.Pad", "--data.transform.padding", "2"]
    main(["fit", *FEW, "1", "--data.val_size", "100", *padded], model_class=Padded)
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"], model_class=Padded)
    for command in ("validate", "test", "predict"):
        main([command], model_class=Padded)
    out = capsys.readouterr().out
    assert "Network  Padded, 2,074 parameters" in out
    assert "Next     python 'my program.py' predict\n" in out
    found = json.loads(Path("lightning_logs/version_0/test.json").read_text())
    assert list(found) == ["error"]
    assert f"Test     error {found['error']:.4f}" in out
    assert len(Path("lightning_logs/version_0/predictions.csv").read_text().splitlines()) == 10_001
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), dict(os.environ)) == state[1:]


def test_only_what_a_module_can_do_is_recommended(monkeypatch: Any, capsys: Any, fails: Callable[..., str]) -> None:
    monkeypatch.delattr(Probabilities, "predict_step")
    started_as("mine.py", monkeypatch)
    main(["fit", *FEW, "1"], model_class=Probabilities)
    assert "Next     python mine.py test\n" in capsys.readouterr().out
    says = "Probabilities has no predict_step: add one that returns probabilities (B, 10)"
    assert says in fails("predict", model_class=Probabilities)
    assert "CNN has no test_step" in fails("fit", model_class=CNN)


@pytest.mark.slow
def test_what_fit_prints_for_a_class_of_ones_own_can_be_typed() -> None:
    code = "from mnist_lightning import MNISTClassifier\nclass Own(MNISTClassifier):\n    pass\n"
    use = "from mnist_lightning.cli import main\nmain(model_class=Own)\n"
    Path("own").mkdir()
    Path("my train.py").write_text(code + use)
    Path("own/net.py").write_text(code)
    Path("own/train.py").write_text(f"from .net import Own\n{use}")

    def run(*args: str) -> str:
        return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True).stdout

    fit = ["fit", *FEW, "1", "--trainer.limit_test_batches", "2"]
    for typed in ("python 'my train.py' predict", "python -m own.train predict"):
        started = shlex.split(typed)[1:-1]
        assert f"Next     {typed}\n" in run(*started, *fit)
        assert "predictions.csv" in run(*started, "predict")
    assert "Next" not in run("-c", code + use, *fit)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda images: {}, "probabilities, (B, 10), got dict"),
        (lambda images: images[:, 0, 0, :10] - 1, "probabilities, (B, 10), got rows that do not sum to 1"),
        (lambda images: torch.full((len(images) + 1, 10), 0.1), "a row for each image, 10000, got 10079"),
    ],
    ids=["a dict", "logits", "a row too many"],
)
def test_what_is_no_table_of_probabilities_is_refused(
    wrong: Callable, says: str, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    main(["fit", *FEW, "1"], model_class=Probabilities)
    monkeypatch.setattr(Probabilities, "predict_step", lambda self, batch, batch_idx: wrong(batch[0]))
    assert f"predict_step must return {says}" in fails("predict", model_class=Probabilities)


class Inverted(MNISTClassifier):
    """The same weights, another function."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(1 - images)


def test_the_weights_of_another_class_are_refused_and_a_derived_one_takes_them(fails: Callable[..., str]) -> None:
    main(["fit", *FEW, "1"], model_class=Inverted)
    for args in (["test"], ["predict"], ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]):
        assert "was trained as 'Inverted', here the model is MNISTClassifier" in fails(*args)

    class Derived(Inverted):
        """Of the same function, as a class with one more callback would be."""

    main(["test"], model_class=Derived)
    assert (Run.open().folder / "report.json").is_file()


@pytest.mark.parametrize("on_epoch", [True, False])
def test_the_last_batch_s_figure_is_not_shown_as_the_epoch_s(on_epoch: bool, capsys: Any) -> None:
    class Steps(Probabilities):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.log("train_acc", 0.1 * batch_idx, on_step=True, on_epoch=on_epoch)
            return super().training_step(batch, batch_idx)

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.log("test_acc", 0.0)
            return super().test_step(batch, batch_idx)

    main(["fit", *FEW, "2"], model_class=Steps)
    out = capsys.readouterr().out
    assert out.count("train_acc 0.1000\n" if on_epoch else "train_acc 0.2000 (last batch)\n") == 2
    assert ("Gap      +10.00 points" in out) == on_epoch
    assert ("Gap" in out) == on_epoch


class Few(MNISTDataModule):
    """Has an argument and a state of its own, and gets its files where Lightning has a data module get them."""

    state: ClassVar[dict[str, Any]] = {"transform": "blue"}

    def __init__(self, images: int = 50) -> None:
        super().__init__("fetched", train_size=images, batch_size=10)

    def prepare_data(self) -> None:
        shutil.copytree(PACKAGED / "MNIST", f"{self.data_dir}/MNIST", dirs_exist_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict == self.state


def test_the_commands_work_for_data_with_arguments_files_and_state_of_its_own(capsys: Any) -> None:
    few = ["--trainer.limit_test_batches", "5"]
    main(["inspect"], data_class=Few)
    shutil.rmtree("fetched")
    main(["fit", "--data.images", "20", "--trainer.max_epochs", "1", *few], data_class=Few)
    resume, export = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"], ["export", "--format", "pt2"]
    for args in (resume, ["test", *few], ["predict"], export):
        main(args, data_class=Few)
    assert "20 training images" in capsys.readouterr().out
    assert [row["step"] for row in Run.open().metrics] == [1, 3, 4]
