"""A checkpoint and its folder are the user's: nothing there is deleted or replaced that is not the run's."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.files import load_checkpoint
from mnist_lightning.runs.checkpoints import SafeCheckpointIO

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "8"]
LAST = Path("lightning_logs") / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
