"""Where a command starts: from which run, from which checkpoint, and with which seed."""

import os
import random
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mnist_lightning.cli.bad_input import in_one_line, load_yaml
from mnist_lightning.cli.processes import started_by_torchrun
from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import load_checkpoint, plain_hyper_parameters
from mnist_lightning.runs.checkpoints import checkpoint_of
from mnist_lightning.runs.folder import newest_run
from mnist_lightning.runs.history import RUNS
from mnist_lightning.runs.seeds import seed_of

DEFAULT_SEED = 0


@dataclass(frozen=True)
class Start:
    """Where a command starts."""

    path: Path | None = None  # of the checkpoint, if there is one
    checkpoint: dict[str, Any] | None = None
    folder: Path | None = None  # of the run, where the command writes; None for a `fit` that begins a new run
    config: Path | None = None  # of the run, if it is one of the user's own

    def transform(self) -> Any:
        """The ``transform`` of the data in the run's configuration, as text or as a dict; ``None`` if there is none."""
        with in_one_line(f"{str(self.config)!r} cannot be read: "):
            config = load_yaml(self.config.read_text("utf-8")) if self.config is not None else None
        data = config.get("data") if isinstance(config, dict) else None
        return data.get("transform") if isinstance(data, dict) else None


def find_start(command: str, options: Namespace) -> Start:
    """Find and load the checkpoint that the user's options ask for."""
    wanted, root = options.get("ckpt_path"), Path(options.get("trainer.default_root_dir") or ".")
    if command == "fit" and wanted is None:
        return Start()
    if wanted in (None, "last"):
        folder = newest_run(root, with_checkpoint=command != "fit")
        path = checkpoint_of(folder, whole=command == "fit")
        return Start(path, None if path is None else load_checkpoint(path), folder, folder / "config.yaml")
    path = Path(wanted)
    if not path.is_file():
        raise InputError(f"no checkpoint at {wanted!r}: give a .ckpt file, or 'last' for the newest run")
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    # A config can run code. So the config of a run is taken only if it lies among the user's own runs. From
    # elsewhere, a command takes the checkpoint alone, and `fit` begins a new run.
    config = folder / "config.yaml"
    mine = folder.resolve().parent == (root / RUNS).resolve() and config.is_file()
    return Start(path, load_checkpoint(path), folder if mine or command != "fit" else None, config if mine else None)


def checkpoint_defaults(
    start: Start, command: str, options: Namespace, classes: dict[str, Any], known: Container[str]
) -> dict[str, Any]:
    """The checkpoint's model and data, as defaults of the command's options, whose names are ``known``.

    What the user gave, ``options`` without defaults, must not contradict the checkpoint.
    """
    assert start.checkpoint is not None
    saved: dict[str, Any] = {}
    for name, cls in classes.items():
        values = start.checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if name == "data" and values:
            values = {"dataset": "MNIST", **values}  # version 0.1.0 had no other
        # The configuration of a resumed run has all of its options.
        given = values if command == "fit" and start.folder is not None else options.get(name) or {}
        plain = plain_hyper_parameters(cls, values, given)
        saved |= {f"{name}.{key}": value for key, value in plain.items() if f"{name}.{key}" in known}
    fixed = [*(key for key in saved if key.startswith("model.")), "data.val_size", "data.train_size"]
    fixed += ["data.dataset", "data.emnist_split"]
    if command == "fit":
        seed = seed_of(start.checkpoint, None)
        saved |= {} if seed is None else {"seed_everything": seed}
        fixed += ["seed_everything", "data.batch_size", "data.seed"]
    check_same(options, saved, fixed, "checkpoint")
    return saved


def check_same(options: Namespace, saved: Any, names: Sequence[str], whose: str) -> None:
    """Refuse options that contradict what a run or a checkpoint was trained with."""
    for name in names:
        if name in options and name in saved and options[name] != saved[name]:
            raise InputError(
                f"--{name} {options[name]} contradicts the {whose}'s {shown(saved[name])}: leave the flag out, or "
                "train anew"
            )


def choose_seed(wanted: bool | int | None, checkpoint: dict[str, Any] | None) -> int | None:
    """The seed of a run, or ``None`` for none.

    A run wants a number, ``True`` for a random one, ``False`` for none, or ``None`` for the checkpoint's or 0.
    """
    seed = seed_of(checkpoint, DEFAULT_SEED) if wanted is None else wanted
    if seed is False:
        return None
    if seed is True:  # all processes of a run take the one that the first process has drawn
        started = started_by_torchrun() or {"LOCAL_RANK", "MASTER_PORT"} <= os.environ.keys()
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if started else random.SystemRandom().randrange(2**32)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed_everything must be a whole number from 0 to {2**32 - 1}, got {seed}")
    return int(seed)
