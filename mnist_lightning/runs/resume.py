"""What must be the same for a resumed run to equal one that never stopped."""

import contextlib
import copy
import traceback
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from torch import Tensor

from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import is_dense, is_dict, is_plain, is_whole_number, load_checkpoint
from mnist_lightning.runs.checkpoints import checkpoint_of, is_whole


def check_alike(saved: Any, own: Any, what: str, equal: bool = False) -> None:
    """See that a state from a checkpoint is made as that of the object that it is for.

    Args:
        saved: From the checkpoint.
        own: What the object's own ``state_dict()`` returns. What is ``None`` or empty there may be anything plain.
        what: The state's name, for the message.
        equal: Whether the values must be the same, too.

    Raises:
        InputError: If a name, a type or a shape is another one, or a value that must be the same.
    """
    if isinstance(own, dict) and own:
        alike = is_dict(saved) and saved.keys() == own.keys()
        for name in own if alike else ():
            check_alike(saved[name], own[name], f"{what}.{name}", equal)
    elif isinstance(own, Tensor):
        alike = is_dense(saved) and _form(saved) == _form(own) and not (equal and bool((saved != own.cpu()).any()))
    elif equal:
        alike = is_plain(saved) and bool(saved == own)
    elif type(own) is int:
        alike = is_whole_number(saved) or (type(saved) is int and saved == own)
    else:
        kinds = (int, float) if type(own) is float else (type(own),)  # seconds may be 0
        alike = is_plain(saved) and (own is None or type(saved) in kinds)
    if not alike:
        raise InputError(
            f"the checkpoint's {what} is {shown(saved)}, here it is {shown(own)}: resume with the options that it was "
            "trained with, or train anew"
        )


def check_weights(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str) -> None:
    """See that a checkpoint's weights are those of this network, by their names, shapes and kinds.

    Raises:
        InputError: If they are not.
    """
    for name in {**own, **saved}:
        there, here = (_form(weights[name]) if name in weights else "missing" for weights in (saved, own))
        if there != here:
            raise InputError(
                f"{path!r} is the checkpoint of another network: its {shown(name)} is {there}, here it is {here}; "
                "give a checkpoint of this network"
            )


def _form(tensor: Tensor) -> str:
    return f"{'float' if tensor.dtype.is_floating_point else 'int'} {tuple(tensor.shape)}"


@contextlib.contextmanager
def restoring(path: str) -> Iterator[None]:
    """Where Lightning restores a checkpoint, whatever fails is said in one line.

    Raises:
        InputError: If the checkpoint cannot be restored.
    """
    from lightning.pytorch.trainer.connectors import checkpoint_connector

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        names = [code.co_name for code in frames if code.co_filename == checkpoint_connector.__file__]
        if not any(name.lstrip("_").startswith(("restore", "resume")) for name in names):
            raise
        raise InputError(
            f"{path!r} cannot be restored ({type(error).__name__}: {shown(str(error), 200)}): give a checkpoint that "
            "fit has written"
        ) from error


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
            own = scheduler.state_dict()
            _check_known(saved, own, "lr_scheduler", {name for name in own if name[0] != "_"} - _COUNTS)
        for optimizer, saved in _pairs("optimizer", trainer.optimizers, checkpoint.get("optimizer_states")):
            changing = _SCHEDULED if any(scheduler.optimizer is optimizer for scheduler in schedulers) else set()
            groups = _pairs("parameter group", optimizer.state_dict()["param_groups"], saved.get("param_groups"))
            for group, saved_group in groups:
                # A scheduler makes a fraction of a whole number.
                own = {name: float(value) if type(value) is int else value for name, value in group.items()}
                _check_known(saved_group, own, "optimizer", own.keys() - changing)
                for name, value in group.items():  # that another version of torch did not know
                    saved_group.setdefault(name, value)
            states: Any = saved.get("state")
            trained = _trained_state(optimizer)
            if not is_dict(states) or (trained is not None and states.keys() != trained.keys()):
                raise InputError(f"the checkpoint's state is not one of {type(optimizer).__name__}: train anew")
            check_alike(states, trained, "optimizer state")


# What a scheduler changes in the optimizer (OneCycleLR and CyclicLR: the momentum, too), and in itself.
_SCHEDULED, _COUNTS = {"lr", "momentum", "betas"}, {"last_epoch", "T_cur", "T_i"}


def _pairs(what: str, here: Sequence[Any], there: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What the run has beside what the checkpoint has of it."""
    there = [item for item in there if is_dict(item)] if isinstance(there, list) else []
    if len(there) != len(here):
        raise InputError(
            f"the checkpoint has {len(there)} {what}(s), here it is {len(here)}: resume with the options that it was "
            "trained with, or train anew"
        )
    return zip(here, there, strict=True)


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


def check_resumable(checkpoint: dict[str, Any], config: Any, path: Path) -> None:
    """Refuse to resume what would not go on exactly as if it had never stopped.

    Args:
        checkpoint: The loaded checkpoint.
        config: The options of ``fit``.
        path: The checkpoint's path, for the message.

    Raises:
        InputError: If the checkpoint was not saved at the end of an epoch or has weights that are infinite or NaN,
            or if the options make an exact continuation impossible.
    """
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise InputError(f"{str(path)!r} holds weights only: training cannot go on from it, only 'test' can")
    # In double, which no other number overflows and which every kind of float can become.
    if odd := [name for name, weight in checkpoint["state_dict"].items() if not weight.double().isfinite().all()]:
        raise InputError(
            f"{str(path)!r} has weights that are not finite (infinite or NaN, in {shown(odd[0])}): training cannot go on "
            "from it; give an earlier checkpoint"
        )
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
        what = f"callbacks.{callback.state_key}"
        # Nobody else knows what a user's own callback saves.
        if state is None or type(callback).__module__.split(".")[0] not in ("lightning", "mnist_lightning"):
            continue
        check_alike(state, {}, what)
        own = callback.state_dict()
        # A score may be a whole number where it begins as infinity: a callback can monitor the epoch or the step.
        own |= {name: None for name in own if _is_score(own[name]) and _is_score(state.get(name))}
        if isinstance(callback, Timer):  # its seconds are fractions, but begin as a whole number
            own["time_elapsed"] = dict.fromkeys(own["time_elapsed"], 0.0)
        _check_known(state, own, what)
        if isinstance(callback, ModelCheckpoint):
            models = state.get("best_k_models", {})
            named = all(type(path) is str and _is_score(score) for path, score in models.items())
            full = 0 < callback.save_top_k <= len(models)
            if not named or (full and state.get("kth_best_model_path") not in models):
                raise InputError(f"the checkpoint's {what}.best_k_models cannot be {shown(models)}: train anew")


def _is_score(value: Any) -> bool:
    return is_dense(value) and value.ndim == 0


def _check_known(saved: Any, own: dict[str, Any], what: str, equal: Container[str] = ()) -> None:
    """Compare the parts that both have: another version of Lightning or torch may have other parts."""
    check_alike(saved, {}, what)
    for name in own.keys() & saved.keys():
        check_alike(saved[name], own[name], f"{what}.{name}", name in equal)
