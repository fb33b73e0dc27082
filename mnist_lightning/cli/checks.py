"""What is refused before a run gets its folder, because Lightning would refuse, misuse or ignore it later."""

import contextlib
import copy
import math
import os
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.cli import ReduceLROnPlateau, instantiate_class
from lightning.pytorch.utilities.model_helpers import is_overridden

from mnist_lightning.cli.bad_input import in_one_line
from mnist_lightning.cli.processes import is_launched
from mnist_lightning.data import MNISTDataModule, MNISTDataset
from mnist_lightning.data.transforms import TRANSFORMS
from mnist_lightning.errors import InputError
from mnist_lightning.model import MNISTClassifier

if TYPE_CHECKING:
    from mnist_lightning.cli.parser import MNISTCLI

WRITES = {
    "validate": ("validate.json",),
    "test": ("test.json", "report.json", "confusion_matrix.png", "mistakes.png", "first_layer.png"),
    "predict": ("predictions.csv",),
    "draw": ("draw.html",),
    "pictures": ("pictures.csv", "pictures.png"),  # `predict` with pictures
}
"""The files that a command writes into a run's folder."""


def check_trainer(trainer: Namespace) -> None:
    """Refuse values that make Lightning divide by zero, start hundreds of processes or wait for ever."""
    if trainer.barebones:
        raise InputError("trainer.barebones leaves out all that a command shows and keeps: use it from Python")
    above_0 = ("check_val_every_n_epoch", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")
    for name in (*above_0, "gradient_clip_val"):
        value = trainer[name]
        if isinstance(value, (int, float)) and not value > 0:
            raise InputError(f"trainer.{name} must be above 0, got {value}")
    for name, value in trainer.items():
        if isinstance(value, int) and abs(value) >= 2**31:
            raise InputError(f"trainer.{name} must be below {2**31}, got {value}")
    least, most = trainer.min_epochs, trainer.max_epochs
    if least is not None and most is not None and 0 <= most < least:
        raise InputError(f"trainer.min_epochs {least} is more than trainer.max_epochs {most}: give at most {most}")
    cores = os.cpu_count() or 1
    devices = str(trainer.devices)
    if trainer.accelerator in ("cpu", "auto") and devices.isdecimal() and int(devices) > max(8, cores):
        raise InputError(f"trainer.devices {devices} would start {devices} processes: this machine has {cores} cores")
    if trainer.num_nodes > 1 and not {"MASTER_ADDR", "SLURM_STEP_ID", "LSB_JOBID"} & set(os.environ):
        raise InputError(
            f"trainer.num_nodes {trainer.num_nodes} needs a launcher that starts all of them (torchrun, SLURM): "
            "use it, or leave the flag out"
        )


def check_folder_name(name: str, folder: str | None) -> None:
    """Refuse a path that the system cannot have, because it is too long or has a NUL."""
    with in_one_line(f"{name} must be the path of a folder, got {folder!r}: "), contextlib.suppress(FileNotFoundError):
        os.lstat(folder or ".")


def check_writable(folder: Path, command: str) -> None:
    """Refuse to write through a link, or over a file in a folder that is not a run's."""
    if (folder / "checkpoints").is_symlink():
        raise InputError(f"{str(folder / 'checkpoints')!r} is a link, which is not followed: name the folder itself")
    there = [name for name in WRITES.get(command, ()) if os.path.lexists(folder / name)]
    if there and not (folder / "config.yaml").is_file():
        raise InputError(
            f"{str(folder / there[0])!r} would be replaced, and {str(folder)!r} is no run's folder: move the file away"
        )


def check_fit(cli: "MNISTCLI") -> bool:
    """Refuse what is wrong with the data, the limits and the callbacks, before anything is made or said.

    Returns:
        Whether ``transform`` draws random numbers.
    """
    data, trainer = cli.datamodule, cli.trainer
    if not is_overridden("test_step", cli.model):
        raise InputError(f"{type(cli.model).__name__} has no test_step, and fit ends with a test: add one")
    is_random = check_transforms(cli)
    data.check_processes(trainer.world_size)
    check_shapes(cli.model, data)
    check_unused(cli.options.trainer, data)
    check_limits(trainer, data)
    check_callbacks(trainer, cli.model, data)
    return is_random


def check_transforms(cli: "MNISTCLI") -> bool:
    """Refuse other transforms than the checkpoint's, and those that do not transform an image.

    Returns:
        Whether ``transform``, which changes the images of evaluations, too, draws random numbers.
    """
    data = cli.datamodule
    data.check_transforms(cli.start.checkpoint or {}, TRANSFORMS if cli.command == "fit" else ["transform"])
    if data.download or not is_launched():
        data.prepare_data()  # a user's own may not run in several processes at once: the Trainer calls it, too
    if cli.command == "fit" or data.transform is not None:
        data.setup(cli.command)
    stage = {"fit": "train", "validate": "val"}.get(cli.command, "test")
    dataset = copy.copy(getattr(data, f"{stage}_dataset"))
    if not isinstance(dataset, MNISTDataset):
        return False  # a class of the user's own has other data
    transforms = {"transform": dataset.transform, "train_transform": dataset.train_transform}
    dataset.transform = dataset.train_transform = None
    is_random = False
    for name, transform in transforms.items():
        if transform is not None:
            # Transform an image by a copy, which draws no random numbers that the training would draw.
            with in_one_line(f"--data.{name}: "):
                setattr(dataset, name, copy.deepcopy(transform))
                images = [dataset[[0]][0] for _ in range(8 if name == "transform" else 1)]
                if type(cli.model) is MNISTClassifier:
                    cli.model(images[0])  # refuses another shape than the tutorial's
            is_random |= not all(torch.equal(image, images[0]) for image in images)
    return is_random


def check_unused(trainer: Namespace, data: MNISTDataModule) -> None:
    """Refuse options that ``config.yaml`` would record and that would change nothing."""
    useless = {
        "limit_predict_batches": "fit predicts nothing: give it to 'predict'",
        "model_registry": "checkpoints are local files",
        "use_distributed_sampler": "the data shares its images among the processes itself",
    }
    if type(data).train_dataloader is not MNISTDataModule.train_dataloader:
        del useless["use_distributed_sampler"]
    if not data.num_val and type(data).val_dataloader is MNISTDataModule.val_dataloader:
        names = ("limit_val_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps")
        useless |= dict.fromkeys(names, "no images are held out: give --data.val_size 10000, too")
    if trainer.gradient_clip_val is None:
        useless["gradient_clip_algorithm"] = "nothing is clipped: give --trainer.gradient_clip_val, too"
    for name, why in useless.items():
        if trainer[name] not in (None, signature(Trainer).parameters[name].default):
            raise InputError(f"trainer.{name} {trainer[name]} would change nothing, as {why}")


def check_shapes(model: LightningModule, data: MNISTDataModule) -> None:
    """Refuse images or classes that the network is not made for. A subclass may not pass their parameters on."""
    if not isinstance(model, MNISTClassifier) or type(model).forward is not MNISTClassifier.forward:
        return  # it may take other images
    shapes = [] if data.transform is not None else [("image_shape", model.image_shape, data.image_shape)]
    for name, here, there in [*shapes, ("num_classes", model.num_classes, data.num_classes)]:
        if here != (tuple(there) if isinstance(there, list) else there):
            right = f"have its __init__ take {name}, and pass it on to MNISTClassifier"
            if name in signature(type(model)).parameters:
                right = f"have the __init__ of {type(data).__name__} set it, before any image is read"
            raise InputError(f"{type(model).__name__} has {name} {here}, and {data.name} has {there}: {right}")


def check_limits(trainer: Trainer, data: MNISTDataModule) -> None:
    """Refuse limits that leave no batch. Lightning does so only after a run has its folder, or is trained."""
    images = {"train": data.num_train, "val": data.num_val, "test": data.num_test}
    batches = {stage: math.ceil(number / data.batch_size) for stage, number in images.items()}
    for stage, number in batches.items():
        limit = getattr(trainer, f"limit_{stage}_batches")
        if isinstance(limit, float) and limit > 0 and number and int(number * limit) == 0:
            raise InputError(f"trainer.limit_{stage}_batches {limit} of {number} batches is less than one batch")
        batches[stage] = int(number * limit) if isinstance(limit, float) else min(number, limit)
    if not batches["train"]:
        raise InputError("trainer.limit_train_batches 0 leaves nothing to train on: give at least 1")
    interval, most = getattr(trainer, "val_check_interval", None), batches["train"]
    if isinstance(interval, int) and interval > most:
        raise InputError(f"trainer.val_check_interval must be at most {most}, an epoch's batches, got {interval}")


def check_callbacks(trainer: Trainer, model: LightningModule, data: MNISTDataModule) -> None:
    """Refuse callbacks that watch a figure which is never logged, or that change what ``config.yaml`` says."""
    stages = ["train"] + ["val"] * bool(data.num_val and trainer.limit_val_batches)
    logged = [f"{stage}_{what}" for stage in stages for what in ("loss", "acc")]
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    modules = {type(part).__module__.partition(".")[0] for part in (model, *callbacks)}
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        # A class of the user's own may log other figures.
        if modules == {"lightning", "mnist_lightning"} and monitor not in (None, "epoch", "step", *logged):
            raise InputError(
                f"{name} cannot monitor {monitor!r}, which this run does not log: choose one of "
                f"{', '.join(logged)}" + ", or hold images out with --data.val_size" * (len(stages) == 1)
            )
        if isinstance(callback, (BatchSizeFinder, LearningRateFinder)):
            raise InputError(f"{name} changes what config.yaml says of the run: give it a fixed value instead")


def check_optimizer_flags(model_class: type, options: Namespace, args: Sequence[str]) -> None:
    """Refuse the network's own optimizer options beside another optimizer, which would ignore them."""
    others = {"learning_rate": "--optimizer.lr", "weight_decay": "--optimizer.weight_decay"}
    for name, other in others.items() if options.get("optimizer") else ():
        parameter = signature(model_class).parameters.get(name)
        given, flag = options.get(f"model.{name}"), f"--model.{name}"
        typed = any(arg.partition("=")[0] == flag for arg in args)
        if parameter is not None and given is not None and (typed or given != parameter.default):
            raise InputError(
                f"{flag} {given} is for the network's own optimizer, and --optimizer names another: use {other}"
            )


def try_optimizer(optimizer_init: Any, scheduler_init: Any) -> None:
    """Take one step with the optimizer and the scheduler of the flags, on other weights: some refuse only then."""
    weights = torch.nn.Parameter(torch.zeros(2, 2))
    weights.grad = torch.zeros(2, 2)
    optimizer: Any = torch.optim.RMSprop([weights])
    if optimizer_init:
        with in_one_line(f"--optimizer {_in_words(optimizer_init)}: "):
            optimizer = instantiate_class([weights], optimizer_init)
            optimizer.step(lambda: torch.zeros(()))
    if scheduler_init:
        with in_one_line(f"--lr_scheduler {_in_words(scheduler_init)}: "):
            scheduler: Any = instantiate_class(optimizer, scheduler_init)
            optimizer.step(lambda: torch.zeros(()))
            scheduler.step(*[0.0] * isinstance(scheduler, ReduceLROnPlateau))


def _in_words(init: Any) -> str:
    """The name of a class and its arguments that are not ``None``, as text."""
    arguments = {name: value for name, value in (init.get("init_args") or {}).items() if value is not None}
    return " ".join([init["class_path"], *(f"{name}={value!r}" for name, value in arguments.items())])
