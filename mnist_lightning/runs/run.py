"""A run of the past: its metrics, its checkpoint, its model and its data."""

import csv
import os
from collections.abc import Container
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule

from mnist_lightning.errors import InputError, shown
from mnist_lightning.runs.checkpoints import checkpoint_of, has_checkpoint
from mnist_lightning.runs.history import RUNS
from mnist_lightning.safe_checkpoints import load_checkpoint, safe_hyper_parameters

Part = TypeVar("Part", bound=LightningModule | LightningDataModule)


class Run:
    """A run of ``fit``, found by :meth:`open`.

    Attributes:
        folder: Such as ``lightning_logs/version_3``. A command writes its results there.
        path: The run's checkpoint.
        checkpoint: The content of that file, which is read as data.
        config: ``config.yaml``, if the run lies in ``root/lightning_logs``. One from elsewhere could run code.
    """

    folder: Path
    path: Path
    checkpoint: dict[str, Any]
    config: Path | None

    @classmethod
    def open(
        cls, ckpt_path: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] = ".", resume: bool = False
    ) -> "Run":
        """Find a run and read its checkpoint.

        Args:
            ckpt_path: A ``.ckpt`` file, or a run's folder. ``None`` or ``"last"`` is the newest run below ``root``.
            root: The folder of ``lightning_logs``.
            resume: Whether training will go on, from the last whole epoch. Before its end, ``path`` and ``checkpoint``
                are ``None``.

        Raises:
            InputError: If there is no such run or checkpoint.
        """
        run, path = cls(), None
        if ckpt_path is None or ckpt_path == "last":
            run.folder = newest_run(Path(root), with_checkpoint=not resume)
        elif Path(ckpt_path).is_dir():
            run.folder = Path(ckpt_path)
        else:
            path = Path(ckpt_path)
            run.folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        config = run.folder / "config.yaml"
        is_own = run.folder.resolve().parent == (Path(root) / RUNS).resolve()
        run.config = config if is_own and config.is_file() else None
        path = path or checkpoint_of(run.folder, whole=resume)
        if path is not None:
            run.path, run.checkpoint = path, load_checkpoint(path)
        elif resume and run.config is not None:
            run.path = run.checkpoint = None  # type: ignore[assignment]  # as said above
        else:
            raise InputError(f"{str(run.folder)!r} has no checkpoint")
        return run

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``: one for each epoch, and one for the test."""
        text = (self.folder / "metrics.csv").read_text("utf-8")
        kinds = {"epoch": int, "step": int}
        rows = csv.DictReader(text.splitlines())
        return [{name: kinds.get(name, float)(cell) for name, cell in row.items() if cell} for row in rows]

    def hyper_parameters(self, cls: type, given: Container[str] = ()) -> dict[str, Any]:
        """The checkpoint's values for a class of models or data: see ``safe_hyper_parameters``."""
        saved = self.checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})  # type: ignore[attr-defined]  # Lightning's
        return safe_hyper_parameters(cls, saved, given)

    def load(self, cls: type[Part], **kwargs: Any) -> Part:
        """Make the model or the data module of this run, as ``cls.load_from_checkpoint`` does.

        Raises:
            InputError: If the run was trained with another class of model.
        """
        if issubclass(cls, LightningModule):
            self._check_class(cls)
        # `_instantiator`: see SafeCheckpoints.
        return cls.load_from_checkpoint(self.path, weights_only=True, _instantiator=None, **kwargs)  # type: ignore[return-value]  # mypy takes it for a union

    def check(self, model: LightningModule) -> None:
        """Raise ``InputError`` if a model is of another class than this run's, or has other weights."""
        self._check_class(type(model))
        try:
            model.load_state_dict(self.checkpoint["state_dict"])
        except RuntimeError as error:
            what = " ".join(str(error).split())
            raise InputError(f"{str(self.path)!r} is the checkpoint of another network: {what}") from error

    def _check_class(self, own: type[LightningModule]) -> None:
        trained = self.checkpoint.get("model_class", own.__qualname__)  # older checkpoints do not say it
        if trained not in [kind.__qualname__ for kind in own.__mro__]:
            raise InputError(
                f"{str(self.path)!r} was trained as {shown(trained)}, here the model is {own.__name__}: use the class "
                "that it was trained with"
            )


def newest_run(root: Path, with_checkpoint: bool) -> Path:
    """The newest run of ``fit`` below ``root``, or the newest that has a checkpoint."""
    for _, folder in sorted(run_folders(root).items(), reverse=True):
        if (folder / "config.yaml").is_file() and (not with_checkpoint or has_checkpoint(folder)):
            return folder
    what = "fit run with a checkpoint" if with_checkpoint else "fit run"
    raise InputError(
        f"no {what} in {str(root / RUNS)!r}: train one with 'python -m mnist_lightning fit', or give --ckpt_path"
    )


def run_folders(root: Path) -> dict[int, Path]:
    """Each ``lightning_logs/version_N`` below ``root``, by ``N``."""
    folders = (root / RUNS).glob("version_*")
    return {int(number): folder for folder in folders if (number := folder.name.removeprefix("version_")).isdecimal()}
