"""The benchmark: quick stand-ins for the package's command show what it measures and what it refuses."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("termios", reason="the benchmark is for POSIX systems")

MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a GPU")
SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"
COMMAND = """
import time
print("Network  784 -> 512 ReLU -> 10")
time.sleep({seconds})
print("Epoch 5/5  0.1 s  train_loss 0.0378")
print("Test     test_loss 0.0660  test_acc {accuracy}")
"""


def checkout(folder: Path, command: str) -> Path:
    """A checkout with the benchmark, and with a command that trains nothing."""
    for name in ("scripts", "mnist_lightning"):
        (folder / name).mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    (folder / "mnist_lightning" / "__init__.py").touch()
    (folder / "mnist_lightning" / "__main__.py").write_text(command)
    return folder


def run(folder: Path, *args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, folder / "scripts" / SCRIPT.name, "--accelerator", "cpu", *map(str, args)]
    # With a thread for each core, torch takes ten times as long wherever another program runs too.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, cwd=cwd)


@pytest.mark.slow
def test_two_checkouts_are_compared_round_by_round(tmp_path: Path) -> None:
    here = checkout(tmp_path / "here", COMMAND.format(seconds=0, accuracy=0.981))
    there = checkout(tmp_path / "there", COMMAND.format(seconds=1, accuracy=0.976))
    done = run(here, "--against", there, "--rounds", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stderr.splitlines()] == ["package", "against", "against", "package"]
    assert done.stdout == (tmp_path / "out" / "benchmark.md").read_text()
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    # Each command was that of its own checkout, and the time is that between its two lines.
    assert [report["rows"][row]["test_acc"]["median"] for row in ("package", "against")] == [0.981, 0.976]
    assert all(0.5 < each["against"]["fit_s"] < each["against"]["process_s"] for each in report["rounds"])
    for ratio, figure in zip(report["ratios"], ("fit_s", "process_s"), strict=True):
        values = [figures["package"][figure] / figures["against"][figure] for figures in report["rounds"]]
        assert ratio["figure"] == figure
        assert [ratio[name] for name in ("q1", "median", "q3")] == pytest.approx(np.percentile(values, [25, 50, 75]))
        assert f"{ratio['median']:.4g} ({min(values):.4g} to {max(values):.4g}) | {ratio['q1']:.4g}" in done.stdout


def test_other_processes_are_busy_only_as_long_as_is_measured(tmp_path: Path, script: Callable) -> None:
    with script("benchmark").busy(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 2
    here = checkout(tmp_path / "here", COMMAND.format(seconds=0, accuracy=0.981))
    done = run(here, "--busy", 1, "--contenders", "package", "--rounds", 1, "--out", tmp_path / "out")
    assert "busy processes beside: 1" in done.stdout


def test_ratios_are_taken_within_a_round(script: Callable) -> None:
    rounds = [{"hand": {"fit_s": hand}, "package": {"fit_s": package}} for hand, package in ((1, 6), (2, 2), (3, 3))]
    (ratio,) = script("benchmark").summarize(rounds)["ratios"]
    # The medians are 2 and 3: their ratio would be 1.5.
    assert (ratio["of"], ratio["to"]) == ("package", "hand")
    assert (ratio["median"], ratio["min"], ratio["max"]) == (1, 1, 6)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (COMMAND.format(seconds=0, accuracy=0.9691), "has a test accuracy of 0.9691, not at least 0.97"),
        (COMMAND.format(seconds=0, accuracy="nan"), "did not train and test"),
        ("print('Test  test_acc 0.98')", "did not train and test"),
        (f"{COMMAND.format(seconds=0, accuracy=0.98)}raise SystemExit(3)", "did not train and test: exit code 3"),
    ],
)
def test_a_contender_that_has_not_done_the_work_is_no_result(tmp_path: Path, command: str, complaint: str) -> None:
    here = checkout(tmp_path / "here", command)
    done = run(here, "--rounds", 1, "--contenders", "package", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "benchmark: error: package" in done.stderr
    assert complaint in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--rounds", 0], "--rounds and --epochs must be at least 1"),
        (["--busy", -1], "--busy must be 0 or more, got -1"),
        pytest.param(["--accelerator", "gpu"], "--accelerator gpu needs a GPU, and torch finds none here", marks=MPS),
        (["--contenders", "keras"], "invalid choice: 'keras'"),
        (["--keras", "no/such/python"], "no/such/python"),
        (["--against", "no/such/checkout"], "--against must be a checkout of this repository"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_runs(
    tmp_path: Path, args: list[object], complaint: str
) -> None:
    done = run(SCRIPT.parent.parent, "--out", tmp_path / "results", *args)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_small_benchmark_measures_the_real_contenders(tmp_path: Path) -> None:
    rows = ["hand", "package", "evaluation"]
    done = run(SCRIPT.parent.parent, "--rounds", 1, "--epochs", 1, "--contenders", *rows, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert sorted(report["rows"]) == sorted(rows)
    for figures in report["rounds"][0].values():
        assert all(value > 0 for value in figures.values())
    assert [(ratio["figure"], ratio["of"], ratio["to"]) for ratio in report["ratios"]] == [("fit_s", "package", "hand")]


@pytest.mark.slow
def test_growth_trains_on_the_images_repeated(tmp_path: Path) -> None:
    done = run(SCRIPT.parent.parent, "--child", "growth-2x1", "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "120,000 training images" in done.stdout
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["step"] == str(-(-120_000 // 128) - 1)
