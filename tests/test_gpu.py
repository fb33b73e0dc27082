"""What the tests of the CPU hold, on CUDA: ``pytest -m gpu``. Without a GPU, ``conftest.py`` skips all of it."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.safe_checkpoints import load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*synchroniz"),
]

ROOT = Path(__file__).parent.parent
# Where there are several GPUs, one is enough.
FIRST = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
RUN = Path("lightning_logs") / "version_0"


def python(*args: object, visible: str = FIRST) -> str:
    """What a program prints, with one space between any two words. It runs in a process of its own."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    done = subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, timeout=1800, env=env, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def command(*args: object) -> str:
    return python("-m", "mnist_lightning", *args, "--trainer.accelerator", "gpu")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fit_test_and_predict_agree(precision: str, mnist: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> None:
    flags = ["--trainer.precision", precision]
    name = " ".join(torch.cuda.get_device_name().split())
    assert f"Device {name}, precision {precision} " in command("fit", *flags)
    fitted = json.loads((RUN / "test.json").read_text())
    assert fitted["test_acc"] >= 0.97
    (RUN / "test.json").unlink()
    command("test", *flags)
    assert json.loads((RUN / "test.json").read_text()) == fitted
    command("predict", *flags)
    with (RUN / "predictions.csv").open(newline="") as file:
        predictions = [int(row["prediction"]) for row in csv.DictReader(file)]
    assert np.sum(predictions == mnist("t10k")[1]) == round(10_000 * fitted["test_acc"])
    # A machine without a GPU can read the checkpoint.
    python("-m", "mnist_lightning", "test", "--trainer.accelerator", "cpu", visible="")
    on_cpu = json.loads((RUN / "test.json").read_text())
    assert on_cpu == pytest.approx(fitted, abs=5e-3)


def test_a_resumed_run_equals_one_never_stopped() -> None:
    flags = ["--trainer.deterministic", "true", "--model.dropout", "0.5", "--trainer.default_root_dir"]
    command("fit", *flags, "whole", "--trainer.max_epochs", 2)
    command("fit", *flags, "parts", "--trainer.max_epochs", 1)
    command("fit", "--ckpt_path", "last", "--trainer.default_root_dir", "parts", "--trainer.max_epochs", 2)
    whole, parts = Path("whole") / RUN, Path("parts") / RUN
    for name in ("metrics.csv", "test.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    theirs, ours = (load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, parts))
    assert ours["epoch"] == theirs["epoch"] == 1
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


BATCHES = 10
LIMITS = {f"limit_{stage}_batches": BATCHES for stage in ("train", "val", "test")}


class NoWaiting(Callback):
    """Has torch refuse what waits for the GPU, from the third batch of an epoch to the last one."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *args: Any) -> None:
        self.on_train_batch_start(trainer, module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == BATCHES - 1:
            torch.cuda.set_sync_debug_mode("default")

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self.on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    on_test_batch_start, on_test_batch_end = on_validation_batch_start, on_validation_batch_end


@pytest.fixture
def _waiting_is_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_waiting_is_allowed_again")
def test_the_pixels_are_moved_once_and_no_step_waits(trainer: Callable) -> None:
    data = MNISTDataModule(val_size=10_000)
    made = trainer(accelerator="gpu", num_sanity_val_steps=0, callbacks=[NoWaiting()], **LIMITS)
    made.fit(MNISTClassifier(), datamodule=data)
    loaders = [made.train_dataloader, made.val_dataloaders]
    made.test(MNISTClassifier(), datamodule=data, verbose=False)
    for loader in [*loaders, made.test_dataloaders]:
        assert loader.dataset.images.is_cuda
        images, targets = next(iter(loader))
        assert (images.device.type, targets.device.type) == ("cuda", "cuda")
    for dataset in (data.train_dataset, data.val_dataset, data.test_dataset):
        assert dataset.images.device.type == "cpu"  # the user's own


def test_the_readme_s_examples_in_python_run() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    examples = re.findall(r"^```python\n(.*?)```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(examples) == 2
    used = "print(trainer.strategy.root_device.type, trainer.callback_metrics['test_acc'].item() > 0.9)"
    order = "trainer.fit(model, EasiestFirst(train_size=1000))"
    Path("examples.py").write_text("\n".join([*examples, used, order]))
    assert "cuda True" in python("examples.py")


def test_each_step_has_the_loss_of_keras() -> None:
    recorded = ROOT / "tests" / "keras-2.2.4-float64-seed-2019.json"
    printed = python(ROOT / "scripts" / "replay.py", recorded, "--accelerator", "gpu")
    assert "of 2,345 step losses" in printed
    assert printed.endswith("steps within 1e-09, test loss within 1e-07, accuracy equal: yes")


def test_the_benchmark_says_which_gpu_it_timed() -> None:
    pytest.importorskip("termios", reason="the benchmark is for POSIX systems")
    rows = ["hand", "package", "textbook", "evaluation"]
    flags = ["--accelerator", "gpu", "--rounds", 1, "--epochs", 1, "--contenders", *rows, "--out", "out"]
    name = " ".join(torch.cuda.get_device_name().split())
    assert f"on the GPU {name};" in python(ROOT / "scripts" / "benchmark.py", *flags)
    measured = json.loads(Path("out/benchmark.json").read_text())["rows"]
    assert measured.keys() == set(rows)
