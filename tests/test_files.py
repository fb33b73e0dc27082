"""Files appear whole or not at all, and checkpoints are read as data."""

import functools
import http.server
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.files import load_checkpoint, write_atomically

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "8"]
LAST = Path("lightning_logs") / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------ checkpoints as data


class Payload:
    """Code in a checkpoint: unpickled with full pickle, it leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("the payload ran",)


@pytest.fixture
def hostile() -> Path:
    """A checkpoint that would train on, with a payload in it."""
    main(["fit", *QUICK])
    checkpoint = torch.load(LAST, weights_only=True)
    torch.save({**checkpoint, "callbacks": {"payload": Payload()}}, "hostile.ckpt")
    return Path("hostile.ckpt")


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


def test_the_payload_would_run_if_it_were_unpickled(hostile: Path) -> None:
    torch.load(hostile, weights_only=False)
    assert Path("the payload ran").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_no_command_runs_what_is_in_a_checkpoint(
    hostile: Path, server: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (str(hostile), f"{server}/{hostile}"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--ckpt_path", path])
        assert stop.value.code == 2
    LAST.write_bytes(hostile.read_bytes())
    with pytest.raises(SystemExit) as stop:
        main([command, "--ckpt_path", "last"])
    assert stop.value.code == 2
    assert "could be code that runs" in capsys.readouterr().err
    assert not Path("the payload ran").exists()


@pytest.mark.parametrize("cls", [MNISTClassifier, MNISTDataModule])
def test_load_from_checkpoint_runs_nothing(
    hostile: Path, server: str, cls: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for path in (hostile, str(hostile), f"{server}/{hostile}"):
        with pytest.raises(InputError, match="could be code that runs"):
            cls.load_from_checkpoint(path)
        with pytest.raises(InputError, match="weights_only"):
            cls.load_from_checkpoint(path, weights_only=False)
    assert not Path("the payload ran").exists()


def test_load_from_checkpoint_loads_a_good_one_from_a_path_and_a_url(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    main(["fit", *QUICK, "--data.val_size", "100"])
    for path in (LAST, f"{server}/{LAST.as_posix()}"):
        model = MNISTClassifier.load_from_checkpoint(path)
        assert model.hparams["hidden_size"] == 8
        assert torch.equal(model.network[1].weight, load_checkpoint(LAST)["state_dict"]["network.1.weight"])
        assert MNISTDataModule.load_from_checkpoint(path).val_size == 100


# ------------------------------------------------------------------ whole files


def test_a_failed_save_leaves_the_file_before_and_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("kept") / "file"
    write_atomically(path, b"first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no fsync of folders")
def test_a_folder_that_cannot_be_synced_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def invalid(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", invalid)
    write_atomically(Path("file"), b"content")
    assert Path("file").read_bytes() == b"content"


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot be asked for a process")
def test_what_a_kill_leaves_inside_a_write_is_removed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runs, alive = LAST.parents[2], os.getppid()
    left = [LAST.parent / f".last.ckpt.{gone.pid}.tmp", runs / f".claim-{gone.pid}-0123abcd" / "config.yaml"]
    kept = [LAST.parent / f".last.ckpt.{alive}.tmp", runs / f".claim-{alive}-0123abcd" / "config.yaml"]
    kept += [LAST.parent / f"last.ckpt.{gone.pid}.tmp", LAST.parent / f".notes.txt.{gone.pid}.tmp"]  # the user's
    for path in [*left, *kept]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half a file")
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    main(["fit", *QUICK])
    assert not any(path.exists() for path in [left[0], left[1].parent])
    assert all(path.exists() for path in kept)


def test_a_disk_that_fills_up_while_training_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no file size limit")
    main(["fit", *QUICK])
    before = LAST.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 2
    assert "cannot write" in capsys.readouterr().err
    assert LAST.read_bytes() == before
    assert [file.name for file in LAST.parent.iterdir()] == ["last.ckpt"]
