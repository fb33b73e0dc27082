"""What a command refuses before anything is written: what would give a wrong number, or lose a run."""

import os
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.seed import isolate_rng

from mnist_lightning.cli.arguments import in_one_line
from mnist_lightning.data import MNISTDataModule, MNISTDataset
from mnist_lightning.data.same_data import check_same_data
from mnist_lightning.errors import InputError, check
from mnist_lightning.model import MNISTClassifier
from mnist_lightning.runs.progress import say

WRITES = {
    "validate": ["validate.json"],
    "test": ["test.json", "report.json", "confusion_matrix.png", "mistakes.png", "first_layer.png"],
    "predict": ["predictions.csv"],
    "pictures": ["pictures.csv", "pictures.png"],  # `predict` with pictures
    "draw": ["draw.html"],
    "export": ["model.onnx", "model.pt2"],
}
"""The files that a command writes into a run's folder."""


class StartChecks(Callback):
    """Checks the data, the network and the callbacks of a command, once the Trainer has loaded the data."""

    def __init__(self, command: str, checkpoint: dict[str, Any] | None) -> None:
        self.command = command
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: MNISTDataModule | None = trainer.datamodule  # type: ignore[attr-defined]  # set by fit
        if data is None or trainer.state.fn != self.command:
            return  # pictures, or the test at the end of a fit
        is_fit, checkpoint = self.command == "fit", self.checkpoint or {}
        progress = [checkpoint.get("epoch"), checkpoint.get("global_step")]
        if trainer.strategy.broadcast(progress) != progress:  # machines without a common folder
            raise InputError(
                f"process {trainer.global_rank} of {trainer.world_size} has another checkpoint than process 0: copy "
                "the run's folder from the first machine to all others"
            )
        check_same_data(checkpoint, data, resume=is_fit)
        if is_fit:
            data.setup("test")  # a fault in the test images is found before the training
            _check_callbacks(trainer.callbacks, pl_module, data)  # type: ignore[attr-defined]  # set by a connector
        name = {"fit": "train_dataset", "validate": "val_dataset"}.get(self.command, "test_dataset")
        dataset = getattr(data, name)
        if not isinstance(dataset, MNISTDataset):  # a user's class may have others
            return
        is_random = _check_images(pl_module, data, dataset)
        if is_random and trainer.is_global_zero:
            say("Random", "transform draws anew each time, for test images too: each evaluation gives other figures")


def check_writable(folder: Path, command: str) -> None:
    """Refuse to replace a file where no run is, but where somebody keeps a checkpoint."""
    for path in [folder / name for name in WRITES.get(command, [])]:
        if os.path.lexists(path) and not (folder / "config.yaml").is_file():
            raise InputError(
                f"{str(path)!r} would be replaced, and {str(folder)!r} is no run's folder: move the file away"
            )


def check_number(trainer: Namespace) -> None:
    """Refuse zeros, numbers of processes that would stop the machine, and of machines that nobody starts."""
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):  # Lightning would divide by 0
        check(f"trainer.{name}", trainer[name], trainer[name] != 0, "above 0")
    devices, cores, nodes = str(trainer.devices), os.cpu_count() or 1, trainer.num_nodes
    if trainer.accelerator in ("cpu", "auto") and devices.isdecimal() and int(devices) > max(8, cores):
        raise InputError(f"trainer.devices {devices} would start {devices} processes: this machine has {cores} cores")
    if nodes > 1 and not {"MASTER_ADDR", "SLURM_STEP_ID", "LSB_JOBID"} & os.environ.keys():  # Lightning would wait
        raise InputError(
            f"trainer.num_nodes {nodes} needs a launcher that starts all of them (torchrun, SLURM): use it, or leave "
            "the flag out"
        )


def check_optimizer(options: Namespace, model_class: type) -> None:
    """Refuse the network's own optimizer options beside another optimizer, which would ignore them."""
    for name, other in (("learning_rate", "--optimizer.lr"), ("weight_decay", "--optimizer.weight_decay")):
        parameter, given = signature(model_class).parameters.get(name), options.get(f"model.{name}")
        if options.get("optimizer") and parameter is not None and given not in (None, parameter.default):
            raise InputError(
                f"--model.{name} {given} is for the network's own optimizer, and --optimizer names another: use {other}"
            )


def _check_callbacks(callbacks: list[Any], model: LightningModule, data: MNISTDataModule) -> None:
    """Refuse callbacks that would end a run after its first epoch, or make its ``config.yaml`` wrong."""
    logged, more = ["train_loss", "train_acc"], ""
    if data.val_dataset is None and type(data).val_dataloader is MNISTDataModule.val_dataloader:
        more = ", or hold images out with --data.val_size"
    else:
        logged += ["val_loss", "val_acc"]
    known = {type(model), *map(type, callbacks)}  # a class of the user's own may log other metrics
    all_known = all(cls.__module__.startswith(("lightning.", "mnist_lightning.")) for cls in known)
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if all_known and monitor not in (None, "epoch", "step", *logged):
            raise InputError(
                f"{name} cannot monitor {monitor!r}, which this run does not log: choose one of "
                f"{', '.join(logged)}{more}"
            )
        if isinstance(callback, (BatchSizeFinder, LearningRateFinder)):
            raise InputError(f"{name} changes what config.yaml says of the run: give it a fixed value instead")


def _check_images(model: LightningModule, data: MNISTDataModule, dataset: MNISTDataset) -> bool:
    """Refuse images that do not fit the network; return whether ``transform`` draws random numbers."""
    first = dataset.images[:1], dataset.targets[:1]
    with isolate_rng():  # the training draws the same numbers as without this
        with in_one_line("--data.transform: "):
            images = [MNISTDataset(*first, dataset.transform)[0][0] for _ in range(8)]
        with in_one_line("--data.train_transform: "):
            image, _ = MNISTDataset(*first, dataset.transform, dataset.train_transform)[0]
    if isinstance(model, MNISTClassifier) and type(model).forward is MNISTClassifier.forward:  # others may differ
        _check_shapes(model, data, tuple(image.shape))
    return not all(torch.equal(image, images[0]) for image in images)


def _check_shapes(model: MNISTClassifier, data: MNISTDataModule, shape: tuple[int, ...]) -> None:
    own, name = model.image_shape, type(model).__name__
    if shape not in (own, (prod(own),)):
        right = f"have the __init__ of {name} take image_shape, and pass it on"
        if data.transform is not None:
            right = "choose a --data.transform that keeps their shape"
        raise InputError(f"{name} reads images of shape {own}, and gets {shape}: {right}")
    if model.num_classes != data.num_classes:
        raise InputError(
            f"{name} has {model.num_classes} classes, and {data.name} has {data.num_classes}: have the __init__ of "
            f"{name} take num_classes, and pass it on"
        )
