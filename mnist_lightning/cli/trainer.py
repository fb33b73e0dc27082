"""What a command adds to the Trainer of the flags: callbacks, logger and plugins of this package."""

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
from mnist_lightning.cli.messages import Introduction
from mnist_lightning.cli.processes import started_by_srun
from mnist_lightning.cli.start import Start
from mnist_lightning.results.predictions import PredictionsCSV
from mnist_lightning.results.report_callback import ReportCallback
from mnist_lightning.runs.checkpoints import EpochCheckpoint, SafeCheckpointIO
from mnist_lightning.runs.folder import RunFolder
from mnist_lightning.runs.history import MetricsCSV
from mnist_lightning.runs.progress import EpochProgress
from mnist_lightning.runs.resume import SameOptimizers
from mnist_lightning.runs.seeds import EpochSeed
from mnist_lightning.runs.stopping import StayStopped


def trainer_options(
    command: str, config: Namespace, start: Start, seed: int, save_config: Callable[[Path], None], why_threads: str
) -> dict[str, Any]:
    """The options of a command's Trainer that differ from its flags, which are ``config``."""
    callbacks, plugins = _as_list(config.callbacks), _as_list(config.plugins)
    loggers = [logger for logger in _as_list(config.logger) if not isinstance(logger, bool)]
    options: dict[str, Any] = {}
    if config.enable_progress_bar is not False and not _has_kind(callbacks, ProgressBar):
        callbacks.append(EpochProgress())
    if command == "fit":
        if not config.fast_dev_run:
            log = MetricsCSV(start.checkpoint) if config.logger is not False else None
            loggers += [log] if log else []
            began = start.checkpoint if start.folder is None else None
            root = Path(config.default_root_dir or ".")
            callbacks.insert(0, RunFolder(root, save_config, log, start.folder, began))
            if config.enable_checkpointing is not False:
                callbacks.append(EpochCheckpoint())  # beside checkpoints of the user's own: only whole epochs resume
        callbacks += [EpochSeed(seed), SameOptimizers(), Introduction(start, why_threads), StayStopped()]
    else:
        options["enable_checkpointing"] = False
        assert start.folder is not None
        if command == "test":
            callbacks.append(ReportCallback())
        if command == "predict":
            callbacks.append(PredictionsCSV(start.folder / "predictions.csv"))
    if not _has_kind(plugins, CheckpointIO):
        plugins.append(SafeCheckpointIO(start.path and str(start.path), start.checkpoint))
    if SLURMEnvironment.detect() and not started_by_srun() and not _has_kind(plugins, ClusterEnvironment):
        plugins.append(LightningEnvironment())  # in a shell inside an allocation, the variables are about the job
    if config.profiler is None:
        options["profiler"] = speed.no_profiler()
    return {**options, "callbacks": callbacks, "logger": loggers or False, "plugins": plugins}


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _has_kind(items: list[Any], kind: type) -> bool:
    return any(isinstance(item, kind) for item in items)
