"""Which checkpoints a run keeps, beside those of a user's own callbacks, and what a checkpoint may say of them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.runs import folder
from mnist_lightning.runs.checkpoints import SafeCheckpointIO
from mnist_lightning.runs.run import run_folders
from mnist_lightning.safe_checkpoints import load_checkpoint

RUN = ["--trainer.limit_train_batches", "20", "--trainer.limit_test_batches", "2", "--model.hidden_size", "8"]
CHECKPOINTS = Path("lightning_logs") / "version_0" / "checkpoints"
LAST = CHECKPOINTS / "last.ckpt"
QUICK = [*RUN, "--trainer.max_epochs", "1"]


def own(*options: str) -> list[str]:
    """A ModelCheckpoint of the user's own."""
    return ["--trainer.callbacks", "ModelCheckpoint", *(f"--trainer.callbacks.{option}" for option in options)]


@pytest.mark.parametrize(("monitor", "mode"), [("step", "max"), ("train_loss", "min")])
def test_a_run_that_keeps_its_best_checkpoints_is_resumed(monitor: str, mode: str) -> None:
    keep = own(f"monitor={monitor}", f"mode={mode}", "save_top_k=2", "save_on_train_epoch_end=true")
    main(["fit", *RUN, *keep, "--trainer.max_epochs", "3"])
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"])
    assert {"epoch=2-step=60.ckpt", "epoch=3-step=80.ckpt"} <= {path.name for path in CHECKPOINTS.iterdir()}


