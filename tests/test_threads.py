"""How many threads a command takes, and how they wait for each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mnist_lightning.cli import main, threads

SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu"]
CONFIG = Path("lightning_logs/version_0/config.yaml")
CHECKPOINT = Path("lightning_logs/version_0/checkpoints/last.ckpt")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux says these things in files")


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def command(*args: str, code: str = "pass", **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which says the environment of its children at the end."""
    program = f"import os, sys; {code}; from mnist_lightning.cli import main; main(); print(dict(os.environ))"
    env = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", program, *args], env=env, capture_output=True, text=True)


# ---------------------------------------------------------------- how they wait


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    ("variables", "spins"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
        ({"OMP_WAIT_POLICY": "active"}, "30000000000"),
    ],
    ids=str,
)
def test_the_threads_of_a_command_wait_briefly_unless_the_user_says_how(variables: dict[str, str], spins: str) -> None:
    done = command("fit", *SHORT, OMP_DISPLAY_ENV="verbose", **variables)
    assert done.returncode == 0
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [spins]
    assert ("'GOMP_SPINCOUNT'" in done.stdout) == ("GOMP_SPINCOUNT" in variables)  # child processes take their own


@pytest.mark.slow
@linux
def test_the_package_changes_nothing_in_a_program_that_imports_it() -> None:
    code = "import mnist_lightning.cli, mnist_lightning.model, mnist_lightning.data"
    done = command("--version", code=code, OMP_DISPLAY_ENV="verbose")
    assert done.returncode == 0
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == ["300000"]


# ------------------------------------------------------------------- how many


def file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "groups", "cores"),
    [
        ("0::/a/b\n", {"a/cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "150000 100000"}, 0.5),
        ("0::/of/the/host\n", {"cpu.max": "300000 100000"}, 3.0),  # in a container
        ("3:cpu,cpuacct:/a/b\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpu,cpuacct:/a/b\n", {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("3:cpuset:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "1\n", "cpu/a/cpu.cfs_period_us": "2\n"}, None),
        ("", {}, None),
    ],
)
def test_the_least_quota_of_a_group_and_of_those_above_counts(
    own: str, groups: dict[str, str], cores: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(threads, "GROUPS", tmp_path / "groups")
    file(tmp_path / "own", own)
    for name, text in groups.items():
        file(tmp_path / "groups" / name, text)
    monkeypatch.setattr(threads, "CPUS", tmp_path)  # no CPU says whether it shares a core
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    expected = (6, "the process's affinity") if cores is None else (max(1, int(cores)), "the cgroup's quota")
    assert threads.least() == expected


def test_no_more_threads_than_physical_cores_and_than_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "none")
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    for cpu in range(64):
        file(tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list", f"{cpu % 32},{cpu % 32 + 32}\n")
    for cpus, expected in (
        (range(64), (8, "more would not help")),
        ([0, 1, 2, 32, 33, 34], (3, "one for each physical core")),
        ([0, 1, 2], (3, "the process's affinity")),
    ):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cpus=cpus: set(cpus), raising=False)
        assert threads.least() == expected


def test_the_user_comes_before_the_run_and_the_run_before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.choose(3, 2) == threads.Threads(3, "--threads")
    assert threads.choose(None, 2) == threads.Threads(2, "as trained before")
    assert threads.choose(None, None).number is None
    monkeypatch.setattr(threads, "least", lambda: (torch.get_num_threads(), "the cgroup's quota"))
    assert threads.choose(None, None) == threads.Threads(None, "the cgroup's quota")
    monkeypatch.setattr(threads, "least", lambda: (torch.get_num_threads() + 1, "the cgroup's quota"))
    assert threads.choose(None, None) == threads.Threads(None, "as torch has it")  # the program's own choice
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.choose(3, 2) == threads.Threads(3, "--threads")
    assert threads.choose(None, 2) == threads.Threads(None, "OMP_NUM_THREADS")


def test_a_resumed_run_takes_its_own_number_of_threads_or_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    main(["fit", *SHORT, "--threads", "3"])
    assert torch.get_num_threads() == before  # of the program that called it
    assert yaml.safe_load(CONFIG.read_text())["threads"] == 3
    assert torch.load(CHECKPOINT, weights_only=True)["num_threads"] == 3
    capsys.readouterr()

    def resume(*more: str) -> str:
        main(["fit", *SHORT, "--ckpt_path", "last", *more])
        return capsys.readouterr().out

    out = resume()
    assert "CPU, 3 threads" in out
    assert "Threads" not in out
    assert "Threads  2; it was trained with 3 before: the last bits will differ" in resume("--threads", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    main(["fit", "--config", str(CONFIG)])  # a configuration repeats its run
    assert "CPU, 3 threads" in capsys.readouterr().out


@pytest.mark.slow
def test_each_of_several_processes_takes_the_number_that_is_asked_for() -> None:
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--threads", "3"]
    program = [sys.executable, "-m", "mnist_lightning", "fit", *SHORT, *ddp]
    done = subprocess.run(program, capture_output=True, text=True)
    assert "3 threads, 2 processes" in done.stdout
    done = subprocess.run([*program, "--threads", "1"], capture_output=True, text=True)
    assert "Device   CPU, 1 thread, 2 processes" in done.stdout  # no reason of one process alone
