"""Several processes are one: gloo on the CPU, by Lightning's launcher and by torchrun."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_lightning.data import PACKAGED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="gloo with local processes is tested on POSIX"),
]

# A user's script, which also writes the loss of every step over the global batch.
SCRIPT = """
import sys
from lightning.pytorch import Callback
from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main

class StepLosses(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")
        if trainer.is_global_zero:
            with open("losses.txt", "a") as file:
                print(repr(float(loss)), file=file)

class Watched(MNISTClassifier):
    def configure_callbacks(self):
        return [StepLosses()]

if __name__ == "__main__":
    main(sys.argv[1:], Watched)
"""

# Runs commands one after the other, each in as many processes as it says, as torchrun would start them; a server
# that has imported everything forks them, which saves their start-up.
DRIVER = """
import json, multiprocessing, os, shutil, socket, sys

def process(rank, world, port, folder, args):
    os.chdir(folder)
    sys.stdout = sys.stderr = open(f"output-{rank}.txt", "a", buffering=1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                       "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from mnist_lightning.cli import main
    from train import Watched
    main(args, Watched)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "mnist_lightning.cli.mnist_cli"])
    codes = []
    for world, folder, args in json.loads(sys.argv[1]):
        if args[0] == "fit":
            os.makedirs(folder)
        else:
            shutil.copytree("fit-1", folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        several = ["--trainer.strategy", "ddp", "--trainer.devices", str(world)] if world > 1 else []
        started = [context.Process(target=process, args=(rank, world, port, folder, args + several))
                   for rank in range(world)]
        [one.start() for one in started]
        [one.join() for one in started]
        codes.append([one.exitcode for one in started])
    print(json.dumps(codes))
"""

CPU = ["--trainer.accelerator", "cpu", "--trainer.precision", "64-true"]
# 54,997 images to train on at 992 a batch: 55 batches and one of 437; 5,003 held out.
UNEVEN = ["--data.val_size", "5003", "--data.batch_size", "992"]
FIT = ["fit", *CPU, *UNEVEN, "--trainer.max_epochs", "1", "--model.hidden_size", "16"]
# Batches of 4 and 3 images, held out 4 and 1: two processes have different shares, and the second one once none.
FEW = ["--data.train_size", "7", "--data.val_size", "5", "--data.batch_size", "4", "--trainer.limit_test_batches", "3"]
OVERFIT = ["fit", *CPU, *FEW, "--trainer.overfit_batches", "1.0", "--trainer.max_epochs", "2"]
RUN = Path("lightning_logs") / "version_0"
COMMANDS = [
    *((world, "fit", FIT) for world in (1, 2, 4)),
    *((world, "test", ["test", *CPU]) for world in (1, 2, 3, 4)),
    *((world, "validate", ["validate", *CPU]) for world in (1, 3)),
    *((world, "predict", ["predict", *CPU]) for world in (1, 3)),
    *((world, "limited", ["test", *CPU, "--trainer.limit_test_batches", "5"]) for world in (1, 4)),
    *((world, "overfit", OVERFIT) for world in (1, 2)),
]


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, each in a folder named for its command and number of processes."""
    root = tmp_path_factory.mktemp("distributed")
    (root / "train.py").write_text(SCRIPT)
    (root / "driver.py").write_text(DRIVER)
    done = run(root, "driver.py", json.dumps([(world, f"{name}-{world}", args) for world, name, args in COMMANDS]))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0] * world for world, _, _ in COMMANDS]
    return root


