"""``scripts/overfitting.py``: what a cell is, how a table of them is made, and what is said about it."""

import copy
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, seed_everything

from mnist_lightning import MNISTClassifier, MNISTDataModule

FIGURES = ("train_acc", "val_acc", "test_acc")
TINY = {"epochs": 1, "hidden_size": 16, "train_size": 1_000}


@pytest.fixture
def overfitting(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("overfitting")


class Weights(Callback):
    """Keeps the weights and the validation loss at the end of every epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Any]] = []
        self.val_loss: list[float] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.val_loss.append(trainer.callback_metrics["val_loss"].item())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(copy.deepcopy(pl_module.state_dict()))


def by_hand(weights: dict[str, Any], images: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy of the network without dropout, in float64."""
    w1, b1, w2, b2 = (value.double().numpy() for name, value in weights.items() if name.startswith("network"))
    logits = np.maximum(images.reshape(-1, 784) / 255 @ w1.T + b1, 0) @ w2.T + b2
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    loss = -np.log(probabilities[np.arange(len(targets)), targets]).mean()
    return float(loss), float((logits.argmax(1) == targets).mean())


@pytest.mark.parametrize("setting", [{"dropout": 0.5}, {"degrees": 10, "shift": 0.05}])
def test_a_cell_s_figures_are_of_its_last_weights_in_eval_mode_on_the_images_as_they_are(
    setting: dict[str, float], overfitting: ModuleType, mnist: Callable
) -> None:
    kept = Weights()
    cell = overfitting.train(overfitting.Variant("tiny", **TINY, **setting), 3, [kept])
    images, targets = mnist("train")
    train, val = MNISTDataModule(val_size=5_000, train_size=1_000).split()
    splits = {"train": (images[train], targets[train]), "val": (images[val], targets[val]), "test": mnist("t10k")}
    for name, split in splits.items():
        expected = by_hand(kept.weights[-1], *split)
        assert (cell[f"{name}_loss"], cell[f"{name}_acc"]) == pytest.approx(expected, abs=2e-4), name
    assert abs(cell["train_acc"] - cell["running_acc"]) > 0.05
    assert (cell["seed"], cell["epochs_trained"], cell["parameters"]) == (3, 1, 785 * 16 + 17 * 10)


def test_every_setting_changes_the_training(overfitting: ModuleType) -> None:
    plain, others = overfitting.Variant("tiny", **TINY), [{"hidden_size": 17}, {"train_size": 1_001}, {"epochs": 2}]
    others += [{"dropout": 0.2}, {"dropout": 0.5}, {"weight_decay": 0.01}, {"weight_decay": 0.1}]
    others += [{"degrees": 20}, {"degrees": 45}, {"shift": 0.1}, {"shift": 0.2}]
    losses = [overfitting.train(plain, 0)["running_loss"] for _ in range(2)]
    assert losses[0] == losses.pop()
    losses += [overfitting.train(plain._replace(**setting), 0)["running_loss"] for setting in others]
    assert len(set(losses)) == len(losses)


def test_a_seed_draws_weights_and_order_as_the_command_does(overfitting: ModuleType, trainer: Callable) -> None:
    torch.rand(3)  # where the random numbers stood before is of no account
    cell = overfitting.train(overfitting.Variant("tiny", **TINY), 7)
    seed_everything(7, verbose=False)
    fit = trainer(num_sanity_val_steps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        fit.fit(MNISTClassifier(16), datamodule=MNISTDataModule(val_size=5_000, train_size=1_000, seed=7))
    assert cell["running_loss"] == fit.callback_metrics["train_loss"].item()


def test_early_stopping_takes_the_weights_of_the_lowest_validation_loss(overfitting: ModuleType) -> None:
    kept = Weights()
    variant = overfitting.Variant("tiny", epochs=60, hidden_size=128, train_size=500, patience=2)
    cell = overfitting.train(variant, 0, [kept])
    lowest = int(np.argmin(kept.val_loss))
    assert cell["epochs_trained"] == len(kept.val_loss) == lowest + 3 < 60
    assert cell["weights_of_epoch"] == lowest + 1
    assert cell["val_loss"] == pytest.approx(kept.val_loss[lowest], abs=1e-5)


def test_all_images_leave_none_for_validation(overfitting: ModuleType) -> None:
    cell = overfitting.train(overfitting.Variant("all", epochs=1, hidden_size=1, train_size=60_000), 0)
    assert (cell["val_loss"], cell["val_acc"]) == (None, None)
    assert 0 < cell["train_acc"] < 1


# ------------------------------------------------------------------------------------- the cells


def made_up(overfitting: ModuleType, variant: Any, seed: int, **figures: float | None) -> dict[str, Any]:
    """A cell with the given figures, and for the rest those that its name and its seed draw."""
    draw = random.Random(f"{variant.name} {seed}")
    cell = {name: draw.uniform(0.9, 1) for name in overfitting.NUMBERS}
    fixed = {"parameters": 407_050, "epochs_trained": variant.epochs, "weights_of_epoch": variant.epochs}
    if not variant.val_size:
        fixed |= {"val_loss": None, "val_acc": None}
    return {**cell, "variant": variant.name, "seed": seed, **variant.settings, **fixed, "torch": "2", **figures}


@pytest.fixture
def trained(overfitting: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Makes training instant; holds what was trained."""
    trained = []

    def train(variant: Any, seed: int, callbacks: Any = ()) -> dict[str, Any]:
        trained.append((variant.slug, seed))
        return made_up(overfitting, variant, seed)

    monkeypatch.setattr(overfitting, "train", train)
    return trained


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_table_goes_on_and_trains_no_cell_twice(
    overfitting: ModuleType, trained: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = ["--out", str(tmp_path), "--variants", "16-units-5-epochs", "early-stopping-50-epochs"]
    train = overfitting.train

    def stopped(variant: Any, seed: int, callbacks: Any) -> dict[str, Any]:
        if len(trained) == 3:
            raise SystemExit(1)  # what Lightning makes of Ctrl-C
        return train(variant, seed, callbacks)

    monkeypatch.setattr(overfitting, "train", stopped)
    assert overfitting.main(arguments) == 130
    assert capsys.readouterr().err == "stopped; run the same command again to go on\n"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert len(before) == len(trained) == 3
    monkeypatch.setattr(overfitting, "train", train)
    assert overfitting.main(arguments) == 0
    # Seed by seed, so that what there is of a table broken off can be compared.
    assert trained == [(slug, seed) for seed in (0, 1) for slug in arguments[3:]]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    out = capsys.readouterr().out
    assert "3 of 4 cells are in" in out
    assert "\n  4/4   early stopping, 50 epochs       1" in out
    assert max(map(len, out.splitlines())) <= max(80, len(f"wrote overfitting.csv, .md and .png in {tmp_path}"))


def test_a_cell_that_another_process_has_finished_meanwhile_is_left_alone(
    overfitting: ModuleType, trained: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = next(variant for variant in overfitting.VARIANTS if variant.slug == "dropout-0.5-5-epochs")
    train = overfitting.train

    def meanwhile(variant: Any, seed: int, callbacks: Any) -> dict[str, Any]:
        overfitting.write_cell(tmp_path, other, made_up(overfitting, other, 0, test_acc=0.5))
        return train(variant, seed, callbacks)

    monkeypatch.setattr(overfitting, "train", meanwhile)
    names = ["16-units-5-epochs", "dropout-0.5-5-epochs", "32-units-5-epochs"]
    assert overfitting.main(["--out", str(tmp_path), "--seeds", "0", "--variants", *names]) == 0
    assert [slug for slug, _ in trained] == ["16-units-5-epochs", "32-units-5-epochs"]
    assert json.loads((tmp_path / "dropout-0.5-5-epochs" / "seed-0.json").read_text())["test_acc"] == 0.5


def test_folders_of_several_machines_merge_into_the_table_of_one(
    overfitting: ModuleType, trained: list, tmp_path: Path
) -> None:
    one, a, b, merged = (tmp_path / name for name in ("one", "a", "b", "merged"))
    names = ["--variants", "60000-images-50-epochs", *overfitting.SELECTION]
    assert overfitting.main([*names, "--seeds", "0", "1", "2", "--out", str(one)]) == 0
    assert overfitting.main([*names, "--seeds", "2", "0", "--out", str(a)]) == 0
    assert overfitting.main([*names, "--seeds", "1", "--out", str(b)]) == 0
    before, count = files(a), len(trained)
    assert overfitting.main(["--merge", str(b), str(a), "--out", str(merged)]) == 0
    assert files(merged) == files(one)
    assert files(a) == before
    assert overfitting.main(["--merge", str(one / "overfitting.csv"), "--out", str(tmp_path / "kept")]) == 0
    assert files(tmp_path / "kept") == files(one)
    assert len(trained) == count
    assert count == 2 * 3 * (len(overfitting.SELECTION) + 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ('{"variant": "16 units, 5 epochs"}', "is damaged"),
        ({"test_acc": float("nan")}, "is damaged"),
        ({"test_loss": float("inf")}, "is damaged"),
        ({"test_acc": 97.8}, "is damaged"),
        ({"test_loss": None}, "is damaged"),
        ({"variant": ["16"]}, "is damaged"),
        ({"variant": "17 units, 5 epochs"}, "is no cell of this table"),
        ({"variant": "32 units, 5 epochs"}, "was trained with hidden_size 16, where the table has 32"),
        ({"seed": 1}, "is no cell of this table"),
        ({"dropout": 0.3}, "was trained with dropout 0.3, where the table has 0.0"),
        ({"epochs": 6}, "was trained with epochs 6, where the table has 5"),
    ],
)
def test_a_damaged_or_another_cell_is_one_line_and_exit_code_two(
    content: Any, message: str, overfitting: ModuleType, trained: list, tmp_path: Path, capsys: Any
) -> None:
    (variant,) = [variant for variant in overfitting.VARIANTS if variant.slug == "16-units-5-epochs"]
    if isinstance(content, dict):
        content = json.dumps({**made_up(overfitting, variant, 0), **content})
    path = tmp_path / variant.slug / "seed-0.json"
    path.parent.mkdir()
    path.write_text(content)
    before = files(tmp_path)
    assert overfitting.main(["--out", str(tmp_path), "--variants", variant.slug]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"overfitting.py: error: {str(path)!r} {message}")
    assert overfitting.main(["--out", str(tmp_path / "merged"), "--merge", str(tmp_path)]) == 2
    assert files(tmp_path) == before
    assert trained == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "x"], "argument --seeds: invalid int value: 'x'"),
        (["--seeds", "-1"], "a seed must be from 0 to 4294967295, got -1"),
        (["--seeds", "4294967296"], "a seed must be from 0"),
        (["--seeds", "1", "2", "1"], "seed 1 is given twice"),
        (["--variants", "dropout-0.5-5"], "no variant 'dropout-0.5-5' (did you mean dropout-0.5-5-epochs?)"),
        (["--variants", "16-units-5-epochs", "16-units-5-epochs"], "variant 16-units-5-epochs is given twice"),
        (["--full", "--variants", "16-units-5-epochs"], "--full trains all variants"),
        (["--merge", ".", "--seeds", "1"], "--merge trains nothing"),
        (["--merge", "nowhere"], "no cells in 'nowhere'"),
        (["--merge", "file"], "no cells in 'file'"),
        (["--merge", "table.csv"], "line 2 of 'table.csv' is damaged"),
        (["--out", "file"], "cannot write to the folder 'file'"),
        (["--out", "file/in"], "cannot write to the folder"),
        (["--ful"], "unrecognized arguments: --ful"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    arguments: list[str],
    message: str,
    overfitting: ModuleType,
    trained: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("table.csv").write_text('variant,seed\n"16 units, 5 epochs",0\n')
    before = files(tmp_path)
    assert overfitting.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"overfitting.py: error: {message}")
    assert trained == []
    assert files(tmp_path) == before


def test_the_default_is_a_selection_of_the_table_that_fits_in_ten_minutes(overfitting: ModuleType, capsys: Any) -> None:
    table = {variant.slug: variant for variant in overfitting.VARIANTS}
    assert len(table) == len(overfitting.VARIANTS)
    assert set(overfitting.SELECTION) < set(table)
    # 1.9 s an epoch of the tutorial's on one thread.
    plain = overfitting.Variant("").hidden_size + 130
    seconds = 2 * sum(table[slug].cost for slug in overfitting.SELECTION) * 1.9 / (55_000 * plain)
    assert seconds < 600
    assert overfitting.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(table)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGINT to one process")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_in_the_middle_of_a_cell_keeps_the_finished_ones(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    path = Path(__file__).parent.parent / "scripts" / "overfitting.py"
    command = [sys.executable, path, "--out", tmp_path, "--variants", "1000-images-50-epochs", "2048-units-50-epochs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finished = tmp_path / "1000-images-50-epochs" / "seed-0.json"
    while not finished.exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "stopped; run the same command again to go on\n")
    assert "1/4" in out
    assert "2/4" not in out
    assert list(files(tmp_path)) == ["1000-images-50-epochs/seed-0.json"]


# ------------------------------------------------------------------------------------ the report


def study(overfitting: ModuleType, spread: float = 0.01, **errors: tuple[float, float | None, float]) -> list[Any]:
    """Summaries of made-up cells.

    Args:
        spread: The standard deviation over the three seeds, in points.
        errors: Of slugs with underscores, the mean training, validation and test error in %.
    """
    table = {variant.slug.replace("-", "_").replace(".", "_"): variant for variant in overfitting.VARIANTS}
    cells = []
    for slug, means in errors.items():
        for seed in range(3):
            figures = {
                name: None if mean is None else 1 - (mean + spread * (seed - 1)) / 100
                for name, mean in zip(FIGURES, means, strict=True)
            }
            cells.append(made_up(overfitting, table[slug.removeprefix("n")], seed, **figures))
    return overfitting.summarize(cells, overfitting.VARIANTS)


BASE = {"n512_units_5_epochs": (0.9, 2.5, 2.2), "n512_units_50_epochs": (0.01, 1.8, 1.7)}


def test_the_table_s_means_and_deviations_are_those_of_the_csv(
    overfitting: ModuleType, trained: list, tmp_path: Path
) -> None:
    assert overfitting.main(["--full", "--out", str(tmp_path)]) == 0
    with (tmp_path / "overfitting.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    lines = (tmp_path / "overfitting.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]
    assert len(table) == len(overfitting.VARIANTS)
    for variant, (label, epochs, parameters, seeds, *texts) in zip(overfitting.VARIANTS, table, strict=True):
        mine = [cell for cell in cells if cell["variant"] == variant.name]
        assert (label, epochs, parameters, seeds) == (variant.label, str(variant.epochs), "407,050", "3")
        train, test = (100 * (1 - np.array([float(cell[name]) for cell in mine])) for name in ("train_acc", "test_acc"))
        val = [100 * (1 - float(cell["val_acc"])) for cell in mine if cell["val_acc"]]
        loss = np.array([float(cell["test_loss"]) for cell in mine])
        expected = [
            f"{np.mean(x):.2f}±{np.std(x, ddof=1):.2f}" if len(x) else "" for x in (train, val, test, test - train)
        ]
        assert texts == [*expected, f"{loss.mean():.3f}±{loss.std(ddof=1):.3f}"]
    assert (table[-1][5], table[20][5]) != ("", "")
    assert [row[0] for row in table if not row[5]] == ["60,000 images"]


def test_the_figure_s_lines_are_the_table_s_means(overfitting: ModuleType) -> None:
    summaries = study(
        overfitting,
        **BASE,
        n16_units_50_epochs=(3, 5, 4.7),
        n1000_images_50_epochs=(0.01, 11, 10.01),
        dropout_0_5_50_epochs=(0.1, 1.7, 1.6),
    )
    sizes, images, remedies = overfitting.draw(summaries).axes
    lines = {line.get_label(): (list(line.get_xdata()), line.get_ydata()) for line in sizes.lines}
    assert list(lines) == ["training, 50 epochs", "test, 50 epochs"]  # at 5 epochs there is nothing to compare
    assert lines["test, 50 epochs"][0] == [16, 512]
    assert lines["test, 50 epochs"][1] == pytest.approx([4.7, 1.7])
    assert lines["training, 50 epochs"][1] == pytest.approx([3, 0.01])
    lines = {line.get_label(): (list(line.get_xdata()), line.get_ydata()) for line in images.lines}
    assert lines["test, 50 epochs"][0] == [1_000, 55_000]
    assert lines["test, 50 epochs"][1] == pytest.approx([10.01, 1.7])
    labels = [label.get_text() for label in remedies.get_yticklabels()]
    assert labels == ["no remedy, 5 epochs", "no remedy, 50 epochs", "dropout 0.5, 50 epochs"]
    bars = [line.get_xdata() for line in remedies.lines if line.get_linewidth() == 6]
    assert bars == [pytest.approx([0.9, 2.2]), pytest.approx([0.01, 1.7]), pytest.approx([0.1, 1.6])]
    gaps = [text.get_text() for text in remedies.texts]
    assert gaps[:3] == ["1.30", "1.69", "1.50"]


def test_the_finding_follows_the_numbers(overfitting: ModuleType) -> None:
    said = overfitting.finding(study(overfitting, **BASE))
    assert "(407,050 parameters, 55,000 training images) is wrong on 0.90 % of the training images" in said[0]
    assert "on 2.20 % of the test images, a gap of 1.30 points" in said[0]
    assert "the training error falls from 0.90 to 0.01 %, the test error falls from 2.20 to 1.70 %" in said[1]
    assert "and the gap rises from 1.30 to 1.69 points" in said[1]
    assert "by heart" in said[1]
    turned = {"n512_units_5_epochs": BASE["n512_units_50_epochs"], "n512_units_50_epochs": BASE["n512_units_5_epochs"]}
    said = overfitting.finding(study(overfitting, **turned))
    assert "the training error rises from 0.01 to 0.90 %, the test error rises from 1.70 to 2.20 %" in said[1]
    assert "and the gap falls from 1.69 to 1.30 points" in said[1]
    assert "by heart" not in said[1]


@pytest.mark.parametrize(
    ("errors", "sentence", "verdict"),
    [
        (
            (0.3, 1.7, 1.4),
            "the test error falls from 1.70 to 1.40 %, the gap falls from 1.69 to 1.10 points",
            "it helps",
        ),
        (
            (1.5, 2.8, 2.4),
            "the test error rises from 1.70 to 2.40 %, the gap falls from 1.69 to 0.90",
            "training worse",
        ),
        ((0.3, 1.8, 1.71), "the test error does not clearly change, 1.70 and 1.71 %", "but no clearly better test"),
        ((0.01, 1.9, 1.9), "the test error rises from 1.70 to 1.90 %, the gap rises from 1.69 to 1.89 points", "nats."),
    ],
)
def test_a_remedy_is_judged_by_test_error_and_gap_together(
    errors: tuple[float, float, float], sentence: str, verdict: str, overfitting: ModuleType
) -> None:
    said = overfitting.finding(study(overfitting, **BASE, dropout_0_5_50_epochs=errors))
    (remedy,) = [line for line in said if line.startswith("Dropout 0.5, 50 epochs:")]
    assert sentence in remedy
    assert verdict in remedy
    assert remedy.endswith("nats.") == (verdict == "nats.")


def test_seeds_that_agree_by_chance_prove_no_difference(overfitting: ModuleType) -> None:
    said = overfitting.finding(study(overfitting, spread=0, **BASE, dropout_0_5_50_epochs=(0.01, 1.8, 1.72)))
    (remedy,) = [line for line in said if line.startswith("Dropout 0.5, 50 epochs:")]
    assert "the test error does not clearly change, 1.70 and 1.72 %" in remedy


def test_size_and_images_are_judged_from_the_smallest_to_the_largest(overfitting: ModuleType) -> None:
    more = {
        "n16_units_5_epochs": (6, 7, 6.5),
        "n64_units_5_epochs": (9, 9, 9),
        "n1000_images_50_epochs": (0.01, 11, 10.01),
    }
    said = "\n".join(overfitting.finding(study(overfitting, **BASE, **more)))
    assert "From 16 to 512 units (5 epochs) the training error falls from 6.00 to 0.90 %" in said
    assert "the gap rises from 0.50 to 1.30 points. A smaller network has the smaller gap, but is the worse" in said
    assert "From 1,000 to 55,000 training images (50 epochs)" in said
    assert "the gap falls from 10.00 to 1.69 points. The fewer the images, the more it overfits." in said
    more = {"n16_units_5_epochs": (0.5, 2, 2), "n1000_images_50_epochs": (0, 1, 1)}
    said = "\n".join(overfitting.finding(study(overfitting, **BASE, **more)))
    assert "From 16 to 512 units (5 epochs) the training error rises from 0.50 to 0.90 %" in said
    assert "worse network" not in said
    assert "The fewer" not in said


def test_the_choice_is_by_validation_error_whatever_the_test_errors(overfitting: ModuleType) -> None:
    for test in (0.1, 9.0):
        errors = {"n16_units_5_epochs": (5, 1.0, test), "n32_units_5_epochs": (4, 1.2, 10 - test)}
        summaries = study(overfitting, **errors, n60000_images_50_epochs=(0, None, 0.05))
        assert overfitting.best(summaries).variant.slug == "16-units-5-epochs"
        said = overfitting.finding(summaries)[-1]
        assert said.startswith("The lowest validation error, 1.00 %, has: 16 units, 5 epochs. Its test error is")
        assert f"is {test:.2f} %" in said


def test_a_single_seed_gives_a_table_but_no_finding(overfitting: ModuleType, trained: list, tmp_path: Path) -> None:
    assert overfitting.main(["--seeds", "4", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "overfitting.md").read_text(encoding="utf-8")
    assert "No finding: it takes 2 seeds a variant or more." in text
    assert "±0" not in text
    assert "nan" not in text


# ------------------------------------------------------------------ the table that is kept

KEPT = Path(__file__).parent.parent / "scripts" / "overfitting"
README = Path(__file__).parent.parent / "README.md"


def test_the_kept_table_and_finding_follow_from_the_kept_cells(overfitting: ModuleType, tmp_path: Path) -> None:
    assert overfitting.main(["--merge", str(KEPT / "overfitting.csv"), "--out", str(tmp_path)]) == 0
    for name in ("overfitting.csv", "overfitting.md"):
        assert (tmp_path / name).read_text() == (KEPT / name).read_text()
    cells = overfitting.read_cells(tmp_path, {variant.name: variant for variant in overfitting.VARIANTS})
    assert {(cell["variant"], cell["seed"]) for cell in cells} == {
        (variant.name, seed) for variant in overfitting.VARIANTS for seed in (0, 1, 2)
    }


def test_the_readme_s_answer_follows_from_the_kept_table() -> None:
    table = (KEPT / "overfitting.md").read_text(encoding="utf-8")
    answer = README.read_text(encoding="utf-8").split("## Why does it overfit?")[1].split("\n## ")[0]
    numbers = set(re.findall(r"\d+\.\d\d+", answer))
    assert len(numbers) > 30
    assert numbers <= set(re.findall(r"\d+\.\d\d+", table))
    kept = {tuple(row.strip("| ").split(" | ")) for row in table.splitlines() if row.startswith("| ")}
    remedies = [row.strip("| ").split(" | ") for row in answer.splitlines() if row.startswith("| ")][2:]
    assert len(remedies) == 7
    for label, *figures, _ in remedies:
        assert [label, *figures] in [[row[0], *row[6:]] for row in kept if row[1] != "5"]
