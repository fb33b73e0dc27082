"""What a command adds to the Trainer of the flags: callbacks, loggers and plugins of this package."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.plugins import CheckpointIO

from mnist_lightning.cli import speed
from mnist_lightning.cli.checks import StartChecks
from mnist_lightning.cli.messages import Introduction
from mnist_lightning.results.predictions import PredictionsCSV
from mnist_lightning.results.report_callback import ReportCallback
from mnist_lightning.runs import Run
from mnist_lightning.runs.checkpoints import EpochCheckpoint, SafeCheckpointIO
from mnist_lightning.runs.finite import RefuseNotFinite
from mnist_lightning.runs.folder import RunFolder
from mnist_lightning.runs.history import MetricsCSV
from mnist_lightning.runs.progress import EpochProgress
from mnist_lightning.runs.resume import EpochSeed, SameOptimizers
from mnist_lightning.runs.stopping import StayStopped


def trainer_options(
    command: str, config: Namespace, run: Run | None, seed: int, save_config: Callable[[Path], None], why_threads: str
) -> dict[str, Any]:
    """The options of a command's Trainer that differ from its flags, which are ``config``."""
    checkpoint = None if run is None else run.checkpoint
    callbacks, plugins = _as_list(config.callbacks), _as_list(config.plugins)
    loggers = [logger for logger in _as_list(config.logger) if not isinstance(logger, bool)]
    options: dict[str, Any] = {"callbacks": callbacks, "plugins": plugins}
    if config.enable_progress_bar is not False and not _has_kind(callbacks, ProgressBar):
        callbacks.append(EpochProgress())
    if command == "fit":
        if not config.fast_dev_run:
            log = None if config.logger is False else MetricsCSV(checkpoint)
            loggers += _as_list(log)
            callbacks.insert(0, RunFolder(Path(config.default_root_dir or "."), save_config, log, run))
            if config.enable_checkpointing is not False:
                callbacks.append(EpochCheckpoint())  # beside checkpoints of the user's own: only whole epochs resume
        callbacks += [EpochSeed(seed), SameOptimizers(), Introduction(run, why_threads), StayStopped()]
    else:
        options["enable_checkpointing"] = False
        if command == "test":
            callbacks.append(ReportCallback())
        elif command == "predict" and run is not None:
            callbacks.append(PredictionsCSV(run.folder / "predictions.csv"))
    callbacks.insert(0, StartChecks(command, checkpoint))
    callbacks.append(RefuseNotFinite())
    if not _has_kind(plugins, CheckpointIO):
        plugins.append(SafeCheckpointIO())
    if SLURMEnvironment.detect() and "SLURM_STEP_ID" not in os.environ and not _has_kind(plugins, ClusterEnvironment):
        plugins.append(LightningEnvironment())  # in a shell inside an allocation, the variables are about the job
    if config.profiler is None:
        options["profiler"] = speed.no_profiler()
    return {**options, "logger": loggers or False}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _has_kind(items: list[Any], kind: type) -> bool:
    return any(isinstance(item, kind) for item in items)
