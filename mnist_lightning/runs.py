"""The folder of a run: how it is claimed, found again, and what is written into it."""

import csv
import io
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.checkpoint import write_atomically
from mnist_lightning.errors import InputError

RUNS = "lightning_logs"


def claim_run(root: Path, fill: Callable[[Path], None]) -> Path:
    """Make the next ``lightning_logs/version_N`` below ``root``, in one step that only one process can win.

    Args:
        root: The folder that holds ``lightning_logs``.
        fill: Writes into the folder what must be there from its first moment.

    Raises:
        InputError: If the folder cannot be made.
    """
    runs = root / RUNS
    claim = runs / f".claim-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        claim.mkdir(parents=True)
        fill(claim)
        number = max(_versions(root), default=-1) + 1
        while True:
            try:
                # A folder that is not empty cannot be replaced: of two processes, one tries the next number.
                return claim.rename(runs / f"version_{number}")
            except OSError:
                if not (runs / f"version_{number}").exists():
                    raise
                number += 1
    except OSError as error:
        raise InputError(
            f"cannot make a run's folder in {str(runs)!r} ({error.strerror}): choose another place with "
            "--trainer.default_root_dir"
        ) from error
    finally:
        shutil.rmtree(claim, ignore_errors=True)


def newest_run(root: Path, with_checkpoint: bool) -> Path:
    """The fit run below ``root`` that was begun last.

    Args:
        root: The folder that holds ``lightning_logs``.
        with_checkpoint: Pass over runs that have saved none.

    Raises:
        InputError: If there is none.
    """
    for _, folder in sorted(_versions(root).items(), reverse=True):
        if (folder / "config.yaml").is_file() and (not with_checkpoint or checkpoint_of(folder)):
            return folder
    raise InputError(
        f"no fit run{' with a checkpoint' * with_checkpoint} in {str(root / RUNS)!r}: train one first with "
        "'python -m mnist_lightning fit', or name a checkpoint with --ckpt_path"
    )


def is_own_run(folder: Path, root: Path) -> bool:
    """Whether a folder is one of the runs below ``root``."""
    return folder.resolve().parent == (root / RUNS).resolve()


def checkpoint_of(folder: Path) -> Path | None:
    """The checkpoint that a run saved last, if it has saved any."""
    files = [*(folder / "checkpoints").glob("*.ckpt")]
    return max(files, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)


def _versions(root: Path) -> dict[int, Path]:
    folders = (root / RUNS).glob("version_*")
    return {int(number): folder for folder in folders if (number := folder.name.removeprefix("version_")).isdecimal()}


class MetricsCSV(Logger):
    """``metrics.csv``: one row per epoch, written whole and at once, so that a kill leaves no half row.

    Lightning's CSVLogger gives training and validation a row each, and deletes the file when it
    opens an existing folder: a resumed run would lose its history.

    Attributes:
        folder: Where the file goes; set once the run has its folder.
        rows: One dict per epoch and step, of names to floats.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return RUNS

    @property
    def version(self) -> str | None:
        return self.folder.name if self.folder else None

    @property
    def save_dir(self) -> str | None:
        return str(self.folder) if self.folder else None

    log_dir = save_dir

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: ``hparams.yaml`` is written whatever the logger."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {"epoch": metrics.get("epoch", 0), "step": step or 0, **metrics}
        row = {name: value if name in ("epoch", "step") else float(value) for name, value in row.items()}
        row["epoch"], row["step"] = int(row["epoch"]), int(row["step"])
        if self.rows and (self.rows[-1]["epoch"], self.rows[-1]["step"]) == (row["epoch"], row["step"]):
            self.rows[-1].update(row)
        else:
            self.rows.append(row)

    @rank_zero_only
    def save(self) -> None:
        if self.folder is None or not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", text.getvalue().encode())


class RunFolder(Callback):
    """Gives a fit its folder, agreed on by all processes, and keeps its history through kills.

    Args:
        root: The folder that holds ``lightning_logs``.
        save_config: Writes the run's configuration to a path.
        logger: The log that goes into the folder, unless the user wants none.
        folder: The folder of the run that is resumed, if one is.
    """

    def __init__(
        self, root: Path, save_config: Callable[[Path], None], logger: MetricsCSV | None, folder: Path | None = None
    ) -> None:
        self.root = root
        self.save_config = save_config
        self.logger = logger
        self.folder = folder
        self._ready = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self._ready:
            return

        def fill(folder: Path) -> None:
            self.save_config(folder / "config.yaml")
            data = getattr(getattr(trainer, "datamodule", None), "hparams", {})
            save_hparams_to_yaml(str(folder / "hparams.yaml"), {**data, **pl_module.hparams})

        # Only here do the processes of a distributed run know each other.
        if trainer.is_global_zero:
            if self.folder is None:
                self.folder = claim_run(self.root, fill)
            else:
                fill(self.folder)
        self.folder = trainer.strategy.broadcast(self.folder)
        assert self.folder is not None
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.folder.absolute() / "checkpoints")
        if self.logger is not None:
            self.logger.folder = self.folder
        self._ready = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the history into the checkpoint, with the epoch's own row, which is logged only after it."""
        if self.logger is None:
            return
        # What Lightning is about to log, from where it will take it; `callback_metrics` would hold
        # stale figures of validations that do not happen every epoch.
        results = trainer._results
        current = results.metrics(on_step=False)["log"] if results is not None else {}
        if current:
            self.logger.log_metrics({**current, "epoch": trainer.current_epoch}, trainer.global_step - 1)
        checkpoint["metrics_csv"] = self.logger.rows

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.logger is not None and trainer.state.fn == "fit":
            self.logger.rows = [dict(row) for row in checkpoint.get("metrics_csv", [])]
            self.logger.save()
