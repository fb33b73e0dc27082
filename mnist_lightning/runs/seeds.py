"""Seeds, so that a resumed run draws the same random numbers as one that never stopped."""

import random
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lightning.data.transforms import GENERATORS, TRANSFORMS, parts_of
from mnist_lightning.runs.resume import check_alike


class EpochSeed(Callback):
    """Seeds every epoch of every process from ``(seed, epoch, rank)``.

    A resumed epoch then draws the same numbers as one that was not interrupted, for dropout too. No random state needs
    to be in the checkpoint, which could only hold that of one process. A transform of the data may have generators
    of its own. They are seeded if they are among its attributes or if its function refers to them.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = int(state_dict["seed"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sequence = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank))
        seed = int(sequence.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # a user's transform may use the global generator
        random.seed(seed)
        data = getattr(trainer, "datamodule", None)
        transforms = [getattr(data, name, None) for name in TRANSFORMS]
        for i, generator in enumerate(_generators(transforms)):
            own = int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
            if isinstance(generator, torch.Generator):
                generator.manual_seed(own)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = type(generator.bit_generator)(own).state
            else:
                generator.seed(own)


def _generators(item: Any, seen: frozenset[int] = frozenset()) -> list[Any]:
    """The random generators among the parts of a transform."""
    if isinstance(item, GENERATORS):
        return [item]
    if id(item) in seen or isinstance(item, (type, ModuleType, torch.Tensor, np.ndarray)):
        return []
    return [generator for part in parts_of(item).values() for generator in _generators(part, seen | {id(item)})]


def seed_of(checkpoint: dict[str, Any] | None, default: Any) -> Any:
    """The seed of the run that saved a checkpoint, or ``default`` if there is no checkpoint or no seed in it."""
    state = (checkpoint or {}).get("callbacks", {}).get("EpochSeed")
    if state is not None:
        check_alike(state, {"seed": 0}, "callbacks.EpochSeed")
    return default if state is None else state["seed"]
