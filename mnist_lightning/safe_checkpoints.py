"""Checkpoints that are read as data, never as code."""

import inspect
import os
import pickle
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod

from mnist_lightning.errors import InputError, shown

if TYPE_CHECKING:
    from typing_extensions import Self


class SafeCheckpoints:
    """Reads the checkpoints of a model or a data module as data: a base class before Lightning's own."""

    never_from_checkpoints: tuple[str, ...] = ()
    """Parameters that are never saved in a checkpoint, or taken from one."""

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, but paths become text, and numpy's numbers Python's: only these load as data."""
        frame = inspect.currentframe()
        kwargs.setdefault("frame", frame and frame.f_back)  # of the caller, whose arguments these are
        super().save_hyperparameters(*args, **kwargs)  # type: ignore[misc]  # the next base class has it
        hparams: Any = self.hparams  # type: ignore[attr-defined]  # as above
        ignored = kwargs.get("ignore") or ()
        # Lightning 2.6.0 keeps what an earlier call, a base class's, has saved.
        for name in (*self.never_from_checkpoints, *([ignored] if isinstance(ignored, str) else ignored)):
            hparams.pop(name, None)
        for name, value in hparams.items():
            if isinstance(value, os.PathLike):
                hparams[name] = os.fspath(value)
            elif isinstance(value, np.generic):
                hparams[name] = value.item()

    @_restricted_classmethod  # a class method that refuses an instance, which would stay as it is
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> "Self":  # noqa: N805
        """As Lightning's, but no code runs from the checkpoint: ``weights_only`` is always true."""
        for name, parameter in _parameters(cls).items():
            if name in cls.never_from_checkpoints and parameter.default is not parameter.empty:
                kwargs.setdefault(name, parameter.default)
        # Lightning would import what a checkpoint calls `_instantiator`.
        safe = {**kwargs, "weights_only": True, "_instantiator": None}
        return super().load_from_checkpoint(checkpoint_path, *args, **safe)  # type: ignore[misc, no-any-return]  # as above


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lightning checkpoint, a local file, to the CPU, or raise ``InputError`` if it is not there or not data."""
    path = os.fspath(path)
    if not Path(path).is_file():
        raise InputError(f"no checkpoint at {path!r}: give the path of a .ckpt file")
    try:
        if not zipfile.is_zipfile(path):  # torch would say that something else may be code
            raise EOFError
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path!r} holds what could be code that runs: only checkpoints that load with weights_only=True are read"
        ) from error
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{path!r} is no checkpoint, or was cut short: give a file that fit has written") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(
            f"{path!r} is no Lightning checkpoint (state_dict is missing): wrap weights by "
            'torch.save({"state_dict": model.state_dict()}, path)'
        )
    # Other programs may save neither, and Lightning needs both.
    return {"pytorch-lightning_version": lightning.__version__, "callbacks": {}, **checkpoint}


def safe_hyper_parameters(cls: type, saved: Mapping[str, Any], given: Container[str] = ()) -> dict[str, Any]:
    """The values in ``saved`` for the parameters of a class of models or data, safe for a command line.

    jsonargparse would import code that a text names. A text is taken only for a parameter of plain types and paths.
    Any other value is refused unless the user has ``given`` one: the default could silently make another network.
    """
    safe = {}
    for name, parameter in _parameters(cls).items():
        if name not in saved or name in getattr(cls, "never_from_checkpoints", ()):
            continue
        value = saved[name]
        is_number = type(value) in (bool, int, float, NoneType)
        is_text = type(value) is str and _means_text(parameter.annotation)
        is_list = type(value) in (list, tuple) and all(type(item) in (int, float) for item in value)
        if is_number or is_text or is_list:
            safe[name] = value
        elif name not in given:
            raise InputError(
                f"the checkpoint's {name} is {shown(value)}, which could name code: give {name} of {cls.__name__}"
            )
    return safe


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class by name, and those of its base class, if it passes on ``**kwargs``."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        init: Any = vars(base).get("__init__")
        if init is None:
            continue
        try:
            signature = inspect.signature(init, eval_str=True)
        except Exception:  # an annotation may have a name that only type checkers import
            signature = inspect.signature(init)
        _, *parameters = signature.parameters.values()
        passes_on = any(item.kind is item.VAR_KEYWORD for item in parameters)
        for item in parameters:
            if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD):
                found.setdefault(item.name, item)
        if not passes_on:
            break
    return found


def _means_text(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    if kind in (Union, UnionType):
        return all(map(_means_text, get_args(annotation)))
    return kind in (bool, int, float, str, NoneType, Literal, Path, os.PathLike)
