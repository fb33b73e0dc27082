"""Checkpoints are written whole and read as data."""

import functools
import http.server
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.files import load_checkpoint, write_atomically
from mnist_lightning.runs.checkpoints import SafeCheckpointIO

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "8"]
LAST = Path("lightning_logs") / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


def test_a_checkpoint_cannot_make_lightning_delete_what_it_names() -> None:
    main(["fit", *QUICK])
    victim = Path("victim")
    victim.mkdir()
    (victim / "thesis.ckpt").write_text("irreplaceable")
    folder = LAST.parent.absolute()
    inside = folder / "kept"
    inside.mkdir()
    for path in (victim.absolute(), folder / ".." / ".." / ".." / "victim", inside, victim.absolute() / "thesis.ckpt"):
        checkpoint = load_checkpoint(LAST)
        (state,) = (value for key, value in checkpoint["callbacks"].items() if "Checkpoint{" in key)
        state["best_model_path"] = state["kth_best_model_path"] = state["last_model_path"] = str(path)
        state["dirpath"] = str(folder)
        torch.save(checkpoint, LAST)
        epochs = checkpoint["epoch"] + 2
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", str(epochs)])
        assert load_checkpoint(LAST)["epoch"] == epochs - 1
    assert (victim / "thesis.ckpt").read_text() == "irreplaceable"
    assert inside.is_dir()


def test_a_file_of_the_users_own_is_never_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK, "--data.val_size", "100"])
    names = {"validate": ["validate.json"], "predict": ["predictions.csv"]}
    names["test"] = ["test.json", "report.json", "confusion_matrix.png", "mistakes.png", "first_layer.png"]
    Path("thesis/checkpoints").mkdir(parents=True)
    path = shutil.copy(LAST, "thesis/checkpoints/m.ckpt")
    for command, files in names.items():
        for file in (Path("thesis", name) for name in files):
            file.write_text("mine")
            with pytest.raises(SystemExit) as stop:
                main([command, "--ckpt_path", path])
            assert stop.value.code == 2
            assert f"'{file}' would be replaced" in capsys.readouterr().err
            assert file.read_text() == "mine"
            file.unlink()
        main([command, "--ckpt_path", path])
        assert all(Path("thesis", name).exists() for name in files)
    for _ in range(2):
        main(["test"])  # those of a run are


@pytest.mark.skipif(os.name != "posix", reason="Windows lets administrators alone make links")
def test_a_folder_of_checkpoints_that_is_a_link_is_not_followed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    LAST.parent.rename("elsewhere")
    LAST.parent.symlink_to(Path("elsewhere").absolute())
    before = Path("elsewhere", LAST.name).read_bytes()
    for path in ("last", str(LAST)):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--ckpt_path", path, "--trainer.max_epochs", "2"])
        assert stop.value.code == 2
        assert "is a link" in capsys.readouterr().err
    assert Path("elsewhere", LAST.name).read_bytes() == before


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


def test_a_run_folder_that_cannot_be_written_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("lightning_logs").write_text("a file where the folder should be")
    with pytest.raises(SystemExit) as stop:
        main(["fit", *QUICK])
    assert stop.value.code == 2
    assert "cannot make a run's folder" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_the_trainer_saves_and_loads_through_the_plugin() -> None:
    plugin = SafeCheckpointIO()
    trainer = Trainer(
        plugins=[plugin], max_epochs=1, limit_train_batches=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(MNISTClassifier(hidden_size=4), datamodule=MNISTDataModule())
    trainer.save_checkpoint("a.ckpt")
    assert load_checkpoint("a.ckpt")["hyper_parameters"]["hidden_size"] == 4
    plugin.remove_checkpoint("a.ckpt")
    assert not Path("a.ckpt").exists()
