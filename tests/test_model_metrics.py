"""The figures that are logged: Keras's running means in training, plain means in evaluation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lightning import MNISTClassifier, MNISTDataModule


class Steps(Callback):
    """Loss, number of right answers and size of each training batch, before the step moves the weights."""

    def __init__(self) -> None:
        self.epochs: list[list[tuple[float, int, int]]] = []
        self.logged: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append([])
        self.logged.append(trainer.callback_metrics.copy())  # of the epoch before

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        with torch.no_grad():
            logits = pl_module(images)
        right = int((logits.argmax(1) == targets).sum())
        self.epochs[-1].append((F.cross_entropy(logits.double(), targets).item(), right, len(targets)))


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("64-true", 1e-14)])
def test_training_figures_are_running_means_over_images(precision: str, tolerance: float, trainer: Callable) -> None:
    steps = Steps()
    fit = trainer(precision=precision, max_epochs=3, limit_val_batches=0, callbacks=[steps])
    # Batches of 300, 300, 300 and 100: a mean over batches is not the mean over images.
    fit.fit(MNISTClassifier(32), datamodule=MNISTDataModule(val_size=59_000, batch_size=300))
    for epoch, logged in zip(steps.epochs, [*steps.logged[1:], fit.callback_metrics], strict=True):
        losses, right, sizes = np.array(epoch).T
        assert sizes.tolist() == [300, 300, 300, 100]
        assert logged["train_loss"].item() == pytest.approx(np.average(losses, weights=sizes), abs=tolerance)
        assert abs(logged["train_loss"] - losses.mean()) > 1e-3  # or else the weights would not matter here
        assert logged["train_acc"].item() == pytest.approx(right.sum() / 1000, abs=1e-7)


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
def test_loss_and_probabilities_are_those_of_half_precision_logits_in_float32(
    precision: str, loss: str, trainer: Callable
) -> None:
    torch.manual_seed(0)
    model, data = MNISTClassifier(32, loss=loss), MNISTDataModule(batch_size=10)  # in bfloat16, 10,000 is 9,984
    tester = trainer(precision=precision)
    (tested,) = tester.test(model, datamodule=data, verbose=False)
    images = (data.test_dataset.images.double() / 255).to(model.dtype)
    with torch.no_grad(), tester.precision_plugin.forward_context():
        logits = torch.cat([model(batch) for batch in images.split(10)])
    assert logits.dtype == (torch.float16 if precision == "16-true" else torch.bfloat16)
    wanted = F.cross_entropy(logits.double(), data.test_dataset.targets).item()
    assert tested["test_loss"] == pytest.approx(wanted, abs=1e-6)
    probabilities = torch.cat(tester.predict(model, datamodule=data))
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.double(), logits.double().softmax(1), atol=1e-6)


def test_the_loss_of_a_batch_too_large_for_float16_is_finite(trainer: Callable) -> None:
    steps = Steps()
    fit = trainer(precision="16-true", callbacks=[steps])  # the sum of 60,000 losses of 2.3 is above 65,504
    fit.fit(MNISTClassifier(8), datamodule=MNISTDataModule(batch_size=60_000))
    assert fit.callback_metrics["train_loss"].item() == pytest.approx(steps.epochs[0][0][0], abs=1e-5)


class Fail(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if args[2] == 2:
            raise ConnectionError

    on_test_batch_end = on_train_batch_end


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_loop_that_was_broken_off_or_diverged_leaves_nothing(stage: str, trainer: Callable) -> None:
    model, data = MNISTClassifier(8), MNISTDataModule()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.constant_(model.network[3].bias, torch.nan)
    with pytest.raises(ConnectionError):
        getattr(trainer(callbacks=[Fail()]), stage)(model, datamodule=data)
    model.load_state_dict(weights)
    steps = Steps()
    again = trainer(limit_train_batches=1, limit_test_batches=1, callbacks=[steps])
    getattr(again, stage)(model, datamodule=data)
    if stage == "fit":
        assert again.callback_metrics["train_loss"].item() == pytest.approx(steps.epochs[0][0][0], abs=1e-6)
    else:
        images, targets = data.test_dataset.batch(slice(128))
        expected = F.cross_entropy(model(images), targets).item()
        assert again.callback_metrics["test_loss"].item() == pytest.approx(expected, abs=1e-6)
