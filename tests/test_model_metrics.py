"""The figures that are logged: Keras's running means in training, plain means in evaluation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

UNEVEN = {"val_size": 59_000, "batch_size": 300}
"""Batches of 300, 300, 300 and 100: a mean over batches is not the mean over images."""


class Steps(Callback):
    """Loss, number of right answers and size of each training batch, before the step moves the weights."""

    def __init__(self) -> None:
        self.epochs: list[list[tuple[float, int, int]]] = []
        self.logged: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer)
        self.epochs.append([])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        with torch.no_grad():
            logits = pl_module(images)
        right = int((logits.argmax(1) == targets).sum())
        self.epochs[-1].append((F.cross_entropy(logits.double(), targets).item(), right, len(targets)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer)

    def _record(self, trainer: Trainer) -> None:
        if "train_loss" in trainer.callback_metrics:
            self.logged.append(
                (trainer.callback_metrics["train_loss"].item(), trainer.callback_metrics["train_acc"].item())
            )


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("64-true", 1e-14)])
def test_training_figures_are_running_means_weighted_by_batch_size(
    precision: str, tolerance: float, trainer: Callable
) -> None:
    steps = Steps()
    fit = trainer(precision=precision, max_epochs=3, limit_val_batches=0, callbacks=[steps])
    fit.fit(MNISTClassifier(32), datamodule=MNISTDataModule(**UNEVEN))
    assert len(steps.logged) == 3
    for epoch, (train_loss, train_acc) in zip(steps.epochs, steps.logged, strict=True):
        losses, right, sizes = np.array(epoch).T
        assert sizes.tolist() == [300, 300, 300, 100]
        assert train_loss == pytest.approx(np.average(losses, weights=sizes), abs=tolerance)
        assert abs(train_loss - losses.mean()) > 1e-3  # or else the weights would not matter here
        assert train_acc == pytest.approx(right.sum() / 1000, abs=1e-7)


def evaluate(model: MNISTClassifier, data: MNISTDataModule, dataset: str) -> tuple[float, float]:
    """Loss and accuracy of all images at once, in float64."""
    pixels, targets = getattr(data, dataset).images, getattr(data, dataset).targets
    with torch.no_grad():
        logits = model(pixels.to(model.dtype) / 255)
    return F.cross_entropy(logits.double(), targets).item(), (logits.argmax(1) == targets).double().mean().item()


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("64-true", 1e-14)])
def test_evaluation_figures_are_means_over_images(precision: str, tolerance: float, trainer: Callable) -> None:
    model, data = MNISTClassifier(32), MNISTDataModule(val_size=1000, batch_size=3000 // 7)
    fit = trainer(precision=precision, limit_train_batches=5, max_epochs=2)
    fit.fit(model, datamodule=data)
    validated = {name: value.item() for name, value in fit.callback_metrics.items() if name.startswith("val")}
    loss, acc = evaluate(model, data, "val_dataset")
    assert validated == {"val_loss": pytest.approx(loss, abs=tolerance), "val_acc": pytest.approx(acc, abs=1e-7)}
    assert trainer(precision=precision).validate(model, datamodule=data, verbose=False) == [validated]
    (tested,) = trainer(precision=precision).test(model, datamodule=data, verbose=False)
    loss, acc = evaluate(model, data, "test_dataset")
    assert tested == {"test_loss": pytest.approx(loss, abs=tolerance), "test_acc": pytest.approx(acc, abs=1e-7)}


@pytest.mark.parametrize("loss", ["cross_entropy", "keras"])
@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_a_loss_is_that_of_its_half_precision_logits_in_float32(precision: str, loss: str, trainer: Callable) -> None:
    torch.manual_seed(0)
    model, data = MNISTClassifier(32, loss=loss), MNISTDataModule(batch_size=10)  # in bfloat16, 10,000 is 9,984
    tester = trainer(precision=precision)
    (tested,) = tester.test(model, datamodule=data, verbose=False)
    with torch.no_grad(), tester.precision_plugin.forward_context():
        logits = torch.cat([model(images) for images, _ in data.test_dataloader()])
    assert logits.dtype == (torch.float16 if precision == "16-true" else torch.bfloat16)
    wanted = F.cross_entropy(logits.double(), data.test_dataset.targets).item()
    assert tested["test_loss"] == pytest.approx(wanted, abs=1e-6)


def test_the_loss_of_a_batch_too_large_for_float16_is_finite(trainer: Callable) -> None:
    steps = Steps()
    fit = trainer(precision="16-true", callbacks=[steps])  # the sum of 60,000 losses of 2.3 is above 65,504
    fit.fit(MNISTClassifier(8), datamodule=MNISTDataModule(batch_size=60_000))
    assert fit.callback_metrics["train_loss"].item() == pytest.approx(steps.epochs[0][0][0], abs=1e-5)


class Fail(Callback):
    """Stops a loop in its third batch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if args[2] == 2:
            raise ConnectionError

    on_test_batch_end = on_train_batch_end


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_loop_that_was_broken_off_leaves_nothing_in_the_next_figures(stage: str, trainer: Callable) -> None:
    model, data = MNISTClassifier(8), MNISTDataModule()
    with pytest.raises(ConnectionError):
        getattr(trainer(callbacks=[Fail()]), stage)(model, datamodule=data)
    steps = Steps()
    again = trainer(limit_train_batches=1, limit_test_batches=1, callbacks=[steps])
    getattr(again, stage)(model, datamodule=data)
    if stage == "fit":
        assert again.callback_metrics["train_loss"].item() == pytest.approx(steps.epochs[0][0][0], abs=1e-6)
    else:
        images, targets = data.test_dataset[:128]
        expected = F.cross_entropy(model(images), targets).item()
        assert again.callback_metrics["test_loss"].item() == pytest.approx(expected, abs=1e-6)


