"""``scripts/overfitting.py``: what a cell is, how a study goes on, and what follows from the cells."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import quiet
from mnist_lightning.data.datasets import split_images
from mnist_lightning.runs.folder import lock_run

SCRIPTS = Path(__file__).parent.parent / "scripts"
KEPT = SCRIPTS / "overfitting"
TINY = {"epochs": 1, "hidden_size": 16, "train_size": 1_000}


@pytest.fixture
def overfitting(script: Callable) -> ModuleType:
    return script("overfitting")


@pytest.fixture
def train(overfitting: ModuleType, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def train(folder: str = "cell", seed: int = 0, **settings: Any) -> dict[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        cell = overfitting.train(overfitting.Variant("tiny", **{**TINY, **settings}), seed, tmp_path / folder)
        assert json.loads((tmp_path / folder / "cell.json").read_text()) == cell
        return cell

    return train


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def kept_table() -> list[list[str]]:
    lines = (KEPT / "overfitting.md").read_text("utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]


def by_hand(weights: dict[str, Any], images: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy of the network in eval mode, in float64."""
    w1, b1, w2, b2 = (value.double().numpy() for name, value in weights.items() if name.startswith("network"))
    logits = np.maximum(images.reshape(-1, 784) / 255 @ w1.T + b1, 0) @ w2.T + b2
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(targets)), targets]
    return float(loss.mean()), float((logits.argmax(1) == targets).mean())


@pytest.mark.parametrize("setting", [{"dropout": 0.5}, {"degrees": 10, "shift": 0.05}, {"train_size": 60_000}])
def test_a_cell_s_figures_are_of_its_last_weights_in_eval_mode_on_the_images_as_they_are(
    setting: dict[str, float], train: Callable, mnist: Callable, tmp_path: Path
) -> None:
    cell = train(seed=3, **setting)
    (path,) = tmp_path.rglob("*.ckpt")
    weights = torch.load(path, weights_only=True)["state_dict"]
    val_size, train_size = (0, 60_000) if "train_size" in setting else (5_000, 1_000)
    (images, targets), split = mnist("train"), split_images(60_000, val_size, train_size)
    splits = {name: (images[i], targets[i]) for name, i in zip(("train", "val"), split, strict=True) if len(i)}
    for name, data in {**splits, "test": mnist("t10k")}.items():
        assert (cell[f"{name}_loss"], cell[f"{name}_acc"]) == pytest.approx(by_hand(weights, *data), abs=2e-4), name
    assert (cell["val_loss"] is None) == (val_size == 0)
    assert cell["train_acc"] - cell["running_acc"] > 0.03
    assert (cell["seed"], cell["epochs_trained"], cell["parameters"]) == (3, 1, 785 * 16 + 17 * 10)


@pytest.mark.slow
def test_every_setting_changes_the_training(train: Callable) -> None:
    settings: list[dict[str, Any]] = [{}, {"hidden_size": 17}, {"train_size": 1_001}, {"epochs": 2}, {"seed": 1}]
    settings += [{"dropout": 0.2}, {"weight_decay": 0.01}, {"degrees": 20}, {"shift": 0.1}]
    losses = {train(f"cell {i}", **setting)["running_loss"] for i, setting in enumerate(settings)}
    assert len(losses) == len(settings)


def test_a_cell_has_the_bits_of_a_plain_trainer_s_run(train: Callable, trainer: Callable) -> None:
    cell = train(hidden_size=128, seed=7)
    seed_everything(7, verbose=False)
    with quiet():
        fit = trainer()
        fit.fit(MNISTClassifier(128), datamodule=MNISTDataModule(val_size=5_000, train_size=1_000, seed=7))
    assert cell["running_loss"] == fit.callback_metrics["train_loss"].item()


@pytest.mark.slow
def test_early_stopping_takes_the_weights_of_the_lowest_validation_loss_and_goes_on_after_a_break(
    train: Callable, tmp_path: Path
) -> None:
    setting = {"hidden_size": 128, "train_size": 500, "patience": 2, "dropout": 0.2}
    cell = train("whole", epochs=60, **setting)
    losses = [float(row["val_loss"]) for row in rows(next(tmp_path.rglob("metrics.csv"))) if row["val_loss"]]
    lowest = int(np.argmin(losses))
    assert cell["epochs_trained"] == len(losses) == lowest + 3 < 60
    assert cell["weights_of_epoch"] == lowest + 1
    assert cell["val_loss"] == pytest.approx(losses[lowest], abs=1e-5)
    for epochs in (lowest, 60, 60):  # the last time, all is trained already
        resumed = train("broken off", epochs=epochs, **setting)
    assert resumed == {**cell, "seconds": None}


