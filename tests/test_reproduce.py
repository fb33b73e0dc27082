"""The plain command's training is Keras's algorithm, and ``scripts/reproduce.py`` compares many of them with Keras."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main

SEED = 7


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, Any]]:
    """The figures and the checkpoint that ``fit --seed_everything 7`` left behind after one epoch."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--seed_everything", str(SEED), "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"])
    run = folder / "lightning_logs" / "version_0"
    with (run / "metrics.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["train_loss"]]
    return row, torch.load(next(run.rglob("*.ckpt")), weights_only=True)


def test_the_command_trains_469_batches_with_keras_s_constants(plain: Any) -> None:
    _, checkpoint = plain
    assert checkpoint["global_step"] == 469
    assert checkpoint["hyper_parameters"] == dict(MNISTClassifier().hparams)
    assert checkpoint["datamodule_hyper_parameters"] == dict(MNISTDataModule(seed=SEED).hparams)
    (optimizer,) = checkpoint["optimizer_states"]
    (group,) = optimizer["param_groups"]
    wanted = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7, "momentum": 0, "centered": False, "weight_decay": 0}
    assert {name: group[name] for name in wanted} == wanted


def test_the_command_trains_as_a_loop_written_by_hand(plain: Any, mnist: Callable) -> None:
    pixels, digits = mnist("train")
    pixels, digits = pixels.reshape(-1, 784).astype("f4") / np.float32(255), torch.from_numpy(digits.astype(int))
    seed_everything(SEED, verbose=False)
    weights = [parameter.detach().clone().requires_grad_() for parameter in MNISTClassifier().parameters()]
    averages = [torch.zeros_like(weight) for weight in weights]
    losses, sizes, right = [], [], 0
    order = np.random.default_rng((SEED, 0)).permutation(60_000)
    for start in range(0, 60_000, 128):
        index = order[start : start + 128]
        images, targets = torch.from_numpy(pixels[index]), digits[index]
        logits = F.linear(F.linear(images, *weights[:2]).relu(), *weights[2:])
        loss = (logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]).mean()
        losses.append(loss.item())
        sizes.append(len(index))
        right += int((logits.argmax(1) == targets).sum())
        for weight, average, gradient in zip(weights, averages, torch.autograd.grad(loss, weights), strict=True):
            average.mul_(0.9).addcmul_(gradient, gradient, value=0.1)
            weight.data.addcdiv_(gradient, average.sqrt() + 1e-7, value=-1e-3)
    # Two orders of float32 sums: the runs drift apart, by 1e-5 in the mean of the epoch.
    mean = np.average(losses, weights=sizes)
    loss, acc = (float(plain[0][name]) for name in ("train_loss", "train_acc"))
    assert loss == pytest.approx(mean, abs=1e-4)
    assert abs(loss - mean) < abs(loss - np.mean(losses)) / 2  # the last batch has a smaller weight
    assert acc == pytest.approx(right / 60_000, abs=5e-4)


def results(loss: float, spread: float, n: int = 20) -> list[dict[str, Any]]:
    """Runs whose figures stand evenly around these, the first epoch's loss around ``loss``."""
    means: dict[str, Any] = {"loss": [loss, 0.1, 0.07, 0.05, 0.04], "acc": [0.92, 0.97, 0.98, 0.985, 0.989]}
    means |= {"test_loss": 0.07, "test_acc": 0.979}
    runs = enumerate(np.linspace(-spread, spread, n))
    return [{"seed": seed, **{name: np.add(means[name], offset).tolist() for name in means}} for seed, offset in runs]


@pytest.mark.parametrize(
    ("loss", "spread", "code", "verdict"),
    [
        (0.2505, 0.002, 0, "yes, everywhere."),
        (0.253, 0.002, 1, "NO: loss, epoch 1: +9.4 standard errors"),
        (0.247, 0.002, 1, "NO: loss, epoch 1: -9.4 standard errors"),
        (0.25, 0.0045, 1, "NO: loss, epoch 1: standard deviation 2.37 times Keras's"),
        (0.25, 0.0009, 1, "NO: loss, epoch 1: standard deviation 0.47 times Keras's"),
    ],
)
def test_the_verdict_says_what_lies_outside(
    loss: float, spread: float, code: int, verdict: str, script: Callable, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    reproduce = script("reproduce")
    keras = tmp_path / "keras.jsonl"
    keras.write_text("".join(json.dumps(run) + "\n" for run in results(0.25, 0.002, n=60)))
    monkeypatch.setattr(reproduce, "KERAS", keras)
    monkeypatch.setattr(reproduce, "train", results(loss, spread).__getitem__)
    assert reproduce.main([]) == code
    out, err = capsys.readouterr()
    assert verdict in out
    assert [line.split(":")[0] for line in err.splitlines()] == [f"seed {seed}" for seed in range(20)]
    assert reproduce.main(["--seeds", "4"]) == 0
    assert "No verdict" in capsys.readouterr().out


def test_the_table_shows_keras_s_sixty_seeds_and_the_notebook(script: Callable) -> None:
    reproduce = script("reproduce")
    keras = [json.loads(line) for line in reproduce.KERAS.read_text().splitlines()]
    assert [run["seed"] for run in keras] == list(range(1, 61))
    lines = reproduce.report(results(0.2566, 0.004), keras).splitlines()
    rows = {cells[1]: cells[2:-1] for cells in ([cell.strip() for cell in line.split("|")] for line in lines[2:14])}
    assert list(rows)[:2] == ["loss, epoch 1", "loss, epoch 2"]
    assert rows["loss, epoch 1"][:3] == ["0.2551", "0.25663", "0.00241"]
    assert rows["acc, epoch 5"][:3] == ["0.9885", "0.98881", "0.00029"]
    assert rows["test acc"][:3] == ["0.9778", "0.97942", "0.00154"]
    assert {len(cells) for cells in rows.values()} == {7}


@pytest.mark.slow
def test_the_script_trains_and_prints_its_table_alone(script: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("reproduce").main(["--seeds", "1"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("seed 0: test_acc 0.98")
    lines = out.splitlines()
    assert [line[:1] for line in lines] == [*"|" * 14, "", "N"]
    assert all(line.count("|") == 9 for line in lines[:14])


def test_no_seeds_are_one_line_and_exit_code_two(script: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        script("reproduce").main(["--seeds", "0"])
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "reproduce: error: --seeds must be at least 1, got 0\n")