BAD = {
    "nan": lambda model: torch.nn.init.constant_(model.network[3].bias, torch.nan),
    "one nan": lambda model: model.network[3].bias[4].fill_(torch.nan),
    "inf": lambda model: model.network[3].bias[4].fill_(torch.inf),
    "-inf": lambda model: model.network[3].bias[4].fill_(-torch.inf),
}


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("damage", BAD)
def test_outputs_that_are_not_finite_are_refused_until_they_are_mended(
    damage: str, stage: str, trainer: Callable
) -> None:
    model, data = MNISTClassifier(8), MNISTDataModule(val_size=200)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        BAD[damage](model)
    number = {"validate": "200 of 200"}.get(stage, "10,000 of 10,000")
    made = trainer()
    with pytest.raises(InputError, match=f"^the network's outputs are infinite or NaN for {number} images.*: it has"):
        getattr(made, stage)(model, datamodule=data)
    assert not any(value.isfinite() for value in made.callback_metrics.values())
    model.load_state_dict(weights)
    again = getattr(trainer(), stage)(model, datamodule=data)
    if stage == "predict":
        assert torch.cat(again).isfinite().all()
    else:
        loss, acc = evaluate(model, data, {"validate": "val_dataset"}.get(stage, "test_dataset"))
        assert list(again[0].values()) == [pytest.approx(loss, abs=1e-6), pytest.approx(acc, abs=1e-7)]


@pytest.mark.parametrize("stage", ["test", "predict"])
@pytest.mark.parametrize(("precision", "large"), [("32-true", 1e30), ("16-true", 1e4)])
def test_it_is_said_for_how_many_images(
    precision: str, large: float, stage: str, trainer: Callable, mnist: Callable
) -> None:
    lit = int((mnist("t10k")[0].reshape(-1, 784)[:, 100] > 0).sum())  # any light there at all, and the logits are inf
    assert 0 < lit < 1000
    model = MNISTClassifier(8)
    with torch.no_grad():
        model.network[1].weight[0] = 0
        model.network[1].weight[0, 100] = model.network[3].weight[:, 0] = large
    with pytest.raises(InputError, match=f"infinite or NaN for {lit} of 10,000 images"):
        getattr(trainer(precision=precision), stage)(model, datamodule=MNISTDataModule())


def test_an_infinite_loss_of_finite_outputs_is_refused(trainer: Callable) -> None:
    model = MNISTClassifier(8)
    with torch.no_grad():
        model.network[3].bias[3], model.network[3].bias[4] = 3e38, -3e38  # float32 ends at 3.4e38
    with pytest.raises(InputError, match="NaN for 0 of 10,000 images, and the loss is inf: it has diverged"):
        trainer().test(model, datamodule=MNISTDataModule(), verbose=False)


def test_a_fit_that_diverged_leaves_nothing_in_the_next(trainer: Callable) -> None:
    model, data = MNISTClassifier(8), MNISTDataModule(train_size=300, val_size=200)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.network[3].bias.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss became infinite or NaN in epoch 1, at batch 1: try a lower"):
        trainer().fit(model, datamodule=data)
    model.load_state_dict(weights)
    steps = Steps()
    trainer(callbacks=[steps]).fit(model, datamodule=MNISTDataModule(train_size=300))
    losses, _, sizes = np.array(steps.epochs[0]).T
    assert steps.logged[0][0] == pytest.approx(np.average(losses, weights=sizes), abs=1e-6)