@pytest.mark.slow
def test_a_kept_cell_trained_anew_has_its_figures_again(overfitting: ModuleType, tmp_path: Path, capsys: Any) -> None:
    for _ in range(2):
        overfitting.main(["--out", str(tmp_path), "--variants", "16-units-5-epochs", "--seeds", "0"])
    assert capsys.readouterr().out.count("finished before") == 1
    (cell,), (kept, *_) = rows(tmp_path / "overfitting.csv"), rows(KEPT / "overfitting.csv")
    assert list(cell) == list(kept)
    for name in kept.keys() - {"variant", "seconds", "torch"}:
        assert float(cell[name]) == pytest.approx(float(kept[name]), abs=1e-3), name  # bits differ from CPU to CPU


def test_a_cell_is_trained_by_one_process_only(overfitting: ModuleType, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "16-units-5-epochs" / "seed-0"
    folder.mkdir(parents=True)
    lock = lock_run(folder)
    with pytest.raises(SystemExit):
        overfitting.main(["--out", str(tmp_path), "--variants", "16-units-5-epochs", "--seeds", "0"])
    lock.release()
    assert capsys.readouterr().out == "1/1  16 units, 5 epochs, seed 0: another process is training it\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "dropout-0.5-5"], "argument --variants: invalid choice: 'dropout-0.5-5' (choose from"),
        (["--variants", "16-units-5-epochs", "--seeds", "-1"], "seed_everything must be a whole number from 0 to"),
        (["--csv", "nowhere"], "no finished cells in 'nowhere'"),
        (["--csv", "other.csv"], "'other.csv' holds '32 units, 5 epochs' with other settings than this table's"),
        (["--csv", str(KEPT / "overfitting.md")], "holds a damaged cell"),
        (["--out", "other.csv"], "overfitting.py: error: [Errno"),
    ],
)
def test_bad_input_is_said_with_exit_code_two(
    arguments: list[str], message: str, overfitting: ModuleType, capsys: Any
) -> None:
    Path("other.csv").write_text((KEPT / "overfitting.csv").read_text().replace("16 units", "32 units"))
    with pytest.raises(SystemExit) as stopped:
        overfitting.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_kept_table_follows_from_the_kept_cells(overfitting: ModuleType, tmp_path: Path) -> None:
    overfitting.main(["--csv", str(KEPT / "overfitting.csv"), "--out", str(tmp_path)])
    for name in ("overfitting.csv", "overfitting.md"):
        assert (tmp_path / name).read_bytes() == (KEPT / name).read_bytes()
    columns = ("train_acc", "val_acc", "test_acc", "test_loss")
    cells = np.array([[float(cell[name] or "nan") for name in columns] for cell in rows(KEPT / "overfitting.csv")])
    for (train, val, test, loss), row in zip(cells.reshape(31, 3, 4).swapaxes(1, 2), kept_table(), strict=True):
        errors = 100 * np.array([1 - train, 1 - val, 1 - test, train - test])
        shown = [f"{error.mean():.2f}±{error.std(ddof=1):.2f}" for error in errors]
        assert [text or "nan±nan" for text in row[4:]] == [*shown, f"{loss.mean():.3f}±{loss.std(ddof=1):.3f}"]


def test_the_picture_marks_the_table_s_means(overfitting: ModuleType) -> None:
    cells = overfitting.read_cells(KEPT / "overfitting.csv")
    groups = {variant: cells[3 * i : 3 * i + 3] for i, variant in enumerate(overfitting.VARIANTS)}
    sizes, images, remedies = overfitting.draw(groups).axes
    assert sizes.lines[0].get_xydata()[:2] == pytest.approx(np.array([[16, 6.07], [32, 4.11]]), abs=0.005)
    assert images.lines[1].get_xydata()[-2:] == pytest.approx(np.array([[55_000, 1.64], [60_000, 1.63]]), abs=0.005)
    bars = [line.get_xdata() for line in remedies.lines if line.get_linewidth() == 6]
    assert remedies.get_yticklabels()[-1].get_text() == "shifts, dropout 0.25, 50 epochs"
    assert remedies.texts[len(bars) - 1].get_text() == "0.56"
    marks = [line.get_xdata()[0] for line in remedies.lines if line.get_marker() in ("o", "D")]
    assert [*bars[-1], *marks[-2:]] == pytest.approx([0.42, 0.98, 0.42, 0.98], abs=0.005)


def test_the_studys_figures_are_in_the_kept_table() -> None:
    table, study = (KEPT / "overfitting.md").read_text("utf-8"), (KEPT / "README.md").read_text("utf-8")
    assert set(re.findall(r"\d+\.\d\d+", study)) <= set(re.findall(r"\d+\.\d\d+", table))
    remedies = [row.strip("| ").split(" | ") for row in study.splitlines() if re.match(r"\|.*±", row)]
    assert len(remedies) == 8
    for label, *figures, _ in remedies:
        assert [label, *figures] in [[row[0], *row[6:]] for row in kept_table() if row[1] != "5"]