@pytest.mark.parametrize("monitor", ["train_loss", None])
def test_files_that_a_checkpoint_names_are_not_deleted(monitor: str | None) -> None:
    keep = own(*([f"monitor={monitor}"] if monitor else []), "save_top_k=1", "save_on_train_epoch_end=true")
    main(["fit", *RUN, *keep, "--trainer.max_epochs", "1"])
    victim = Path("victim", "thesis.ckpt").absolute()
    victim.parent.mkdir()
    victim.write_text("irreplaceable")
    inside = CHECKPOINTS.absolute() / "kept"
    inside.mkdir()
    for name in (str(victim), f"{CHECKPOINTS.absolute()}/../../../victim/thesis.ckpt", str(victim.parent), str(inside)):
        for path in CHECKPOINTS.glob("*.ckpt"):
            checkpoint = load_checkpoint(path)
            for state in checkpoint["callbacks"].values():
                if "best_k_models" in state:
                    state |= dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), name)
                    state["best_k_models"] = {name: torch.tensor(1e9)}
            torch.save(checkpoint, path)
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", str(checkpoint["epoch"] + 2)])
    assert victim.read_text() == "irreplaceable"
    assert inside.is_dir()


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["save_last=true"], {"epoch=1-step=40", "last", "last-epoch"}),
        (["save_top_k=-1"], {"epoch=0-step=20", "epoch=1-step=40", "last"}),
        (["every_n_train_steps=7", "save_last=true"], {"epoch=1-step=35", "last", "last-epoch"}),
        (["every_n_train_steps=7", "filename=last"], {"last", "last-epoch"}),
        (["every_n_train_steps=7", "save_last=link"], {"epoch=1-step=35", "last", "last-epoch"}),
        (
            ["every_n_train_steps=7", "filename={step}", "save_top_k=-1"],
            {*(f"step={n}" for n in range(7, 41, 7)), "last"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "files",
)
def test_a_callback_of_the_user_s_own_keeps_its_files_and_the_run_is_resumed_exactly(
    options: list[str], files: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    class Killable(MNISTClassifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == kill_at:
                raise Killed

    keep = ["fit", *RUN, "--trainer.max_epochs", "2", *own(*options)]
    main([*keep, "--trainer.default_root_dir", "whole"])
    assert {path.stem for path in ("whole" / CHECKPOINTS).iterdir()} == files
    kill_at = 37
    with pytest.raises(Killed):
        main(keep, Killable)
    capsys.readouterr()
    kill_at = -1
    main(["fit", "--ckpt_path", "last"], Killable)
    said = capsys.readouterr().out
    assert "Epoch 2/2" in said
    assert "Epoch 1/2" not in said
    assert files <= {path.stem for path in CHECKPOINTS.iterdir()}
    ours = "last-epoch.ckpt" if "last-epoch" in files else "last.ckpt"
    resumed, whole = (load_checkpoint(root / CHECKPOINTS / ours) for root in (Path(), Path("whole")))
    assert (resumed["epoch"], resumed["global_step"]) == (1, 40)
    assert all(torch.equal(weight, whole["state_dict"][name]) for name, weight in resumed["state_dict"].items())


class Killed(BaseException):
    """Stands in for a kill."""


class Activated(MNISTClassifier):
    """A network whose hyper-parameters are more than plain values: Lightning saves those of a subclass, too."""

    def __init__(self, activation: Callable = torch.relu, head: Any = nn.Identity, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation, self.head = activation, head


class Plain(Activated):
    """The same, as the message says it."""

    def __init__(self, activation: Callable = torch.relu, head: Any = nn.Identity, **kwargs: Any) -> None:
        super().__init__(activation, head, **kwargs)
        self.save_hyperparameters(ignore=["activation", "head"])


def test_hyper_parameters_that_no_command_could_read_are_refused_before_anything_is_made(
    fails: Callable[..., str],
) -> None:
    error = fails("fit", *RUN, model_class=Activated)
    assert "Activated's hyper-parameter activation is <built-in method relu" in error
    assert "self.save_hyperparameters(ignore=['activation'])" in error
    main(["fit", *RUN, "--trainer.max_epochs", "1"], Plain)
    main(["test"], Plain)


def test_a_file_of_the_users_own_is_never_replaced(fails: Callable[..., str]) -> None:
    main(["fit", *QUICK, "--data.val_size", "100"])
    names = {"validate": ["validate.json"], "predict": ["predictions.csv"]}
    names["test"] = ["test.json", "report.json", "confusion_matrix.png", "mistakes.png", "first_layer.png"]
    Path("thesis/checkpoints").mkdir(parents=True)
    path = shutil.copy(LAST, "thesis/checkpoints/m.ckpt")
    for command, files in names.items():
        for file in (Path("thesis", name) for name in files):
            file.write_text("mine")
            assert f"'{file}' would be replaced" in fails(command, "--ckpt_path", path)
            file.unlink()
        main([command, "--ckpt_path", path])
        assert all(Path("thesis", name).exists() for name in files)
    for _ in range(2):
        main(["test"])  # those of a run are


def test_a_run_folder_that_cannot_be_made_ends_in_one_line(fails: Callable[..., str]) -> None:
    Path("lightning_logs").write_text("a file where the folder should be")
    assert "cannot make a run's folder" in fails("fit", *QUICK)


def test_a_run_that_comes_second_takes_the_next_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    real = run_folders
    seen: dict[str, Any] = {}  # at first, there is none: another process makes its folder after that
    monkeypatch.setattr(
        folder, "run_folders", lambda root: real(root) if "used" in seen else seen.setdefault("used", {})
    )
    Path("lightning_logs/version_0").mkdir(parents=True)
    assert folder._new_folder(Path()) == Path("lightning_logs/version_1")


def test_a_start_that_fails_while_it_writes_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(folder, "save_hparams_to_yaml", full)
    with pytest.raises(SystemExit):
        main(["fit", *QUICK])
    assert "the disk is full" in capsys.readouterr().err
    assert [*Path("lightning_logs").iterdir()] == []


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_trainer_saves_and_loads_through_the_plugin(trainer: Callable[..., Any]) -> None:
    plugin = SafeCheckpointIO()
    started = trainer(plugins=[plugin], limit_train_batches=2)
    started.fit(MNISTClassifier(hidden_size=4), datamodule=MNISTDataModule())
    started.save_checkpoint("a.ckpt")
    assert load_checkpoint("a.ckpt")["hyper_parameters"]["hidden_size"] == 4
    Path("own").mkdir()
    shutil.copy("a.ckpt", "own")
    for path in ("a.ckpt", "own/a.ckpt"):
        plugin.remove_checkpoint(path)
    assert not Path("a.ckpt").exists()
    assert Path("own/a.ckpt").exists()  # this plugin has saved nothing there
