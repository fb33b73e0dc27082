"""What makes a run that was killed and resumed equal to one that never was, bit for bit."""

import copy
import inspect
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mnist_lightning.checkpoint import check_alike, load_checkpoint
from mnist_lightning.errors import InputError, shown
from mnist_lightning.runs import checkpoint_of, is_whole


class EpochSeed(Callback):
    """Seeds every epoch of every process from ``(seed, epoch, rank)``.

    A resumed epoch then draws what it would have drawn, dropout included, and the random state of
    the other processes, which is in no checkpoint, is not missed. Generators that a ``train_transform`` keeps
    to itself are seeded, too, where they can be found: among its attributes, or what a function refers to.

    Args:
        seed: The run's.
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
        np.random.seed(seed)  # noqa: NPY002  # a user's transform may draw from the global generator
        random.seed(seed)
        transform = getattr(getattr(trainer, "datamodule", None), "train_transform", None)
        for i, generator in enumerate(_generators(transform)):
            own = int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
            if isinstance(generator, torch.Generator):
                generator.manual_seed(own)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = type(generator.bit_generator)(own).state
            else:
                generator.seed(own)


def _generators(item: Any, seen: frozenset[int] = frozenset()) -> list[Any]:
    """The random generators that an object holds among its attributes, or that a function refers to."""
    if isinstance(item, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
        return [item]
    if id(item) in seen or isinstance(item, (type, ModuleType, torch.Tensor, np.ndarray)):
        return []
    parts: Any = vars(item).values() if hasattr(item, "__dict__") else ()
    if isinstance(item, (list, tuple)):
        parts = item
    elif isinstance(item, dict):
        parts = item.values()
    elif isinstance(item, partial):
        parts = (item.func, item.args, item.keywords)
    elif isinstance(item, FunctionType):
        names = inspect.getclosurevars(item)
        parts = (names.nonlocals, names.globals, item.__defaults__, item.__kwdefaults__)
    return [generator for part in parts for generator in _generators(part, seen | {id(item)})]


class SameOptimizers(Callback):
    """Refuses to resume with other optimizers or schedulers than those that the run configures.

    Lightning would let the checkpoint's hyper-parameters silently replace the run's, and pass over a scheduler
    of which one of the two knows nothing.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the optimizers as they are made, before Lightning restores them."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for scheduler, saved in _pairs("lr_scheduler", schedulers, checkpoint.get("lr_schedulers")):
            state = {name: value for name, value in scheduler.state_dict().items() if not name.startswith("_")}
            _compare("lr_scheduler", state, saved, COUNTS)
        for optimizer, saved in _pairs("optimizer", trainer.optimizers, checkpoint.get("optimizer_states")):
            scheduled = any(scheduler.optimizer is optimizer for scheduler in schedulers)
            groups = _pairs("parameter group", optimizer.state_dict()["param_groups"], saved.get("param_groups"))
            for group, saved_group in groups:
                _compare("optimizer", group, saved_group, SCHEDULED if scheduled else set())
                for name, value in group.items():  # that another version of torch did not know
                    saved_group.setdefault(name, value)
            states, trained = saved.get("state"), _trained_state(optimizer)
            if not isinstance(states, dict) or (trained is not None and states.keys() != trained.keys()):
                raise InputError(f"the checkpoint's state is not one of {type(optimizer).__name__}: {ADVICE}")
            for param, own in (trained or {}).items():
                there = states[param] if isinstance(states[param], dict) else {}
                check_alike({name: there.get(name) for name in own}, own, f"optimizer state {param}")


ADVICE = "resume with the options that it was trained with, or train anew"
SCHEDULED = {"lr", "momentum", "betas"}  # what a scheduler changes; OneCycleLR and CyclicLR cycle the momentum, too
COUNTS = {"last_epoch", "T_cur", "T_i"}  # what a scheduler changes in itself


