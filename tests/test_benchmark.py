import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("termios", reason="the benchmark is for POSIX systems")

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*args):
    # With a thread for each core, torch takes ten times as long wherever another program runs too.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = [sys.executable, SCRIPT, *map(str, args)]
    return subprocess.run(args, capture_output=True, text=True, timeout=600, env=env)


def report_of(*rounds):
    machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "cpu_capability": "AVX2", "device": "CPU"}
    head = {"date": "today", "command": "benchmark.py", "epochs": 5, "notes": [], "load": 0.0}
    return {**head, "machine": {**machine, "packages": {}}, "rounds": list(rounds)}


@pytest.mark.slow
def test_a_contender_that_learned_too_little_is_refused(tmp_path):
    # One epoch ends near 0.96.
    done = run("--rounds", 1, "--epochs", 1, "--contenders", "hand", "--out", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "REFUSED hand: test accuracy 0.9" in done.stderr
    assert "REFUSED: hand: test accuracy 0.9" in done.stdout
    assert done.stdout == (tmp_path / "benchmark.md").read_text()
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(report["refused"]) == ["hand"]
    assert report["summary"] == {}
    assert report["rounds"] == [{}]


def test_a_refusal_in_one_round_withholds_all_rounds(benchmark):
    good, bad = {"fit": 123.25, "process": 234.5, "test_acc": 0.98}, {"refused": "test accuracy 0.9123"}
    hand = {"fit": 7.5, "process": 12.5, "test_acc": 0.98}
    report = report_of({"hand": hand, "package": good}, {"hand": hand, "package": bad})
    for text in (benchmark.as_json(report), benchmark.as_markdown(report)):
        assert "test accuracy 0.9123" in text
        assert "123.25" not in text
        assert "7.5" in text
    assert json.loads(benchmark.as_json(report))["ratios"] == []


def test_ratios_are_taken_within_a_round(benchmark):
    rounds = [{"hand": {"fit": hand}, "package": {"fit": package}} for hand, package in ((1, 6), (2, 2), (3, 3))]
    (ratio,) = json.loads(benchmark.as_json(report_of(*rounds)))["ratios"]
    # The medians are 2 and 3: their ratio would be 1.5.
    assert (ratio["row"], ratio["to_row"]) == ("package", "hand")
    assert (ratio["median"], ratio["min"], ratio["max"]) == (1, 1, 6)
    assert "| fit | package | hand | 1.000 (1.000 to 6.000) | 1.10 | yes |" in benchmark.as_markdown(report_of(*rounds))


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--rounds", 0], "--rounds and --epochs must be at least 1"),
        (["--contenders", "keras"], "needs --keras"),
        (["--contenders"], "nothing to measure"),
        (["--keras", "no/such/python"], "no/such/python"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_runs(tmp_path, args, complaint):
    done = run("--out", tmp_path / "results", *args)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "results").exists()
