"""A run of the past is opened in one way, whatever names it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.runs import Run

RUN = ["fit", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "5", "--model.hidden_size", "8"]
RUN += ["--trainer.limit_test_batches", "2", "--data.batch_size", "64"]
LOGS = Path("lightning_logs")


class Inverted(MNISTClassifier):
    """Computes something else from the same weights."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs: the first has trained, the second was killed before it had a checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    main([*RUN, "--trainer.default_root_dir", str(root)])
    (root / LOGS / "version_1").mkdir()
    shutil.copy(root / LOGS / "version_0" / "config.yaml", root / LOGS / "version_1")
    (root / LOGS / "version_2").mkdir()  # killed before it was a run
    return root


@pytest.fixture(autouse=True)
def _in_a_copy(trained: Path) -> None:
    shutil.copytree(trained / LOGS, LOGS)


def test_a_run_is_the_newest_or_one_that_a_folder_or_a_checkpoint_names() -> None:
    folder = LOGS / "version_0"
    file = folder / "checkpoints" / "last.ckpt"
    for run in (Run.open(), Run.open("last"), Run.open(folder), Run.open(str(file)), Run.open(root=Path.cwd())):
        assert (run.folder.resolve(), run.path.resolve()) == (folder.resolve(), file.resolve())
        assert run.config is not None
        assert run.checkpoint["epoch"] == 1


def test_a_run_to_resume_is_the_one_that_was_begun_last() -> None:
    run: Any = Run.open(resume=True)
    assert (run.folder, run.path, run.checkpoint) == (LOGS / "version_1", None, None)
    shutil.rmtree(LOGS / "version_1")
    unfinished = LOGS / "version_0" / "checkpoints" / "unfinished.ckpt"
    torch.save({**Run.open().checkpoint, "epoch": 2}, unfinished)
    assert Run.open().path == unfinished
    assert Run.open(resume=True).path.name == "last.ckpt"


def test_the_configuration_of_a_run_from_elsewhere_is_not_taken() -> None:
    shutil.copytree(LOGS / "version_0", "copy/version_0")
    shutil.copy(LOGS / "version_0" / "checkpoints" / "last.ckpt", "a.ckpt")
    for path, folder in (
        ("copy/version_0", "copy/version_0"),
        ("copy/version_0/checkpoints/last.ckpt", "copy/version_0"),
        ("a.ckpt", "."),
    ):
        run = Run.open(path)
        assert run.config is None
        assert run.folder == Path(folder)
    assert Run.open("lightning_logs/version_0", root="copy").config is None


def test_what_is_no_run_is_one_line() -> None:
    with pytest.raises(InputError, match="no fit run with a checkpoint in 'nowhere/lightning_logs'"):
        Run.open(root="nowhere")
    with pytest.raises(InputError, match="'lightning_logs/version_1' has no checkpoint"):
        Run.open(LOGS / "version_1")
    for path in ("elsewhere", "http://127.0.0.1:9/a.ckpt"):
        with pytest.raises(InputError, match="no checkpoint at"):
            Run.open(path)


def test_the_rows_of_metrics_csv_are_numbers() -> None:
    *rows, test = Run.open().metrics
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 4), (1, 9)]
    assert all(type(row["step"]) is int and type(row["train_loss"]) is float for row in rows)
    assert {"test_loss", "test_acc"} <= test.keys()
    assert "train_loss" not in test  # an empty cell


def test_model_and_data_are_made_from_the_checkpoint() -> None:
    run = Run.open()
    model, data = run.load(MNISTClassifier), run.load(MNISTDataModule, train_transform=torch.sqrt)
    assert torch.equal(model.network[1].weight, run.checkpoint["state_dict"]["network.1.weight"])
    assert (data.batch_size, data.train_transform) == (64, torch.sqrt)
    assert run.hyper_parameters(MNISTClassifier)["hidden_size"] == 8
    run.check(model)


def test_another_model_is_refused() -> None:
    run = Run.open()
    with pytest.raises(InputError, match=r"another network: .*size mismatch for network.1.weight"):
        run.check(MNISTClassifier(hidden_size=4))
    run.check(Inverted(hidden_size=8))  # derived from the class that was trained
    run.checkpoint["model_class"] = "Inverted"
    for refuse in (lambda: run.check(MNISTClassifier(hidden_size=8)), lambda: run.load(MNISTClassifier)):
        with pytest.raises(InputError, match="was trained as 'Inverted', here the model is MNISTClassifier"):
            refuse()
    assert isinstance(run.load(Inverted), Inverted)
