"""Which checkpoints a run keeps, beside those of a user's own callbacks, and what a checkpoint may say of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main
from mnist_lightning.files import load_checkpoint

RUN = ["--trainer.limit_train_batches", "20", "--trainer.limit_test_batches", "2", "--model.hidden_size", "8"]
CHECKPOINTS = Path("lightning_logs") / "version_0" / "checkpoints"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def own(*options: str) -> list[str]:
    """A ModelCheckpoint of the user's own."""
    return ["--trainer.callbacks", "ModelCheckpoint", *(f"--trainer.callbacks.{option}" for option in options)]


@pytest.mark.parametrize(("monitor", "mode"), [("step", "max"), ("train_loss", "min")])
def test_a_run_that_keeps_its_best_checkpoints_is_resumed(monitor: str, mode: str) -> None:
    keep = own(f"monitor={monitor}", f"mode={mode}", "save_top_k=2", "save_on_train_epoch_end=true")
    main(["fit", *RUN, *keep, "--trainer.max_epochs", "3"])
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"])
    assert {"epoch=2-step=60.ckpt", "epoch=3-step=80.ckpt"} <= {path.name for path in CHECKPOINTS.iterdir()}


@pytest.mark.parametrize(
    "change",
    [
        lambda state, path: state.update(best_k_models={path: "x"}),
        lambda state, path: state.update(best_k_models={5: torch.tensor(1.0)}),
        lambda state, path: state.update(best_k_models={path: torch.ones(3)}),
        lambda state, path: state.update(best_k_models={path: torch.tensor(1.0)}, kth_best_model_path="another"),
    ],
    ids=["text", "number", "shape", "another"],
)
def test_scores_that_a_callback_cannot_use_are_refused_in_one_line(
    change: Callable[[dict[str, Any], str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    keep = own("monitor=train_loss", "save_top_k=1", "save_on_train_epoch_end=true")
    main(["fit", *RUN, *keep, "--trainer.max_epochs", "1"])
    for path in CHECKPOINTS.iterdir():
        checkpoint = load_checkpoint(path)
        for name, state in checkpoint["callbacks"].items():
            if name.startswith("ModelCheckpoint"):
                change(state, str(path))
        torch.save(checkpoint, path)
    before = {path: path.read_bytes() for path in CHECKPOINTS.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert stop.value.code == 2
    assert "best_k_models" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in CHECKPOINTS.iterdir()} == before


@pytest.mark.parametrize("monitor", ["train_loss", None])
def test_files_that_a_checkpoint_names_are_not_deleted(monitor: str | None) -> None:
    keep = own(*([f"monitor={monitor}"] if monitor else []), "save_top_k=1", "save_on_train_epoch_end=true")
    main(["fit", *RUN, *keep, "--trainer.max_epochs", "1"])
    victim = Path("victim", "thesis.ckpt").absolute()
    victim.parent.mkdir()
    victim.write_text("irreplaceable")
    for name in (str(victim), f"{CHECKPOINTS.absolute()}/../../../victim/thesis.ckpt"):
        for path in CHECKPOINTS.iterdir():
            checkpoint = load_checkpoint(path)
            for state in checkpoint["callbacks"].values():
                if "best_k_models" in state:
                    state |= dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), name)
                    state["best_k_models"] = {name: torch.tensor(1e9)}
            torch.save(checkpoint, path)
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", str(checkpoint["epoch"] + 2)])
    assert victim.read_text() == "irreplaceable"


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["save_last=true"], {"epoch=1-step=40", "last", "last-epoch"}),
        (["save_top_k=-1"], {"epoch=0-step=20", "epoch=1-step=40", "last"}),
        pytest.param(["every_n_train_steps=7"], {"epoch=1-step=35", "last"}, marks=pytest.mark.slow),
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
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *RUN], Activated)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Activated's hyper-parameter activation is <built-in method relu" in error
    assert "self.save_hyperparameters(ignore=['activation'])" in error
    assert error.count("\n") == 1
    assert [*Path().iterdir()] == []
    main(["fit", *RUN, "--trainer.max_epochs", "1"], Plain)
    main(["test"], Plain)
