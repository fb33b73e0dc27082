"""A run that is killed and resumed equals one that never was, to the last bit."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from mnist_lightning import MNISTClassifier
from mnist_lightning.checkpoint import load_checkpoint
from mnist_lightning.cli import main

RUN = ["--trainer.max_epochs", "4", "--trainer.limit_train_batches", "20", "--model.hidden_size", "16"]
FOLDER = Path("lightning_logs") / "version_0"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Killable(MNISTClassifier):
    """Killed where a test wants it."""

    die_at_step: int | None = None

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.trainer.global_step == type(self).die_at_step:
            raise Killed


class Killed(BaseException):
    """Stands in for a kill inside this process; real signals are sent to real processes below."""


def fingerprint(root: Path) -> str:
    folder = root / FOLDER
    digest = hashlib.sha256((folder / "metrics.csv").read_bytes() + (folder / "test.json").read_bytes())
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    averages = [state["square_avg"] for state in checkpoint["optimizer_states"][0]["state"].values()]
    for tensor in [*checkpoint["state_dict"].values(), *averages]:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


VALIDATED = "--data.val_size 300"
# Shifts and rotations that are drawn for every batch.
TRANSFORM = "torchvision.transforms.v2.RandomAffine"
TRANSFORMED = f"--data.train_transform {TRANSFORM} --data.train_transform.degrees 10"
TRANSFORMED += " --data.train_transform.translate [0.1,0.1]"


@pytest.mark.parametrize(
    "more",
    ["", f"{VALIDATED} {TRANSFORMED} --data.train_size 2500", f"{VALIDATED} --trainer.check_val_every_n_epoch 3"],
)
@pytest.mark.parametrize("step", [0, 20, 47])
def test_a_resumed_run_equals_one_never_stopped(monkeypatch: pytest.MonkeyPatch, more: str, step: int) -> None:
    args = ["fit", *RUN, "--model.dropout", "0.5", *more.split(), "--trainer.default_root_dir"]
    main([*args, "whole"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", step)
    with pytest.raises(Killed):
        main([*args, "killed"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", None)
    main(["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "killed"], Killable)
    assert fingerprint(Path("whole")) == fingerprint(Path("killed"))
    assert [path.name for path in Path("killed/lightning_logs").iterdir()] == ["version_0"]


def test_a_finished_run_says_so_and_goes_on_with_more_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *RUN, "--trainer.default_root_dir", "whole"])
    main(["fit", *RUN, "--trainer.max_epochs", "2"])
    capsys.readouterr()
    main(["fit", "--ckpt_path", "last"])
    assert "all 2 epochs are trained" in capsys.readouterr().out
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"])
    assert fingerprint(Path("whole")) == fingerprint(Path())


@pytest.mark.parametrize("own", [True, False])
def test_a_run_is_resumed_exactly_from_a_path_too(own: bool, tmp_path: Path) -> None:
    more = ["--seed_everything", "5", "--data.seed", "3", "--data.val_size", "200"]
    adam = ["--optimizer", "Adam", "--optimizer.lr", "0.01"]
    for folder, epochs in (("whole", "4"), ("parts", "2")):
        args = [*RUN, *more, *adam, "--trainer.default_root_dir", folder, "--trainer.max_epochs", epochs]
        main(["fit", *args, "--model.dropout", "0.5"])
    path = Path("parts") / FOLDER / "checkpoints" / "last.ckpt"
    if own:
        # Its own configuration goes with it: optimizer, batches an epoch.
        where, given = "parts", []
    else:
        # From elsewhere, only the checkpoint is trusted: model, data and seed; the rest must be given.
        where, given = "here", [*adam, "--trainer.limit_train_batches", "20"]
    more = ["--ckpt_path", str(path), "--trainer.default_root_dir", where, "--trainer.max_epochs", "4"]
    main(["fit", *more, *given])
    whole, parts = (load_checkpoint(Path(root) / FOLDER / "checkpoints" / "last.ckpt") for root in ("whole", where))
    assert all(torch.equal(tensor, parts["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    rows = [(Path(root) / FOLDER / "metrics.csv").read_text() for root in ("whole", where)]
    assert rows[0] == rows[1]
    assert [path.name for path in Path("parts/lightning_logs").iterdir()] == ["version_0"]


def test_schedulers_and_early_stopping_resume_exactly() -> None:
    more = ["--optimizer", "SGD", "--optimizer.lr", "0.1", "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"]
    stopping = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "train_loss"]
    for folder, epochs in (("whole", "4"), ("parts", "2")):
        main(["fit", *RUN, *more, *stopping, "--trainer.default_root_dir", folder, "--trainer.max_epochs", epochs])
    main(["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "parts", "--trainer.max_epochs", "4"])
    whole, parts = (load_checkpoint(Path(root) / FOLDER / "checkpoints" / "last.ckpt") for root in ("whole", "parts"))
    assert all(torch.equal(tensor, parts["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    assert whole["lr_schedulers"] == parts["lr_schedulers"]


STOPPING = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val_acc"]
# "Better" is never reached: it stops after the second epoch.
STOPPING += ["--trainer.callbacks.min_delta", "1", "--trainer.callbacks.patience", "1", "--data.val_size", "300"]
STOPPING += ["--trainer.limit_test_batches", "2"]


def test_a_run_that_was_stopped_early_stays_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *RUN, *STOPPING])
    assert "Stopped  early after 2 epochs, by val_acc" in capsys.readouterr().out
    before = fingerprint(Path())
    # As if it had been killed before it was tested.
    (FOLDER / "test.json").unlink()
    main(["fit", "--ckpt_path", "last"])
    assert "Stopped  early after 2 epochs, by val_acc" in capsys.readouterr().out
    assert fingerprint(Path()) == before
    main(["fit", "--ckpt_path", "last", "--trainer.callbacks", "null"])
    assert "Epoch 4/4" in capsys.readouterr().out


def test_early_stopping_that_has_to_wait_for_more_epochs_resumes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its verdict is that of the second epoch, whatever comes later.
    args = ["fit", *RUN, *STOPPING, "--trainer.max_epochs", "5", "--trainer.min_epochs", "4"]
    args += ["--trainer.callbacks.stopping_threshold", "0.99", "--trainer.default_root_dir"]
    main([*args, "whole"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", 50)
    with pytest.raises(Killed):
        main([*args, "killed"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", None)
    main(["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "killed"], Killable)
    assert fingerprint(Path("whole")) == fingerprint(Path("killed"))
    assert load_checkpoint(Path("whole") / FOLDER / "checkpoints" / "last.ckpt")["epoch"] == 3


def test_early_stopping_without_patience_lets_a_run_begin() -> None:
    stopping = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "train_loss"]
    main(["fit", *RUN, *stopping, "--trainer.callbacks.patience", "0", "--trainer.max_epochs", "1"])
    assert load_checkpoint(FOLDER / "checkpoints" / "last.ckpt")["epoch"] == 0


def test_a_transform_goes_into_the_configuration_and_its_description_into_the_checkpoint() -> None:
    main(["fit", *RUN, *TRANSFORMED.split(), "--trainer.max_epochs", "1"])
    main(["fit", "--config", str(FOLDER / "config.yaml")])
    folders = [FOLDER, FOLDER.with_name("version_1")]
    assert (folders[0] / "metrics.csv").read_text() == (folders[1] / "metrics.csv").read_text()
    for folder in folders:
        config = yaml.safe_load((folder / "config.yaml").read_text())["data"]["train_transform"]
        assert (config["class_path"], config["init_args"]["degrees"]) == (TRANSFORM, 10)
        checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
        assert checkpoint["MNISTDataModule"]["train_transform"].startswith("RandomAffine(degrees=[-10.0, 10.0], trans")
        assert "train_transform" not in checkpoint["datamodule_hyper_parameters"]


def test_a_checkpoint_from_elsewhere_is_trained_on_with_its_own_transform_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["fit", *RUN, *TRANSFORMED.split(), "--trainer.default_root_dir", "there", "--trainer.max_epochs", "1"])
    path = str(Path("there") / FOLDER / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    for other in (
        [],
        ["--data.train_transform", "torch.sqrt"],
        [*TRANSFORMED.split(), "--data.train_transform.fill=1"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--ckpt_path", path, *RUN, *other])
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert "was trained with train_transform RandomAffine(degrees=[-10.0, 10.0], tran" in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
        assert not Path("lightning_logs").exists()
    main(["fit", "--ckpt_path", path, *RUN, *TRANSFORMED.split()])
    main(["test", "--ckpt_path", path])


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ("", "--trainer.max_steps 100", "max_steps 100 cannot be resumed exactly"),
        ("", "--model.learning_rate 0.1", "learning_rate 0.1 contradicts the checkpoint's 0.001"),
        ("", "--data.batch_size 64", "batch_size 64 contradicts the checkpoint's 128"),
        ("", "--data.train_size 64", "train_size 64 contradicts the checkpoint's None"),
        ("--data.train_size 64", "--data.train_size null", "train_size None contradicts the checkpoint's 64"),
        ("--data.train_size 64", "--data.train_size 65", "train_size 65 contradicts the checkpoint's 64"),
        ("", "--model.dropout 0.5", "dropout 0.5 contradicts the checkpoint's 0.0"),
        ("--model.weight_decay 0.1", "--model.weight_decay 0", "weight_decay 0.0 contradicts the checkpoint's 0.1"),
        (
            "",
            "--data.train_transform torchvision.transforms.functional.hflip",
            "None, here it is torchvision.transforms.functional.hflip",
        ),
        (TRANSFORMED, "--data.train_transform null", "fill=0), here it is None"),
        ("", "--seed_everything 3", "seed_everything 3 contradicts the run's 0"),
        (
            "--optimizer SGD --optimizer.lr 0.1 --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor train_loss",
            "",
            "ReduceLROnPlateau",
        ),
        (
            "--trainer.callbacks ModelCheckpoint --trainer.callbacks.every_n_train_steps 7",
            "",
            "not saved at the end of an epoch",
        ),
    ],
)
def test_what_cannot_be_resumed_exactly_is_refused(
    capsys: pytest.CaptureFixture[str], first: str, then: str, says: str
) -> None:
    main(["fit", *RUN, *first.split()])
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "5", *then.split()])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def start(*args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mnist_lightning", "fit", "--trainer.max_epochs", "100", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"the process ended before it printed {word!r}")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_signals_stop_cleanly_and_a_kill_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--trainer.limit_train_batches", "20", "--model.hidden_size", "16"]
    for number, (signum, code) in enumerate([(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]):
        process = start(*short)
        wait_for(process, "Epoch 3/")
        process.send_signal(signum)
        printed = process.communicate(timeout=60)[0]
        assert process.returncode == code, printed
        if signum != signal.SIGKILL:
            assert "fit --ckpt_path last" in printed
            assert "Traceback" not in printed
        folder = Path("lightning_logs") / f"version_{number}"
        epochs = load_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] + 1
        assert epochs >= 3
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", str(epochs + 1)])
        rows = (folder / "metrics.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == [*map(str, range(epochs + 1)), str(epochs + 1)]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_a_run_killed_before_its_first_checkpoint_starts_again_with_its_own_configuration() -> None:
    process = start("--model.hidden_size", "8", "--data.batch_size", "1")
    deadline = time.monotonic() + 60
    while not (FOLDER / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5"])
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    checkpoint = load_checkpoint(FOLDER / "checkpoints" / "last.ckpt")
    assert checkpoint["hyper_parameters"]["hidden_size"] == 8
    assert checkpoint["datamodule_hyper_parameters"]["batch_size"] == 1


def test_a_loss_that_becomes_nan_stops_the_run_and_leaves_the_last_good_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["fit", *RUN, "--trainer.max_epochs", "1"])
    checkpoint = FOLDER / "checkpoints" / "last.ckpt"
    (FOLDER / "curves.png").unlink()

    class Diverges(MNISTClassifier):
        def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
            if self.current_epoch == 2 and batch_idx == 4:
                with torch.no_grad():
                    self.network[1].weight.fill_(float("nan"))

    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"], Diverges)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "infinite or NaN in epoch 3, at batch 5" in error
    assert "Traceback" not in error
    assert (FOLDER / "curves.png").exists()  # of the epochs before
    saved = load_checkpoint(checkpoint)
    assert saved["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
