"""A run that is killed and resumed equals one that never was, to the last bit."""

import csv
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.safe_checkpoints import load_checkpoint

RUN = ["--trainer.max_epochs", "4", "--trainer.limit_train_batches", "20", "--model.hidden_size", "16"]
RUN += ["--trainer.limit_test_batches", "5"]
FOLDER = Path("lightning_logs") / "version_0"


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
    states = [part for state in checkpoint["optimizer_states"][0]["state"].values() for part in state.values()]
    for tensor in [*checkpoint["state_dict"].values(), *states]:
        if tensor is not None:  # SGD without momentum
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def kill_and_resume(monkeypatch: pytest.MonkeyPatch, args: list[str], step: int) -> None:
    """Train a run that is never stopped and one that is killed at a step and resumed, and see that they are equal."""
    args = [*args, "--trainer.default_root_dir"]
    main([*args, "whole"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", step)
    with pytest.raises(Killed):
        main([*args, "killed"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", None)
    main(["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "killed"], Killable)
    assert fingerprint(Path("whole")) == fingerprint(Path("killed"))
    assert [path.name for path in Path("killed/lightning_logs").iterdir()] == ["version_0"]


def stop_and_resume(*args: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Resume a run after two of four epochs: its last checkpoint, and that of one never stopped, with equal weights."""
    for folder, epochs in (("whole", "4"), ("parts", "2")):
        main(["fit", *RUN, *args, "--trainer.default_root_dir", folder, "--trainer.max_epochs", epochs])
    main(["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "parts", "--trainer.max_epochs", "4"])
    whole, parts = (load_checkpoint(Path(root) / FOLDER / "checkpoints" / "last.ckpt") for root in ("whole", "parts"))
    assert all(torch.equal(tensor, parts["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    return whole, parts


VALIDATED = "--data.val_size 300"
# Shifts and rotations that are drawn for every batch.
TRANSFORM = "torchvision.transforms.v2.RandomAffine"
TRANSFORMED = f"--data.train_transform {TRANSFORM} --data.train_transform.degrees 10"
TRANSFORMED += " --data.train_transform.translate [0.1,0.1]"
NORMALIZE = "torchvision.transforms.v2.Normalize"
NORMALIZED = f"--data.transform {NORMALIZE} --data.transform.mean [0.1307] --data.transform.std [0.3081]"


@pytest.mark.parametrize(
    "more",
    [
        "",
        f"{VALIDATED} {TRANSFORMED} {NORMALIZED} --data.train_size 2500",
        f"{VALIDATED} --trainer.check_val_every_n_epoch 3",
    ],
)
@pytest.mark.parametrize(
    "step", [pytest.param(0, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow), 47]
)
def test_a_resumed_run_equals_one_never_stopped(monkeypatch: pytest.MonkeyPatch, more: str, step: int) -> None:
    kill_and_resume(monkeypatch, ["fit", *RUN, "--model.dropout", "0.5", *more.split()], step)


def test_a_finished_run_says_so_and_goes_on_with_more_epochs(
    capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    main(["fit", *RUN, "--trainer.default_root_dir", "whole"])
    main(["fit", *RUN, "--trainer.max_epochs", "2"])
    capsys.readouterr()
    main(["fit", "--ckpt_path", "last"])
    assert "all 2 epochs are trained" in capsys.readouterr().out
    assert "max_epochs 1 is fewer than the 2 epochs" in fails("fit", "--ckpt_path", "last", "--trainer.max_epochs", "1")
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"])
    assert fingerprint(Path("whole")) == fingerprint(Path())


@pytest.mark.parametrize("own", [True, False])
def test_a_run_is_resumed_exactly_from_a_path_too(own: bool) -> None:
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
        where, given = "here", [*adam, "--trainer.limit_train_batches", "20", "--trainer.limit_test_batches", "5"]
    more = ["--ckpt_path", str(path), "--trainer.default_root_dir", where, "--trainer.max_epochs", "4"]
    main(["fit", *more, *given])
    whole, parts = (load_checkpoint(Path(root) / FOLDER / "checkpoints" / "last.ckpt") for root in ("whole", where))
    assert all(torch.equal(tensor, parts["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    rows = [(Path(root) / FOLDER / "metrics.csv").read_text() for root in ("whole", where)]
    assert rows[0] == rows[1]
    assert [path.name for path in Path("parts/lightning_logs").iterdir()] == ["version_0"]


def test_a_run_without_a_log_resumes_exactly() -> None:
    stop_and_resume("--trainer.logger", "false")
    for file in ("metrics.csv", "curves.png"):
        assert not (Path("parts") / FOLDER / file).exists()


@pytest.mark.parametrize(
    "scheduler",
    [
        "StepLR --lr_scheduler.step_size 1",
        pytest.param("MultiStepLR --lr_scheduler.milestones [1,3]", marks=pytest.mark.slow),
        "OneCycleLR --lr_scheduler.max_lr 1 --lr_scheduler.total_steps 10",
        pytest.param("CosineAnnealingWarmRestarts --lr_scheduler.T_0 3", marks=pytest.mark.slow),
    ],
)
def test_schedulers_and_early_stopping_resume_exactly(scheduler: str) -> None:
    more = ["--optimizer", "SGD", "--optimizer.lr", "1", "--optimizer.momentum", "0.9"]
    more += ["--lr_scheduler", *scheduler.split()]
    stopping = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "train_loss"]
    whole, parts = stop_and_resume(*more, *stopping)
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


@pytest.mark.slow
def test_early_stopping_that_has_to_wait_for_more_epochs_resumes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its verdict is that of the second epoch, whatever comes later.
    args = ["fit", *RUN, *STOPPING, "--trainer.max_epochs", "5", "--trainer.min_epochs", "4"]
    kill_and_resume(monkeypatch, [*args, "--trainer.callbacks.stopping_threshold", "0.99"], 50)
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


class OwnData(MNISTDataModule):
    """Lightning saves its state under its own name."""


@pytest.mark.slow
@pytest.mark.parametrize("data_class", [MNISTDataModule, OwnData])
def test_a_checkpoint_from_elsewhere_is_used_with_the_transform_that_it_was_trained_with_alone(
    data_class: type[MNISTDataModule], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ["fit", *RUN, *VALIDATED.split(), *NORMALIZED.split(), "--trainer.max_epochs", "1"]
    main([*first, "--trainer.default_root_dir", "there"], data_class=data_class)
    path = str(Path("there") / FOLDER / "checkpoints" / "last.ckpt")
    # The configuration of a stranger's run is code, and nothing may run it.
    Path("evil.py").write_text("def f(images): return images\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    config = Path("there") / FOLDER / "config.yaml"
    mine = config.read_text()
    config.write_text(mine.replace(NORMALIZE, "evil.f"))
    commands = (["test"], ["validate"], ["predict"], ["fit", *RUN, *VALIDATED.split()])
    others: list[list[str]] = [[], ["--data.transform", "torch.sqrt"], NORMALIZED.replace("0.3081", "0.25").split()]
    for command, other in itertools.product(commands, others):
        said = fails(*command, "--ckpt_path", path, *other)
        assert "was trained with transform 'Normalize(mean=[0.1307], std=[0.3081], inplace=False)', here" in said
    for command in commands:
        main([*command, "--ckpt_path", path, *NORMALIZED.split()])
    assert "evil" not in sys.modules
    config.write_text(mine)
    for command in commands[:3]:  # of a run of one's own, whose configuration is one's own, too
        main([*command, "--ckpt_path", path, "--trainer.default_root_dir", "there"])


PLATEAU = "--optimizer SGD --optimizer.lr 0.1 --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor train_loss"
REFUSED = {
    "": {
        "--trainer.max_steps 100": "max_steps 100 cannot be resumed exactly",
        "--model.learning_rate 0.1": "learning_rate 0.1 contradicts the checkpoint's 0.001",
        "--data.batch_size 64": "batch_size 64 contradicts the checkpoint's 128",
        "--data.train_size 64": "train_size 64 contradicts the checkpoint's None",
        "--model.dropout 0.5": "dropout 0.5 contradicts the checkpoint's 0.0",
        "--data.train_transform torch.sqrt": "trained with train_transform None, here it is '",
        "--data.transform torch.sqrt": "trained with transform None, here it is '",
        "--seed_everything 3": "seed_everything 3 contradicts the checkpoint's 0",
        "--optimizer Adam --optimizer.lr 0.001": "optimizer.class is 'RMSprop', here it is 'Adam'",
    },
    f"--model.weight_decay 0.1 --data.train_size 64 {TRANSFORMED} {NORMALIZED}": {
        "--model.weight_decay 0": "weight_decay 0.0 contradicts the checkpoint's 0.1",
        "--data.train_size null": "train_size None contradicts the checkpoint's 64",
        "--data.train_size 65": "train_size 65 contradicts the checkpoint's 64",
        "--data.train_transform null": "fill=0)', here it is None",
        "--data.transform null": "inplace=False)', here it is None",
    },
    PLATEAU: {"": "ReduceLROnPlateau cannot be resumed exactly"},
}


@pytest.mark.parametrize("first", REFUSED)
def test_what_cannot_be_resumed_exactly_is_refused(first: str, fails: Callable[..., str]) -> None:
    main(["fit", *RUN, *first.split(), "--trainer.max_epochs", "2"])
    for then, says in REFUSED[first].items():
        assert says in fails("fit", "--ckpt_path", "last", "--trainer.max_epochs", "5", *then.split())


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    """The path of a copy of the run's checkpoint, changed and outside the run."""
    checkpoint = torch.load(FOLDER / "checkpoints" / "last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, "changed.ckpt")
    return "changed.ckpt"


ENDS_WITHIN_AN_EPOCH = [
    ["--trainer.max_steps", "30"],
    pytest.param(
        [*STOPPING, "--trainer.val_check_interval", "5", "--trainer.callbacks.patience", "5"], marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("more", ENDS_WITHIN_AN_EPOCH)
def test_an_epoch_that_was_broken_off_is_repeated_whole(
    capsys: pytest.CaptureFixture[str], fails: Callable[..., str], more: list[str]
) -> None:
    on = ["--trainer.max_steps", "-1", "--trainer.callbacks", "null"]
    main(["fit", *RUN, *more, *on, "--trainer.default_root_dir", "whole"])
    main(["fit", *RUN, *more])
    last, unfinished = (FOLDER / "checkpoints" / f"{name}.ckpt" for name in ("last", "unfinished"))
    assert load_checkpoint(last)["global_step"] == 20
    assert load_checkpoint(unfinished)["global_step"] == 30
    assert "not saved at the end of an epoch" in fails("fit", "--ckpt_path", str(unfinished), *on)
    main(["test"])  # the network as it stood in the end
    assert f"From     {unfinished}" in capsys.readouterr().out
    main(["fit", "--ckpt_path", "last", *on])
    assert f"From     {last}" in capsys.readouterr().out
    assert not unfinished.exists()  # it is no part of the run any more
    assert fingerprint(Path("whole")) == fingerprint(Path())


def test_a_run_that_ended_within_its_first_epoch_is_repeated_from_the_start() -> None:
    main(["fit", *RUN, "--trainer.default_root_dir", "whole"])
    main(["fit", *RUN, "--trainer.max_steps", "10"])
    main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "-1"])
    assert fingerprint(Path("whole")) == fingerprint(Path())


def test_a_finished_run_records_nothing_that_it_was_not_trained_with() -> None:
    main(["fit", *RUN])
    before = (FOLDER / "config.yaml").read_bytes()
    main(["fit", "--ckpt_path", "last", "--trainer.accumulate_grad_batches", "2"])
    assert (FOLDER / "config.yaml").read_bytes() == before


def test_a_checkpoint_that_says_it_is_whole_must_have_seen_the_last_batch(fails: Callable[..., str]) -> None:
    main(["fit", *RUN])

    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    path = str(Path(changed(change)).rename(FOLDER / "checkpoints" / "last.ckpt"))
    assert "not saved at the end of an epoch" in fails("fit", "--ckpt_path", path, "--trainer.max_epochs", "5")


DRAWING = """
import numpy as np, torch, random

def draw(images):
    return images + 0.1 * torch.rand(images.shape) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
"""


def test_a_transform_that_draws_from_the_usual_generators_resumes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("drawing.py").write_text(DRAWING)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    kill_and_resume(monkeypatch, ["fit", *RUN, "--data.train_transform", "drawing.draw"], 47)


SGD = "--optimizer SGD --optimizer.lr 0.2"
STEPS = "--lr_scheduler StepLR --lr_scheduler.step_size 1 --lr_scheduler.gamma 0.5"


def test_a_scheduler_works_with_the_network_s_own_optimizer_and_resumes_exactly() -> None:
    _, parts = stop_and_resume(*STEPS.split(), "--trainer.max_time", "01:00:00:00")
    assert fingerprint(Path("whole")) == fingerprint(Path("parts"))
    assert parts["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3 * 0.5**4


def test_the_run_s_own_optimizer_and_scheduler_are_resumed_or_none(fails: Callable[..., str]) -> None:
    main(["fit", *RUN, *SGD.split(), *STEPS.split(), "--trainer.max_epochs", "1"])
    (FOLDER / "checkpoints" / "last.ckpt").rename("outside.ckpt")
    shutil.rmtree("lightning_logs")
    for more, says in {
        "": "optimizer.class is 'SGD', here it is 'RMSprop'",
        SGD: "1 lr_scheduler(s), here it is 0",
        f"{SGD.replace('0.2', '0.1')} {STEPS}": "optimizer.lr is 0.2, here it is 0.1",
        f"{SGD} --optimizer.momentum 0.9 {STEPS}": "optimizer.momentum is 0.0, here it is 0.9",
        f"{SGD} {STEPS.replace('0.5', '0.1')}": "lr_scheduler.gamma is 0.5, here it is 0.1",
        f"{SGD} --lr_scheduler ExponentialLR --lr_scheduler.gamma 0.5": "class is 'StepLR', here it is 'ExponentialLR'",
    }.items():
        assert says in fails("fit", "--ckpt_path", "outside.ckpt", "--trainer.limit_train_batches", "20", *more.split())


def test_an_older_checkpoint_without_a_record_of_the_optimizers_is_resumed(fails: Callable[..., str]) -> None:
    more = [*SGD.split(), *STEPS.split()]
    main(["fit", *RUN, *more, "--trainer.default_root_dir", "whole"])
    main(["fit", *RUN, *more, "--trainer.max_epochs", "2"])
    changed(lambda checkpoint: checkpoint.pop("optimizers"))
    Path("changed.ckpt").replace(FOLDER / "checkpoints" / "last.ckpt")
    on = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"]
    assert "weight_decay is 0.0, here it is 0.5" in fails(*on, *SGD.split(), "--optimizer.weight_decay", "0.5")
    assert "optimizer.initial_lr is 0.2, here it is 0.1" in fails(*on, *SGD.replace("0.2", "0.1").split())
    assert "1 lr_scheduler(s), here it is 0" in fails(*on, "--lr_scheduler", "null")
    main(on)
    assert fingerprint(Path("whole")) == fingerprint(Path())


def test_a_run_begun_elsewhere_goes_on_from_there_until_it_has_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    main(["fit", *RUN, "--trainer.max_epochs", "1", "--trainer.default_root_dir", "there"])
    path = Path("there") / FOLDER / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():  # no training gives these
        checkpoint["state_dict"][name] = torch.full_like(tensor, 0.01)
    torch.save(checkpoint, "outside.ckpt")
    args = ["fit", *RUN[2:], "--trainer.max_epochs", "3", "--ckpt_path", "outside.ckpt", "--trainer.default_root_dir"]
    main([*args, "whole"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", 21)
    with pytest.raises(Killed):
        main([*args, "killed"], Killable)
    monkeypatch.setattr(Killable, "die_at_step", None)
    Path("outside.ckpt").unlink()
    main(["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "killed"], Killable)
    assert fingerprint(Path("whole")) == fingerprint(Path("killed"))


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(
    capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    main(["fit", *RUN])
    other = f"""if True:
        import sys; from pathlib import Path; from mnist_lightning.runs.folder import lock_run
        lock = lock_run(Path({str(FOLDER)!r})); print("locked", flush=True); sys.stdin.read()"""
    process = subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(process, "locked")
    said = fails("fit", "--ckpt_path", "last", "--trainer.max_epochs", "5")
    assert f"process {process.pid} is training in '{FOLDER}'" in said
    process.kill()  # what it leaves behind does not block
    process.communicate()
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "5"])
    printed = capsys.readouterr().out
    assert "Epoch 5/5" in printed
    assert ".lock" not in printed


def test_the_newest_checkpoint_is_the_one_trained_longest(capsys: pytest.CaptureFixture[str]) -> None:
    every = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.save_top_k", "-1"]
    main(["fit", *RUN, *every])
    (FOLDER / "checkpoints" / "last.ckpt").unlink()  # the package's own
    files = sorted((FOLDER / "checkpoints").iterdir())
    assert len(files) == 4
    for age, file in enumerate(files):  # as after a copy, or with a clock set back
        os.utime(file, (1e9 - age, 1e9 - age))
    capsys.readouterr()
    main(["test"])
    assert f"From     {files[-1]}" in capsys.readouterr().out
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "5"])
    printed = capsys.readouterr().out
    assert "Epoch 5/5" in printed
    assert "Epoch 4/5" not in printed


@pytest.mark.parametrize(
    "more",
    [
        "--data.val_size 2560 --trainer.val_check_interval 5 --trainer.accumulate_grad_batches 4",
        "--data.val_size 2560 --trainer.val_check_interval 7 --trainer.callbacks ModelCheckpoint "
        "--trainer.callbacks.monitor val_loss --trainer.callbacks.save_top_k -1",
        "--data.val_size 2560 --trainer.check_val_every_n_epoch 3",
        "--trainer.accumulate_grad_batches 3",
        "--trainer.callbacks LearningRateMonitor --trainer.log_every_n_steps 7",
    ],
)
def test_a_row_of_metrics_csv_is_what_lightning_logged_once(more: str) -> None:
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "theirs"]
    main(["fit", *RUN, *more.split(), *logger])

    def figures(path: Path) -> list[tuple[str, str, str, float]]:
        with path.open() as file:
            rows = list(csv.DictReader(file))
        return sorted(
            (row["epoch"] or str(int(row["step"]) // 20), row["step"], name, float(value))
            for row in rows
            for name, value in row.items()
            if value and name not in ("epoch", "step")
        )

    ours, theirs = figures(FOLDER / "metrics.csv"), figures(next(Path("theirs").rglob("metrics.csv")))
    assert [figure[:3] for figure in ours] == [figure[:3] for figure in theirs]
    assert [figure[3] for figure in ours] == pytest.approx([figure[3] for figure in theirs])


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
    while process.poll() is None and not (FOLDER / "config.yaml").exists():
        time.sleep(0.05)
    process.kill()
    process.communicate()
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5"])
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    checkpoint = load_checkpoint(FOLDER / "checkpoints" / "last.ckpt")
    assert checkpoint["hyper_parameters"]["hidden_size"] == 8
    assert checkpoint["datamodule_hyper_parameters"]["batch_size"] == 1