def _pairs(what: str, here: Sequence[Any], there: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What the run has beside what the checkpoint has of it."""
    there = [item for item in there if isinstance(item, dict)] if isinstance(there, list) else []
    if len(there) != len(here):
        raise InputError(f"the checkpoint has {len(there)} {what}(s), here it is {len(here)}: {ADVICE}")
    return zip(here, there, strict=True)


def _compare(what: str, here: dict[str, Any], there: dict[str, Any], changing: set[str]) -> None:
    for name in sorted((here.keys() & there.keys()) - changing):
        if not _equal(here[name], there[name]):
            raise InputError(
                f"the checkpoint's {what} has {name} {shown(there[name])}, here it is {shown(here[name])}: {ADVICE}"
            )


def _equal(here: Any, there: Any) -> bool:
    tensors = [isinstance(value, torch.Tensor) for value in (here, there)]
    return torch.equal(here.cpu(), there.cpu()) if all(tensors) else not any(tensors) and bool(here == there)


def _trained_state(optimizer: torch.optim.Optimizer) -> dict[Any, Any] | None:
    """What an optimizer remembers after a step of a copy; ``None`` if it needs real gradients for one."""
    trained = copy.deepcopy(optimizer)
    for group in trained.param_groups:
        for param in group["params"]:
            param.grad = torch.zeros_like(param) if param.requires_grad else None
    try:
        trained.step(lambda: 0.0)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return dict(trained.state_dict()["state"])


class StayStopped(Callback):
    """Trains no further what EarlyStopping had stopped.

    EarlyStopping saves its counts but not its verdict: resumed, a stopped run would train for one
    more epoch before it noticed, and one that ``min_epochs`` keeps going might not stop at all.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(stopped_early(callback) for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True


def stopped_early(early_stopping: EarlyStopping) -> bool:
    """Whether EarlyStopping has told the run to stop."""
    # The epoch alone does not say it: 0 stands for the first one too.
    return early_stopping.stopped_epoch > 0 or early_stopping.wait_count >= max(early_stopping.patience, 1)


def seed_of(checkpoint: dict[str, Any] | None, default: Any) -> Any:
    """The seed of the run that saved a checkpoint; ``default`` without one, or where it kept none."""
    state = (checkpoint or {}).get("callbacks", {}).get("EpochSeed")
    if state is not None:
        check_alike(state, {"seed": 0}, "callbacks.EpochSeed")
    return default if state is None else state["seed"]


class StopOnSIGTERM(Callback):
    """Stops at once on SIGTERM, all processes of the run together.

    Lightning finishes the batch first, and with several processes broadcasts from inside its signal
    handler, which may hang. Here nothing is lost by stopping at once: an interrupted epoch is
    repeated from its start. Under SLURM, whose requeue needs Lightning's handlers, these stay.
    """

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self._before: Any = None
        self._ours = threading.current_thread() is threading.main_thread() and not SLURMEnvironment.detect()

    def __enter__(self) -> "StopOnSIGTERM":
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ours:  # Lightning has put its own handler before this one; it restores it in the end.
            signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.trainer is not None and self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(signum)
        raise SIGTERMException


def check_resumable(checkpoint: dict[str, Any], config: Any, path: Path) -> None:
    """Refuse to resume what would not go on exactly as if it had never stopped.

    Args:
        checkpoint: The loaded checkpoint.
        config: The options of ``fit``.
        path: The checkpoint's path, for the message.

    Raises:
        InputError: If the checkpoint was not saved at the end of an epoch, or if the options make
            an exact continuation impossible.
    """
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise InputError(f"{str(path)!r} holds weights only: training cannot go on from it, only 'test' can")
    if not is_whole(checkpoint):
        kept = checkpoint_of(path.parent.parent, whole=True) if path.parent.name == "checkpoints" else None
        other = repr(str(kept)) if kept and is_whole(load_checkpoint(kept)) else "a checkpoint that was"
        raise InputError(
            f"{str(path)!r} was not saved at the end of an epoch: training cannot go on from it exactly; give {other}"
        )
    done, most = checkpoint["epoch"] + 1, config.trainer.max_epochs
    if most is not None and 0 <= most < done:
        raise InputError(
            f"trainer.max_epochs {most} is fewer than the {done} epochs that {str(path)!r} was "
            f"trained for: give at least {done}"
        )
    if config.trainer.max_steps != -1:
        raise InputError(
            f"a run with trainer.max_steps {config.trainer.max_steps} cannot be resumed exactly: use trainer.max_epochs"
        )
    if "ReduceLROnPlateau" in str((config.get("lr_scheduler") or {}).get("class_path")):
        raise InputError(
            "a run with ReduceLROnPlateau cannot be resumed exactly, as it steps after the checkpoint is written: use "
            "another lr_scheduler"
        )


def check_states(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """See that a checkpoint's loops and callbacks are made as those of this run, into which Lightning will load them.

    Raises:
        InputError: If they are not.
    """
    _check_known(checkpoint["loops"]["fit_loop"], trainer.fit_loop.state_dict(), "loops.fit_loop")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for callback in callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        # What a callback of the user's own saves is known to nobody else.
        if state is not None and type(callback).__module__.split(".")[0] in ("lightning", "mnist_lightning"):
            own = callback.state_dict()
            if isinstance(callback, Timer):  # its seconds are fractions, but begin as a whole number
                own["time_elapsed"] = dict.fromkeys(own["time_elapsed"], 0.0)
            _check_known(state, own, f"callbacks.{callback.state_key}")


def _check_known(saved: Any, own: dict[str, Any], what: str) -> None:
    """Compare the parts that both have: another version of Lightning may have other parts."""
    check_alike(saved, {}, what)
    for name in own.keys() & saved.keys():
        check_alike(saved[name], own[name], f"{what}.{name}")