def losses(folder: Path) -> list[float]:
    return [float(line) for line in (folder / "losses.txt").read_text().split()]


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / RUN / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same_run(folder: Path, alone: Path) -> None:
    assert len(losses(folder)) == 56
    assert losses(folder) == pytest.approx(losses(alone), rel=0, abs=1e-10)
    assert len(rows(folder)) == len(rows(alone)) == 2
    for together, single in zip(rows(folder), rows(alone), strict=True):
        assert together == pytest.approx(single, rel=0, abs=1e-10)
    assert [path.name for path in (folder / "lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_follow_one_step_by_step(folder: Path, processes: int) -> None:
    assert_same_run(folder / f"fit-{processes}", folder / "fit-1")
    printed = [(folder / f"fit-{processes}" / f"output-{rank}.txt").read_text() for rank in range(processes)]
    assert printed[0].count("Epoch 1/1") == 1
    assert not any(printed[1:])


@pytest.mark.parametrize(("command", "processes"), [("test", 2), ("test", 3), ("test", 4), ("validate", 3)])
def test_evaluation_counts_every_image_once(folder: Path, command: str, processes: int) -> None:
    several, single = (
        json.loads((folder / f"{command}-{world}" / RUN / f"{command}.json").read_text()) for world in (processes, 1)
    )
    assert several == pytest.approx(single, rel=0, abs=1e-10)


def test_a_limited_evaluation_counts_the_images_that_one_process_would(folder: Path) -> None:
    several, single = (
        [json.loads((folder / f"limited-{world}" / RUN / f"{name}.json").read_text()) for name in ("test", "report")]
        for world in (4, 1)
    )
    assert several[0] == pytest.approx(single[0], rel=0, abs=1e-10)
    assert several[1]["images"] == single[1]["images"] == 5 * 992
    assert several[1]["confusion_matrix"] == single[1]["confusion_matrix"]


def test_overfit_batches_counts_every_image_once(folder: Path) -> None:
    assert len(losses(folder / "overfit-2")) == 4
    assert losses(folder / "overfit-2") == pytest.approx(losses(folder / "overfit-1"), rel=0, abs=1e-10)
    for several, single in zip(rows(folder / "overfit-2"), rows(folder / "overfit-1"), strict=True):
        assert several == pytest.approx(single, rel=0, abs=1e-10)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_one_process_that_sees_what_is_not_finite_ends_all(folder: Path, tmp_path: Path, command: str) -> None:
    pixels = np.fromfile(PACKAGED / "MNIST" / "raw" / "t10k-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 784)
    lit = (pixels > 0).sum(0)
    (pixel,) = np.flatnonzero(lit == 1)[:1]
    checkpoint = torch.load(folder / "fit-1" / RUN / "checkpoints" / "last.ckpt", weights_only=True)
    weights = checkpoint["state_dict"]
    weights["network.1.weight"][0] = 0
    weights["network.1.weight"][0, pixel] = weights["network.3.weight"][:, 0] = 1e200
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    (tmp_path / "train.py").write_text(SCRIPT)
    several = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    done = run(tmp_path, "train.py", command, *CPU, "--ckpt_path", "bad.ckpt", *several)
    assert done.returncode == 2, done.stderr
    says = {"test": "test_loss is ", "predict": "the network's outputs are infinite or NaN for 1 of 10,000"}
    assert done.stderr.count(f"mnist_lightning: error: {says[command]}") == 1
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "bad.ckpt"}


def test_predict_writes_one_csv_in_order(folder: Path) -> None:
    several, single = (
        [line.split(",") for line in (folder / f"predict-{world}" / RUN / "predictions.csv").read_text().splitlines()]
        for world in (3, 1)
    )
    assert [row[:2] for row in several] == [row[:2] for row in single]
    assert [row[0] for row in several[1:]] == [str(index) for index in range(10_000)]
    for one, other in zip(several[1:], single[1:], strict=True):
        assert [float(p) for p in one[2:]] == pytest.approx([float(p) for p in other[2:]], abs=1e-8)


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_the_launchers_start_the_same_run(folder: Path, tmp_path: Path, launcher: str) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] * (launcher == "torchrun")
    done = run(tmp_path, *torchrun, "train.py", *FIT, "--trainer.strategy", "ddp", "--trainer.devices", "2")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, folder / "fit-1")


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = run(tmp_path, "train.py", "fit", *CPU, "--trainer.strategy", "ddp", "--trainer.devices", "3")
    assert done.returncode == 2
    assert done.stderr.count("mnist_lightning: error:") == 1
    assert "128 cannot be shared evenly by 3 processes" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_two_processes_that_diverge_say_so(tmp_path: Path) -> None:
    two = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    done = run(
        tmp_path,
        "-m",
        "mnist_lightning",
        "fit",
        *two,
        "--trainer.limit_train_batches",
        "4",
        "--model.learning_rate",
        "1e30",
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mnist_lightning: error: the loss became infinite or NaN in epoch 1, at batch 2")
    assert done.stderr.count("\n") == 1


def processes_of(parent: "subprocess.Popen[str]") -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [parent.pid, *(int(pid) for pid, its_parent in pairs if int(its_parent) == parent.pid)]


@pytest.mark.parametrize("victim", [0, 1])
def test_if_one_of_several_processes_is_killed_the_others_end_with_one_line(tmp_path: Path, victim: int) -> None:
    command = [sys.executable, "-m", "mnist_lightning", "fit", *CPU, "--trainer.max_epochs", "99"]
    command += ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.limit_train_batches", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert any("Epoch 2/" in line for line in process.stdout)
        processes = processes_of(process)
        os.kill(processes[victim], signal.SIGKILL)
        try:
            process.communicate(timeout=120)  # until both have ended, and so closed their output
        except subprocess.TimeoutExpired:
            os.kill(processes[1 - victim], signal.SIGKILL)
            raise
    assert process.returncode == (-signal.SIGKILL if victim == 0 else 1)
    (error,) = (tmp_path / "errors").read_text().splitlines()
    assert error.startswith("mnist_lightning: error: another process of this run is gone")


def two_machines(folders: list[Path], *args: str) -> list["subprocess.CompletedProcess[str]"]:
    """The results of the README's recipe, on two machines that have no folder in common."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "mnist_lightning"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={number}", *where, *args],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, folder in enumerate(folders)
    ]
    results = []
    for process in started:
        out, err = process.communicate(timeout=120)
        errors = "\n".join(line for line in err.splitlines() if line.startswith("mnist_lightning: error: "))
        results.append(subprocess.CompletedProcess(process.args, process.returncode, out, errors))
    return results


def test_two_machines_without_a_common_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    ddp = ["--trainer.strategy", "ddp", "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    short = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "9", "--model.hidden_size", "8"]
    first, second = two_machines(folders, "fit", *CPU, *ddp, *short)
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, "")
    assert "test_acc" in first.stdout
    assert [path.name for path in folders[1].iterdir()] == []
    # With a copy of the run, it goes on; with a copy that is too old, it does not.
    shutil.copytree(folders[0] / "lightning_logs", folders[1] / "lightning_logs")
    first, second = two_machines(folders, "fit", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert (first.returncode, second.returncode) == (0, 0)
    assert [row["epoch"] for row in rows(folders[0])] == [0, 1, 2, 3]
    first, second = two_machines(folders, "test", *CPU, *ddp)
    assert first.returncode != 0 != second.returncode
    assert "process 1 of 2 has another checkpoint than process 0" in second.stderr
