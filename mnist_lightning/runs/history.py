"""``metrics.csv``: the logged figures, one row per epoch."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.errors import InputError
from mnist_lightning.files import is_figure_name, write_atomically

RUNS = "lightning_logs"


class MetricsCSV(Logger):
    """Keeps ``metrics.csv``, one row per epoch. The file is replaced as a whole, so that a kill leaves no half row.

    Lightning's CSVLogger writes one row for training and another one for validation. It deletes the file when it
    opens an existing folder, so that a resumed run would lose its history. This one goes on with a checkpoint's rows.
    """

    def __init__(self, checkpoint: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.folder: Path | None = None  # of the file, once the run has one
        self.epoch = 0  # of figures that are logged without one, as some callbacks of Lightning do
        # One dict of names to floats for each epoch and step.
        self.rows: list[dict[str, float]] = [dict(row) for row in (checkpoint or {}).get("metrics_csv", [])]

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
        """Do nothing: RunFolder writes ``hparams.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if odd := [name for name in metrics if not is_figure_name(name)]:
            raise InputError(f"cannot log {odd[0]!r}: the name of a figure must begin with a letter or _")
        self.add(self.rows, {"epoch": self.epoch, **metrics}, step or 0)

    @staticmethod
    def add(rows: list[dict[str, float]], metrics: Mapping[str, Any], step: int) -> None:
        """Add figures to the last row if it is of the same step and has none of them, or else as a new row."""
        row = {name: float(value) for name, value in metrics.items() if name not in ("epoch", "step")}
        place = {"epoch": int(metrics["epoch"]), "step": int(step)}
        if rows and place.items() <= rows[-1].items() and not row.keys() & rows[-1].keys():
            rows[-1].update(row)
        else:
            rows.append({**place, **row})

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
