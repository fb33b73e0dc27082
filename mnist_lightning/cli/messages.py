"""What the commands say: about the run before it begins, about its results, and about how to go on."""

import os
import shlex
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mnist_lightning.cli.processes import is_ctrl_c
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.model import two_layers
from mnist_lightning.runs import Run
from mnist_lightning.runs.checkpoints import checkpoint_of, has_checkpoint
from mnist_lightning.runs.progress import in_words, say, unbroken
from mnist_lightning.runs.run import newest_run


class Introduction(Callback):
    """Says what is trained, on which data, and where, once Lightning has accepted the checkpoint."""

    def __init__(self, run: Run | None, why_threads: str) -> None:
        self.run = run  # that the training starts from, if there is one
        self.why_threads = why_threads

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        say("Data", _data(trainer.datamodule))  # type: ignore[attr-defined]  # set by fit
        say("Device", self._device(trainer))
        say("Network", _network(pl_module))
        checkpoint = None if self.run is None else self.run.checkpoint
        if self.run is None or checkpoint is None:
            return
        say("From", unbroken(self.run.path))
        threads = torch.get_num_threads()
        trained = checkpoint.get("num_threads", threads)
        if trained != threads and trainer.strategy.root_device.type == "cpu":
            say("Threads", f"{threads}; it was trained with {trained} before: the last bits will differ")
        done = checkpoint["epoch"] + 1
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= done:
            say("Finished", f"all {done} epochs are trained; train on with --trainer.max_epochs {2 * done}")

    def _device(self, trainer: Trainer) -> str:
        device, threads, cores = trainer.strategy.root_device, torch.get_num_threads(), os.cpu_count() or 1
        words = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        if device.type == "cpu":
            words += f", {threads} thread"
            if threads > 1:
                words += "s"
            if trainer.world_size == 1 and threads < cores:  # otherwise Lightning divides the cores
                words += f" of {cores} ({self.why_threads})"
        if trainer.world_size > 1:
            words += f", {trainer.world_size} processes"
        return f"{words}, precision {trainer.precision}"


def _data(data: MNISTDataModule) -> str:
    place = "in the package" if data.data_dir is None else f"in {unbroken(data.data_dir)}"
    words = f"{data.name} {place}"
    if data.transform is not None:
        words += f", transformed by {_name(data.transform)}"
    words += f": {len(data.train_dataset):,} training images"
    if data.train_transform is not None:
        words += f" (transformed by {_name(data.train_transform)})"
    if data.val_dataset is not None:
        words += f", {len(data.val_dataset):,} held out"
    return f"{words}, {len(data.test_dataset):,} test images"


def _name(transform: Any) -> str:
    return str(getattr(transform, "__name__", type(transform).__name__))


def _network(model: LightningModule) -> str:
    words, layers, dropout = type(model).__name__, two_layers(model), model.hparams.get("dropout")
    if layers is not None:
        hidden, output = layers
        dropped = f", dropout {dropout:g}" if dropout else ""
        words = f"{hidden.in_features} -> {hidden.out_features} ReLU{dropped} -> {output.out_features}"
    return f"{words}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters"


def say_result(command: str, metrics: dict[str, Any]) -> None:
    """Say the loss and the accuracy, or what another network logs."""
    say(command.capitalize(), in_words(metrics) or "no figures: there were no batches, or nothing was logged")


def say_gap(train_acc: Any, test_acc: Any) -> None:
    """Say how much better the network is on the training images."""
    if train_acc is not None and test_acc is not None:
        gap = 100 * (float(train_acc) - float(test_acc))
        say("Gap", f"{gap:+.2f} points from test accuracy up to training accuracy")


def say_next(
    commands: list[str], program: str | None, root: str | None, folder: Path, max_epochs: int, stopped_early: bool
) -> None:
    """Say what is in a run's folder, and how to go on: by a command, or by training."""
    names = [f"{path.name}/" if path.is_dir() else path.name for path in sorted(folder.glob("[!.]*"))]
    say("Run", f"{unbroken(folder)}: {', '.join(map(unbroken, names))}")
    if program is None or not has_checkpoint(folder):
        return
    more = f"--trainer.max_epochs {max_epochs}"
    if stopped_early:
        more = f"--trainer.callbacks null {more}"
    for label, command in zip(("Next", ""), commands, strict=False):
        say(label, _command_for(command, program, root, folder))
    say("", _command_for("fit", program, root, folder, more))


def say_stopped(error: BaseException, program: str | None, root: str | None, folder: Path | None) -> None:
    """Say what has stopped a run, and how to go on with it."""
    by = f"sys.exit({getattr(error, 'code', None)!r})"
    if isinstance(error, SIGTERMException):
        by = "SIGTERM"
    elif is_ctrl_c(error):
        by = "Ctrl-C"
    kept = checkpoint_of(folder, whole=True) if folder else None
    holds = f"; {unbroken(kept)} holds all epochs that were whole" if kept else ""
    say("Stopped", f"by {by}{holds}")
    if folder and program:
        say("Resume", _command_for("fit", program, root, folder))


def _command_for(command: str, program: str, root: str | None, folder: Path, *more: str) -> str:
    """A command about the run in a folder, to be pasted: in one piece, and with the root that was given."""
    words = [program, command]
    if not newest_run(Path(root or "."), with_checkpoint=command != "fit").samefile(folder):
        words.append(f"--ckpt_path {shlex.quote(str(checkpoint_of(folder) or folder))}")
    elif command == "fit":
        words.append("--ckpt_path last")
    if root is not None:
        words.append(f"--trainer.default_root_dir {shlex.quote(str(root))}")
    return unbroken(" ".join([*words, *more]))
