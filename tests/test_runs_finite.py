"""A training that diverges ends in one line, and its network is not saved."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.runs.finite import RefuseNotFinite
from mnist_lightning.safe_checkpoints import load_checkpoint

RUN = ["fit", "--trainer.limit_train_batches", "20", "--trainer.limit_test_batches", "2", "--model.hidden_size", "8"]
FOLDER = Path("lightning_logs") / "version_0"


class Diverges(MNISTClassifier):
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.current_epoch == 2 and batch_idx == 4:
            with torch.no_grad():
                self.network[1].weight.fill_(float("nan"))


def test_a_loss_that_becomes_nan_stops_the_run_and_leaves_the_last_good_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([*RUN, "--trainer.max_epochs", "1"])
    (FOLDER / "curves.png").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"], Diverges)
    assert stop.value.code == 2
    said = "the loss became infinite or NaN in epoch 3, at batch 5: try a lower learning_rate than 0.001; earlier"
    captured = capsys.readouterr()
    assert said in captured.err
    assert "train_loss nan" in captured.out
    assert "Traceback" not in captured.err
    assert (FOLDER / "curves.png").exists()  # of the epochs before
    saved = load_checkpoint(FOLDER / "checkpoints" / "last.ckpt")
    assert saved["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_of_a_network_that_has_diverged_is_refused(command: str, fails: Callable[..., str]) -> None:
    main([*RUN, "--trainer.max_epochs", "1", "--data.val_size", "100"])
    checkpoint = load_checkpoint(FOLDER / "checkpoints" / "last.ckpt")
    checkpoint["state_dict"]["network.3.weight"][2, 3] = float("inf")
    torch.save(checkpoint, "diverged.ckpt")
    shutil.rmtree("lightning_logs")
    name = "val_loss" if command == "validate" else "test_loss"
    assert f"{name} is nan: the network has diverged" in fails(command, "--ckpt_path", "diverged.ckpt")


class Foreign(LightningModule):
    """Knows nothing of this package, and logs nothing. Its last step makes its weights infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0]).mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            nn.init.constant_(self.layer.weight, torch.inf)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_the_weights_of_any_network_are_watched(trainer: Callable[..., Any]) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)))
    with pytest.raises(InputError, match=r"infinite or NaN in epoch 1: try a lower learning_rate than 0\.5"):
        trainer(callbacks=[RefuseNotFinite()], limit_train_batches=4).fit(Foreign(), loader)
