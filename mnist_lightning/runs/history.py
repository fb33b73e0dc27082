"""``metrics.csv``: what was logged, one row per epoch."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.files import write_atomically

RUNS = "lightning_logs"


class MetricsCSV(Logger):
    """``metrics.csv``: one row per epoch, written whole and at once, so that a kill leaves no half row.

    Lightning's CSVLogger gives training and validation a row each, and deletes the file when it
    opens an existing folder: a resumed run would lose its history.

    Attributes:
        folder: Where the file goes; set once the run has its folder.
        epoch: That of figures which are logged without one, as Lightning's callbacks do.
        rows: One dict per epoch and step, of names to floats.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.epoch = 0
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
        self.add(self.rows, {"epoch": self.epoch, **metrics}, step or 0)

    @staticmethod
    def add(rows: list[dict[str, float]], metrics: Mapping[str, Any], step: int) -> None:
        """Add figures to rows: to the last one if it is of the same step and has none of them, else as a new one."""
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
