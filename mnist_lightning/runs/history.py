"""``metrics.csv``: what was logged."""

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
    """Keeps ``metrics.csv``, one row per epoch, and goes on with the rows of a checkpoint.

    Lightning's CSVLogger writes two rows per epoch, and deletes those of a run that is resumed.
    """

    def __init__(self, checkpoint: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.folder: Path | None = None  # of the file, once the run has one
        self.epoch = 0  # of what callbacks of Lightning log without one
        self.rows: list[dict[str, float]] = [*(checkpoint or {}).get("metrics_csv", [])]  # one for each epoch and step

    @property
    def name(self) -> str:
        return RUNS

    @property
    def version(self) -> str | None:
        return self.folder.name if self.folder else None

    @property
    def save_dir(self) -> str | None:
        return str(self.folder) if self.folder else None

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass  # RunFolder writes `hparams.yaml`

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        add_row(self.rows, {"epoch": self.epoch, **metrics}, step or 0)

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


def add_row(rows: list[dict[str, float]], metrics: Mapping[str, Any], step: int) -> None:
    """Add metrics to the last row if it is of the same step and has none of them, or else as a new row."""
    row = {name: float(value) for name, value in metrics.items() if name not in ("epoch", "step")}
    place = {"epoch": int(metrics["epoch"]), "step": int(step)}
    if rows and place.items() <= rows[-1].items() and not row.keys() & rows[-1].keys():
        rows[-1].update(row)
    else:
        rows.append({**place, **row})
