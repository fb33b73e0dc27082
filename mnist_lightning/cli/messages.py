"""What the commands say: about the run before it begins, about its results, and about how to go on."""

import os
import shlex
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mnist_lightning.cli.processes import is_ctrl_c
from mnist_lightning.cli.start import Start
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.model import two_layers
from mnist_lightning.runs.checkpoints import checkpoint_of, has_checkpoint
from mnist_lightning.runs.folder import newest_run
from mnist_lightning.runs.progress import in_words, say, unbroken


class Introduction(Callback):
    """Says what is trained, on which data, and where, once Lightning has accepted the checkpoint."""

    def __init__(self, start: Start, why_threads: str) -> None:
        self.start = start
        self.why_threads = why_threads  # and not one for each core

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: MNISTDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by fit
        val = f", {len(data.val_dataset):,} held out" if data.val_dataset is not None else ""
        place = "in the package" if data.data_dir is None else f"in {unbroken(data.data_dir)}"
        place += "" if data.transform is None else f", transformed by {_name(data.transform)}"
        transformed = "" if data.train_transform is None else f" (transformed by {_name(data.train_transform)})"
        assert data.train_dataset is not None
        train = f"{len(data.train_dataset):,} training images{transformed}"
        proven = "" if data.proven else "; not proven: no checksum of these files is known"
        say("Data", f"{data.name} {place}: {train}{val}, {data.num_test:,} test images{proven}")
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        number = torch.get_num_threads()
        alone = trainer.world_size == 1  # otherwise Lightning divides the cores among the processes
        fewer = f" of {os.cpu_count()} ({self.why_threads})" if alone and number < (os.cpu_count() or 1) else ""
        threads = f", {number} thread{'s' * (number > 1)}{fewer}" if device.type == "cpu" else ""
        several = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
        say("Device", f"{name}{threads}{several}, precision {trainer.precision}")
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        layers, dropout = two_layers(pl_module), pl_module.hparams.get("dropout")
        dropped = f", dropout {dropout:g}" if dropout else ""
        network = type(pl_module).__name__
        if layers:
            hidden, output = layers
            network = f"{hidden.in_features} -> {hidden.out_features} ReLU{dropped} -> {output.out_features}"
        say("Network", f"{network}, {parameters:,} parameters")
        if self.start.checkpoint is not None:
            say("From", unbroken(self.start.path))
            trained = self.start.checkpoint.get("num_threads", number)
            if trained != number and device.type == "cpu":
                say("Threads", f"{number}; it was trained with {trained} before: the last bits will differ")
            done = self.start.checkpoint["epoch"] + 1
            if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= done:
                say("Finished", f"all {done} epochs are trained; train on with --trainer.max_epochs {2 * done}")


def _name(transform: Any) -> str:
    return str(getattr(transform, "__name__", type(transform).__name__))


def say_random(is_random: bool) -> None:
    """Say it if the figures of an evaluation are one draw of many."""
    if is_random:
        say("Random", "transform draws anew each time, for test images too: each evaluation gives other figures")


def say_result(command: str, metrics: dict[str, Any]) -> None:
    """Say the figures of a test or a validation: the loss and the accuracy, or what another network logs."""
    say(command.capitalize(), in_words(metrics) or "no figures: there were no batches, or nothing was logged")


def say_gap(train_acc: Any, test_acc: Any) -> None:
    """Say how much better the network is on the training images, if both accuracies are known."""
    if train_acc is not None and test_acc is not None:
        gap = 100 * (float(train_acc) - float(test_acc))
        say("Gap", f"{gap:+.2f} points from test accuracy up to training accuracy")


def say_next(
    commands: list[str], program: str | None, root: str | None, folder: Path, max_epochs: int, stopped_early: bool
) -> None:
    """Say what is in a run's folder and, if there is a program to call, how to go on: by a command, or by training."""
    names = (unbroken(path.name + "/" * path.is_dir()) for path in sorted(folder.glob("[!.]*")))
    say("Run", f"{unbroken(folder)}: {', '.join(names)}")
    if program and has_checkpoint(folder):
        more = [*["--trainer.callbacks null"] * stopped_early, f"--trainer.max_epochs {max_epochs}"]
        lines = [command_for(command, program, root, folder) for command in commands]
        for number, line in enumerate([*lines, command_for("fit", program, root, folder, *more)]):
            say("" if number else "Next", line)


def say_stopped(error: BaseException, program: str | None, root: str | None, folder: Path | None) -> None:
    """Say what has stopped a run and, if there is a program to call, how to go on with it."""
    exit_call = f"sys.exit({getattr(error, 'code', None)!r})"
    by = "SIGTERM" if isinstance(error, SIGTERMException) else "Ctrl-C" if is_ctrl_c(error) else exit_call
    kept = checkpoint_of(folder, whole=True) if folder else None
    say("Stopped", f"by {by}" + (f"; {unbroken(kept)} holds all epochs that were whole" if kept else ""))
    if folder and program:
        say("Resume", command_for("fit", program, root, folder))


def command_for(command: str, program: str, root: str | None, folder: Path, *more: str) -> str:
    """A command about the run in a folder, to be pasted: in one piece, and with the root that was given."""
    newest = newest_run(Path(root or "."), with_checkpoint=command != "fit").samefile(folder)
    checkpoint = None if newest else checkpoint_of(folder)
    words = [program, command]
    if checkpoint is not None:
        words.append(f"--ckpt_path {shlex.quote(str(checkpoint))}")
    elif command == "fit":
        words.append("--ckpt_path last")
    if root is not None:
        words.append(f"--trainer.default_root_dir {shlex.quote(str(root))}")
    return unbroken(" ".join([*words, *more]))
