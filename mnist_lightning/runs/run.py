"""A run of the past: its figures, its checkpoint, its model and its data."""

import csv
import os
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule

from mnist_lightning.errors import InputError
from mnist_lightning.files import load_checkpoint
from mnist_lightning.runs.checkpoints import checkpoint_of
from mnist_lightning.runs.folder import newest_run
from mnist_lightning.runs.resume import check_class

Part = TypeVar("Part", bound=LightningModule | LightningDataModule)


class Run:
    """A run of ``fit``, read from its folder.

    Args:
        folder: Such as ``"lightning_logs/version_3"``.

    Raises:
        InputError: If there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"no run in {str(folder)!r}: give a folder that fit has written, or take Run.newest()")

    @classmethod
    def newest(cls, root: str | os.PathLike[str] = ".") -> "Run":
        """The newest run below ``root``, the folder of ``lightning_logs``, that has a checkpoint.

        Raises:
            InputError: If there is none.
        """
        return cls(newest_run(Path(root), with_checkpoint=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``: one for each epoch, with what was logged in it, and one for the test.

        Raises:
            InputError: If the file is not there, or is not as ``fit`` writes it.
        """
        try:
            rows = list(csv.DictReader((self.folder / "metrics.csv").read_text("utf-8").splitlines(), strict=True))
            return [
                {name: int(cell) if name in ("epoch", "step") else float(cell) for name, cell in row.items() if cell}
                for row in rows
            ]
        except FileNotFoundError as error:
            raise InputError(f"{self} has no metrics.csv: it logged no figures, or not yet") from error
        except (ValueError, TypeError, csv.Error) as error:  # TypeError: a row with more cells than names
            raise InputError(f"{self}: metrics.csv is not as fit writes it: {error}") from error

    @property
    def checkpoint(self) -> Path:
        """The run's checkpoint with the most training, which ``test`` evaluates."""
        path = checkpoint_of(self.folder)
        if path is None:
            raise InputError(f"{self} has no checkpoint: it saved none, or not yet")
        return path

    def load(self, part: type[Part], **kwargs: Any) -> Part:
        """Make the model or the data module of this run from its checkpoint.

        Args:
            part: Its class, such as ``MNISTClassifier`` or ``MNISTDataModule``.
            kwargs: As for ``load_from_checkpoint``: what a checkpoint cannot hold, such as a function.

        Raises:
            InputError: If the run was trained with another class of model.
        """
        if issubclass(part, LightningModule):
            check_class(load_checkpoint(self.checkpoint), part, str(self.checkpoint))
        return part.load_from_checkpoint(self.checkpoint, weights_only=True, **kwargs)  # type: ignore[return-value]  # mypy takes it for a union
