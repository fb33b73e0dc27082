"""What the tests share: a Trainer that only trains, a command that fails, the scripts, and MNIST read by hand."""

import functools
import http.server
import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main
from mnist_lightning.data import PACKAGED
from mnist_lightning.results import style
from mnist_lightning.runs import progress

# A shell's background job is deaf to Ctrl-C, and so is what it starts: the tests' own processes must not be.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The processes of pytest-xdist share the cores. Threads would only wait for each other: the tests took twice as long.
if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Take back what Lightning writes into the environment (a run's seed)."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep away the line that other programs use the cores: the tests do."""
    monkeypatch.setattr(progress, "waited_for_a_core", lambda: 0.0)


@pytest.fixture(autouse=True)
def _small_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw small pictures wherever no test looks at their pixels. This saves a third of their time."""
    if not request.path.name.startswith(("test_results", "test_pictures")):
        monkeypatch.setattr(style, "DPI", 50)


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """Makes a Trainer on the CPU, for one epoch, that draws nothing and writes nothing."""

    def make(**kwargs: Any) -> Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return Trainer(
            **{"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_model_summary": False, **quiet, **kwargs}
        )

    return make


class Kept(MNISTClassifier):
    """Keeps the batches of each stage, as a Trainer gives them to a model."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(8, **kwargs)
        self.batches: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches.setdefault(self.trainer.state.stage.value, []).append(batch)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def sizes(self, stage: str) -> list[int]:
        """The number of images in each batch of a stage, such as ``"train"`` or ``"validate"``."""
        return [len(targets) for _, targets in self.batches.get(stage, [])]

    def all(self, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and targets of a stage."""
        images, targets = zip(*self.batches[stage], strict=True)
        return torch.cat(images), torch.cat(targets)


@pytest.fixture
def kept() -> type[Kept]:
    """A network that keeps the batches that it was given."""
    return Kept


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """Loads ``scripts/NAME.py`` as a module."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parent.parent / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of this folder over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture(scope="session")
def mnist() -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Reads ``"train"`` or ``"t10k"``, pixels and digits in uint8, from the files' bytes."""

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        raw = PACKAGED / "MNIST" / "raw"
        images = np.fromfile(raw / f"{split}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
        return images, np.fromfile(raw / f"{split}-labels-idx1-ubyte", np.uint8, offset=8)

    return read


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with one line and exit code 2, and make or change nothing. Gives the line."""

    def contents() -> dict[Path, bytes | bool]:
        return {path: path.is_file() and path.read_bytes() for path in Path.cwd().rglob("*")}

    def run(*args: str, **classes: Any) -> str:
        before = contents()
        capsys.readouterr()  # of commands before
        with pytest.raises(SystemExit) as stop:
            main([*args], **classes)
        captured = capsys.readouterr()
        assert stop.value.code == 2, captured
        assert captured.err.startswith("mnist_lightning: error: ")
        assert captured.err.count("\n") == 1
        assert contents() == before
        return captured.err

    return run
