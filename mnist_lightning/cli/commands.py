"""The commands, a small function for each, and how they end."""

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from mnist_lightning.cli import checks, messages, pictures, speed
from mnist_lightning.cli.bad_input import one_line
from mnist_lightning.cli.interrupt import raise_on_ctrl_c
from mnist_lightning.cli.parser import MNISTCLI
from mnist_lightning.cli.processes import OBSERVER, RollCall, check_launcher, is_connected, is_ctrl_c, lost_another
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import write_atomically
from mnist_lightning.model import MNISTClassifier, two_layers
from mnist_lightning.results import figures
from mnist_lightning.results.report import Report
from mnist_lightning.results.report_callback import ReportCallback
from mnist_lightning.runs.folder import RunFolder
from mnist_lightning.runs.progress import of_a_batch, say, unbroken
from mnist_lightning.runs.stopping import StopOnSIGTERM, stopped_early


def run_command(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Run one of LightningCLI's commands.

    Raises:
        InputError: If the input cannot be used.
        SystemExit: With code 143 after SIGTERM, 130 after Ctrl-C, 1 where another process is gone.
    """
    roll_call, stop = RollCall(), StopOnSIGTERM()
    path = None  # of the checkpoint
    try:
        with stop, _restored() as afterwards, speed.quick_attributes(model_class):
            connected = is_connected()
            cli = MNISTCLI(list(args), model_class, data_class, afterwards)
            stop.trainer, path = cli.trainer, cli.ckpt_path
            cli.trainer.callbacks.append(stop)  # type: ignore[attr-defined]  # set by a connector
            raise_on_ctrl_c()
            check_launcher(cli.trainer.world_size)
            _FUNCTIONS[cli.command](cli, roll_call)
            if is_connected() and not connected:
                # Lightning leaves Gloo's threads to the end of the process, which they may turn into an abort.
                distributed.destroy_process_group()
    except SystemExit as stopped:
        # Lightning exits with 0 after SIGTERM and with 1 after Ctrl-C. A shell expects 143 and 130.
        if isinstance(stopped, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from None
        raise SystemExit(128 + signal.SIGINT if is_ctrl_c(stopped) else stopped.code) from None
    except Exception as error:  # whatever it is, the other processes must not wait for this one
        roll_call.failed(error)
        if lost_another(error):
            print(
                "mnist_lightning: error: another process of this run is gone, and this one ends with it; "
                "'fit --ckpt_path last' goes on from the last epoch that was whole",
                file=sys.stderr,
            )
            logging.getLogger(OBSERVER).setLevel(logging.WARNING)  # it would say the same
            raise SystemExit(1) from None
        if stop.trainer is not None and stop.trainer.strategy.launcher is not None:
            stop.trainer.strategy.launcher.kill(signal.SIGTERM)  # this process says why the run ends
        if not isinstance(error, InputError) and (why := _fault_of_the_input(error, path)):
            raise InputError(why) from error
        raise


def fit(cli: MNISTCLI, roll_call: RollCall) -> None:
    """Train, then test the network as it stands at the end."""
    trainer = cli.trainer
    is_random = checks.check_fit(cli)
    messages.say_random(is_random and trainer.is_global_zero)
    if trainer.world_size > 1:
        roll_call.ready(cli.ckpt_path, cli.start.config)
    files: RunFolder | None = _callback(cli, RunFolder)
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
        early = [callback.monitor for callback in trainer.early_stopping_callbacks if stopped_early(callback)]
        if early and trainer.is_global_zero:
            say("Stopped", f"early after {trainer.current_epoch} epochs, by {early[0]}")
        train_acc = None if "train_acc" in of_a_batch(trainer) else trainer.callback_metrics.get("train_acc")
        trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    except BaseException as error:
        if trainer.is_global_zero and not lost_another(error):
            _leave(cli, files, error)
        raise
    finally:
        if files is not None:
            files.release()
    if trainer.is_global_zero:
        # Figures first, pictures last: the disk may become full.
        messages.say_result("test", trainer.callback_metrics)
        messages.say_gap(train_acc, trainer.callback_metrics.get("test_acc"))
        if files is not None and files.folder is not None:
            _save_result("test", trainer.callback_metrics, files.folder)
            _draw_curves(files, cli.datamodule.name)
            twice = 2 * max(trainer.max_epochs or 0, trainer.current_epoch, 1)
            command = "predict" if is_overridden("predict_step", cli.model) else "test"
            commands = [command, *["draw"] * _is_drawn_for(cli)]
            messages.say_next(commands, cli.program, cli.root, files.folder, twice, bool(early))


def _leave(cli: MNISTCLI, files: RunFolder | None, error: BaseException) -> None:
    """Say how to go on with a run that ends before its time, and draw its curves as far as they go."""
    metrics = cli.trainer.callback_metrics
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        messages.say_stopped(error, cli.program, cli.root, files.folder if files is not None else None)
    elif "test_loss" in metrics and metrics["test_loss"].isfinite():
        messages.say_result("test", metrics)  # it was computed, but could not be written
    with contextlib.suppress(InputError):  # the disk may be full: the error says so
        _draw_curves(files, cli.datamodule.name)


def validate(cli: MNISTCLI, roll_call: RollCall) -> None:
    """Evaluate a run on the images it held out."""
    if not cli.datamodule.val_size:
        raise InputError(
            f"{str(cli.start.folder)!r} was trained without a validation split (val_size 0): use 'test', or train "
            "with --data.val_size 10000"
        )
    folder = _begin(cli, roll_call)
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, verbose=False)
    if cli.trainer.is_global_zero:
        messages.say_result("validate", cli.trainer.callback_metrics)
        _save_result("validate", cli.trainer.callback_metrics, folder)
        say("Written", f"validate.json in {unbroken(folder)}")


def test(cli: MNISTCLI, roll_call: RollCall) -> None:
    """Evaluate a run on the test images, and report on its mistakes."""
    folder = _begin(cli, roll_call)
    cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, verbose=False)
    if cli.trainer.is_global_zero:
        report: Report | None = _callback(cli, ReportCallback).report
        messages.say_result("test", cli.trainer.callback_metrics)
        if report is not None:
            print(report.table(), flush=True)
        _save_result("test", cli.trainer.callback_metrics, folder)
        if report is not None:
            report.write(folder)
        say("Written", f"test.json{', report.json and its pictures' * (report is not None)} in {unbroken(folder)}")


def predict(cli: MNISTCLI, roll_call: RollCall) -> None:
    """Write a run's predictions for the test images, or read pictures."""
    if not is_overridden("predict_step", cli.model):
        raise InputError(f"{type(cli.model).__name__} has no predict_step: add one that returns probabilities (B, 10)")
    if cli.pictures:
        cli.datamodule.check_transforms(cli.start.checkpoint or {}, ["transform"])
        assert cli.start.folder is not None
        pictures.predict_pictures(cli, cli.start.folder)
        return
    folder = _begin(cli, roll_call)
    cli.trainer.predict(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
    if cli.trainer.is_global_zero:
        say("Written", unbroken(folder / "predictions.csv"))


_FUNCTIONS = {"fit": fit, "validate": validate, "test": test, "predict": predict}


def _begin(cli: MNISTCLI, roll_call: RollCall) -> Path:
    """Begin an evaluation: see that all processes can, and return the folder for its results."""
    assert cli.start.folder is not None
    is_random = checks.check_transforms(cli)
    if cli.trainer.world_size > 1:
        roll_call.ready(cli.ckpt_path)
    if cli.trainer.is_global_zero:
        say("From", unbroken(cli.start.path))
        messages.say_random(is_random)
    return cli.start.folder


def _is_drawn_for(cli: MNISTCLI) -> bool:
    """Whether ``draw`` will make a page for this network. There are others for which it does."""
    data = cli.datamodule
    own = type(cli.model).forward is MNISTClassifier.forward and data.transform is None
    return own and data.image_shape == (1, 28, 28) and two_layers(cli.model) is not None


def _save_result(command: str, metrics: dict[str, Any], folder: Path) -> None:
    found = {name: float(value) for name, value in metrics.items()}
    write_atomically(folder / f"{command}.json", (json.dumps(found, indent=2) + "\n").encode())


def _draw_curves(files: RunFolder | None, name: str) -> None:
    log = files.logger if files is not None else None
    if log is not None and log.folder is not None and log.rows:  # it has its folder once the run has begun
        figures.save(figures.curves_figure(log.rows, name), log.folder / "curves.png")


def _callback(cli: MNISTCLI, kind: type) -> Any:
    callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _fault_of_the_input(error: Exception, path: str | None) -> str | None:
    """What is wrong with the input, if Lightning was restoring the checkpoint, or refuses what a flag names."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_code.co_name for frame in frames if frame.f_code.co_filename == checkpoint_connector.__file__]
    if any(name.lstrip("_").startswith(("restore", "resume")) for name in names):
        what = f"{type(error).__name__}: {shown(str(error), 200)}"
        return f"{path!r} cannot be restored ({what}): give a checkpoint that fit has written"
    by_callback = str(frames[-1].f_globals.get("__name__")).startswith("lightning.pytorch.callbacks.")
    return one_line(error) if by_callback or isinstance(error, MisconfigurationException) else None


_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "OMP_NUM_THREADS",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)


@contextlib.contextmanager
def _restored() -> Iterator[contextlib.ExitStack]:
    """Put back, after a command, what it set for the whole process. What the stack holds is put back, too."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    deterministic, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    with contextlib.ExitStack() as stack:
        try:
            yield stack
        finally:
            torch.set_float32_matmul_precision(precision)
            if torch.get_deterministic_debug_mode() != deterministic:  # otherwise this imports much for nothing
                torch.use_deterministic_algorithms(deterministic > 0, warn_only=deterministic == 1)
            torch.backends.cudnn.benchmark = benchmark
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            for name, value in variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
