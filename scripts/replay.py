"""Replay a recorded Keras run step by step, and print how far this package strays from it.

    python scripts/replay.py tests/keras-2.2.4-float64-seed-2019.json

The recording holds losses only. Weights and order follow from its seed, with numpy's frozen ``RandomState``: the two
kernels, Glorot-uniform, then one permutation of the images per epoch. The run is an ordinary one, in float64.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch.utils.data import DataLoader

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import quiet
from mnist_lightning.data.dataset import Batch
from mnist_lightning.errors import InputError
from mnist_lightning.runs.history import MetricsCSV

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000

# What is promised. Keras's clipped loss has no gradient where the clip bites, torch's has one: from the first clipped
# image on, after the first epoch, the two are different runs.
BOUNDS = {"keras": 1e-12, "cross_entropy": 1e-7}
GPU_BOUND = 1e-9  # of the steps, instead of 1e-12: a GPU adds up in another order
TEST_LOSS_BOUND = 1e-7


def step_bound(loss: str, accelerator: str) -> float:
    """How far the loss of a step may stray."""
    return max(BOUNDS[loss], GPU_BOUND) if accelerator == "gpu" else BOUNDS[loss]


class Deviations(NamedTuple):
    """How far a replay strays from the recording."""

    steps: list[list[float]]  # one list per epoch: the absolute difference of each step's loss
    test_loss: list[float]  # after each epoch, the absolute difference of the test loss
    test_correct: list[int]  # after each epoch, how many more (or fewer) test images are classified rightly

    def kept(self, loss: str, accelerator: str = "cpu") -> bool:
        """Whether all is within the bounds that hold for this loss and device. NaN is within none."""
        bound = step_bound(loss, accelerator)
        if loss == "cross_entropy":
            return all(step <= bound for step in self.steps[0])
        return (
            all(step <= bound for epoch in self.steps for step in epoch)
            and all(deviation <= TEST_LOSS_BOUND for deviation in self.test_loss)
            and not any(self.test_correct)
        )


class RecordedOrder(MNISTDataModule):
    """MNIST in given orders, one per epoch, with the test images for a validation split."""

    orders: Sequence[np.ndarray] = ()

    def train_order(self, epoch: int) -> np.ndarray:
        return self.orders[epoch]

    def setup(self, stage: str | None = None) -> None:
        super().setup()

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()


def replay(
    reference: dict[str, Any],
    loss: Literal["cross_entropy", "keras"] = "keras",
    epochs: int | None = None,
    accelerator: Literal["cpu", "gpu"] = "cpu",
) -> Deviations:
    """Train as the recorded run was trained, for all of its epochs or for the first ones."""
    try:
        data = RecordedOrder(batch_size=reference["batch_size"], seed=reference["seed"])  # checks both
        steps, recorded_epochs = math.ceil(TRAIN_IMAGES / data.batch_size), int(reference["epochs"])
        step_loss, tested = (np.array(reference[name]) for name in ("step_loss", "test_loss_and_acc_after_epoch"))
        if (step_loss.shape, tested.shape) != ((recorded_epochs * steps,), (recorded_epochs, 2)):
            raise ValueError(f"losses of {steps} steps in each of {recorded_epochs} epochs, and two figures after each")
        if not (np.isfinite(step_loss).all() and np.isfinite(tested).all()):
            raise ValueError("a figure is not finite")
    except (LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"the reference does not have the form of the one in tests/ ({why})") from error
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("--accelerator gpu needs CUDA, and torch finds none here")
    epochs = recorded_epochs if epochs is None else epochs
    if not 1 <= epochs <= recorded_epochs:
        raise InputError(f"epochs must be from 1 to the {recorded_epochs} recorded, got {epochs}")
    random = np.random.RandomState(data.seed)
    model = MNISTClassifier(loss=loss).double()
    layers: list[Any] = [model.network[1], model.network[3]]
    with torch.no_grad():
        for layer in layers:
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            kernel = random.uniform(-bound, bound, (layer.in_features, layer.out_features))
            layer.weight.copy_(torch.from_numpy(kernel.T))
    data.orders = [random.permutation(TRAIN_IMAGES) for _ in range(epochs)]
    losses: list[float] = []  # of the steps
    keep = LambdaCallback(on_train_batch_end=lambda trainer, model, out, *_: losses.append(out["loss"].item()))
    log = MetricsCSV()
    with quiet():
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision="64-true",
            max_epochs=epochs,
            num_sanity_val_steps=0,
            callbacks=[keep],
            logger=log,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=data)
    pairs = [*zip(log.rows, tested[:epochs], strict=True)]
    return Deviations(
        np.abs(np.subtract(losses, step_loss[: epochs * steps])).reshape(epochs, steps).tolist(),
        [abs(row["val_loss"] - theirs) for row, (theirs, _) in pairs],
        [round(TEST_IMAGES * row["val_acc"]) - round(TEST_IMAGES * theirs) for row, (_, theirs) in pairs],
    )


def report(deviations: Deviations, loss: str, accelerator: str) -> str:
    """What was found, in lines."""
    lines = []
    for name, epochs in (("first epoch", deviations.steps[:1]), ("all epochs", deviations.steps)):
        steps = np.concatenate(epochs)
        at = int(steps.argmax())  # numpy takes NaN for the largest
        where = f"step {at % len(epochs[0]) + 1} of epoch {at // len(epochs[0]) + 1}"
        lines.append(f"{name}: largest deviation of {len(steps):,} step losses {steps[at]:.1e} ({where})")
    for epoch, (test_loss, correct) in enumerate(zip(deviations.test_loss, deviations.test_correct, strict=True)):
        images = f"{correct:+d} of {TEST_IMAGES:,} images" if correct else "equal"
        lines.append(f"after epoch {epoch + 1}: test loss deviates by {test_loss:.1e}, test accuracy: {images}")
    bound = step_bound(loss, accelerator)
    promise = f"loss 'keras', steps within {bound:.0e}, test loss within {TEST_LOSS_BOUND:.0e}, accuracy equal"
    if loss == "cross_entropy":
        promise = f"loss 'cross_entropy', steps of the first epoch within {bound:.0e}"
    lines.append(f"{promise}: {'yes' if deviations.kept(loss, accelerator) else 'NO'}")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Print the deviations; 0 if they are within the promised bounds, else 1; 2 if the reference cannot be used."""
    parser = argparse.ArgumentParser(description="Replay a recorded Keras run step by step, in float64.")
    parser.add_argument("reference", type=Path, help="JSON file, as tests/keras-2.2.4-float64-seed-2019.json")
    parser.add_argument("--loss", choices=[*BOUNDS], default="keras", help="default: keras, the recorded one")
    parser.add_argument("--epochs", type=int, help="replay only the first of the recorded epochs")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="default: cpu")
    options = parser.parse_args(args)
    try:
        try:
            reference = json.loads(options.reference.read_bytes())
        except ValueError as error:
            raise InputError(f"{str(options.reference)!r} is no JSON: {error}") from error
        deviations = replay(reference, options.loss, options.epochs, options.accelerator)
    except (OSError, InputError) as error:
        print(f"replay: error: {error}", file=sys.stderr)
        return 2
    print(report(deviations, options.loss, options.accelerator))
    return 0 if deviations.kept(options.loss, options.accelerator) else 1


if __name__ == "__main__":
    sys.exit(main())
