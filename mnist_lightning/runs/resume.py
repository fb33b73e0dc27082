"""Checks that a resumed run will equal one that never stopped."""

import copy
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
    """Refuse a state from a checkpoint that has other names, types or shapes than the object's own state.

    If a part of the object's own state is ``None`` or empty, the same part of the checkpoint may be anything plain.
    With ``equal``, the values must be equal, too.
    """
    if isinstance(own, dict) and own:
        alike = (is_dict(saved) or type(saved) is type(own)) and saved.keys() == own.keys()
        for name in own if alike else ():
            check_alike(saved[name], own[name], f"{what}.{name}", equal)
    elif equal and isinstance(own, (list, tuple)):
        alike = isinstance(saved, (list, tuple)) and len(saved) == len(own)
        for number, value in enumerate(own if alike else ()):
            check_alike(saved[number], value, f"{what}.{number}", equal)
    elif isinstance(own, Tensor):
        alike = is_dense(saved) and _form(saved) == _form(own) and not (equal and bool((saved != own.cpu()).any()))
    elif equal:
        alike = not isinstance(saved, Tensor) and is_plain(saved) and bool(saved == own)
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


def check_class(checkpoint: Mapping[str, Any], own: type, path: str) -> None:
    """Refuse a checkpoint of another class of model than this one or its base classes. Older ones do not say."""
    trained = checkpoint.get("model_class", own.__qualname__)
    if trained not in [kind.__qualname__ for kind in own.__mro__]:
        raise InputError(
            f"{path!r} was trained as {shown(trained)}, here the model is {own.__name__}: another class may compute "
            "something else from the same weights; use the one that it was trained with"
        )


def check_weights(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights of a checkpoint that have other names, shapes or types than this network's."""
    for name in {**own, **saved}:
        there, here = (_form(weights[name]) if name in weights else "missing" for weights in (saved, own))
        if there != here:
            raise InputError(
                f"{path!r} is the checkpoint of another network: its {shown(name)} is {there}, here it is {here}; "
                "give a checkpoint of this network"
            )


def _form(tensor: Tensor) -> str:
    return f"{'float' if tensor.dtype.is_floating_point else 'int'} {tuple(tensor.shape)}"


class SameOptimizers(Callback):
    """Refuses a checkpoint whose optimizers or schedulers are not those of the run.

    Lightning would silently take the learning rate and all other options from the checkpoint. It would ignore a
    scheduler that only the checkpoint or only the run has.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._checkpoint = checkpoint  # the very one that Lightning restores: options are added to it below

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the optimizers before Lightning restores them."""
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
                # A version of torch only adds or only drops options: both at once mean another optimizer.
                if group.keys() - saved_group.keys() and saved_group.keys() - group.keys():
                    raise InputError(
                        f"the checkpoint's optimizer has other options than {type(optimizer).__name__}: resume with "
                        "the --optimizer that it was trained with, or train anew"
                    )
                # A scheduler can turn a whole number into a fraction.
                own = {name: float(value) if type(value) is int else value for name, value in group.items()}
                _check_known(saved_group, own, "optimizer", own.keys() - changing)
                for name, value in group.items():  # options that an older torch did not have
                    saved_group.setdefault(name, value)
            states: Any = saved.get("state")
            trained = _trained_state(optimizer)
            if not is_dict(states) or (trained is not None and states.keys() != trained.keys()):
                raise InputError(f"the checkpoint's state is not one of {type(optimizer).__name__}: train anew")
            check_alike(states, trained, "optimizer state")


# What a scheduler changes in the optimizer (OneCycleLR and CyclicLR change the momentum, too), and in itself.
_SCHEDULED, _COUNTS = {"lr", "momentum", "betas"}, {"last_epoch", "T_cur", "T_i"}


def _pairs(what: str, here: Sequence[Any], there: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Pair the optimizers, schedulers or groups of this run with those of the checkpoint."""
    there = [item for item in there if is_dict(item)] if isinstance(there, list) else []
    if len(there) != len(here):
        raise InputError(
            f"the checkpoint has {len(there)} {what}(s), here it is {len(here)}: resume with the options that it was "
            "trained with, or train anew"
        )
    return zip(here, there, strict=True)


def _trained_state(optimizer: torch.optim.Optimizer) -> dict[Any, Any] | None:
    """The state of an optimizer after one step, made by a copy, or ``None`` if zero gradients allow no step."""
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
    """Refuse a checkpoint, or options of ``fit``, with which the run would differ from one that never stopped."""
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise InputError(f"{str(path)!r} holds weights only: training cannot go on from it; 'test' evaluates it")
    # As float64: isfinite does not take every type of float, and no value becomes infinite.
    if odd := [name for name, weight in checkpoint["state_dict"].items() if not weight.double().isfinite().all()]:
        raise InputError(
            f"{str(path)!r} has weights that are not finite (infinite or NaN, in {shown(odd[0])}): training cannot go "
            "on from it; give an earlier checkpoint"
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
    """Refuse a checkpoint whose loops and callbacks Lightning cannot load into those of this run."""
    _check_known(checkpoint["loops"]["fit_loop"], trainer.fit_loop.state_dict(), "loops.fit_loop")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for callback in callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        what = f"callbacks.{callback.state_key}"
        # We cannot know what a user's own callback saves.
        if state is None or type(callback).__module__.split(".")[0] not in ("lightning", "mnist_lightning"):
            continue
        check_alike(state, {}, what)
        own = callback.state_dict()
        # A score begins as infinity, a float, but is a whole number if a callback monitors the epoch or the step.
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
    """Compare only the parts that both have: other versions of Lightning and torch have other parts."""
    check_alike(saved, {}, what)
    for name in own.keys() & saved.keys():
        check_alike(saved[name], own[name], f"{what}.{name}", name in equal)
