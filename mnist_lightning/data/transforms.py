"""What a checkpoint records of the user's own functions that change the images: never their code.

A checkpoint holds a function's name or ``repr`` in one line, for people, and a digest of its parameters, because many a
``repr`` leaves some out. Both are compared when the checkpoint is used.
"""

import hashlib
import inspect
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import is_dict

TRANSFORMS = ("train_transform", "transform")
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def record(transforms: Mapping[str, Callable[[Tensor], Any] | None]) -> dict[str, str | None]:
    """What a checkpoint says of the transforms: each description under ``NAME``, each digest under ``NAME_digest``."""
    descriptions = {name: describe(function) for name, function in transforms.items()}
    return descriptions | {f"{name}_digest": digest(function) for name, function in transforms.items()}


def data_states(checkpoint: Mapping[str, Any], own: str) -> list[Any]:
    """The states of data modules in a checkpoint. Lightning saves each under its class's name, perhaps not ``own``."""
    return [
        state for name, state in checkpoint.items() if name == own or (is_dict(state) and {*TRANSFORMS} <= state.keys())
    ]


def check_same(there: Any, here: Mapping[str, str | None], names: Sequence[str]) -> None:
    """Check that the transforms ``here`` are those with which a state was saved, which may be anything.

    Raises:
        InputError: If one is another, or if the state is no dict.
    """
    if not isinstance(there, dict):
        raise InputError(f"the checkpoint's state of the data must be a dict, got {shown(there)}: train anew")
    if "train_transform" not in there:
        return  # the checkpoint records no transforms
    for name in names:
        before, now = there.get(name), here[name]  # a state without `transform` is older than this argument
        if before is not None and type(before) is not str:
            raise InputError(f"the checkpoint's {name} is {shown(before)}, which describes no function: train anew")
        digests = here[f"{name}_digest"], there.get(f"{name}_digest")
        differs = "" if before == now else f", here it is {shown(now, 200)}"
        if before == now and None not in digests and digests[0] != digests[1]:
            differs = ", here it has other parameters"
        if differs:
            raise InputError(
                f"the checkpoint was trained with {name} {shown(before, 200)}{differs}: "
                "give the one that it was trained with, or train anew"
            )


def describe(transform: Callable[[Tensor], Any] | None) -> str | None:
    """A transform's name and parameters in one line. It has no addresses, which differ between processes."""
    if transform is None:
        return None
    text = repr(transform)
    if hasattr(transform, "__qualname__"):  # a function
        text = f"{transform.__module__}.{transform.__qualname__}"
    elif text == object.__repr__(transform):  # an object whose class has no __repr__
        parameters = ", ".join(f"{name}={value!r}" for name, value in getattr(transform, "__dict__", {}).items())
        text = f"{type(transform).__module__}.{type(transform).__qualname__}({parameters})"
    return _without_addresses(text)


def digest(transform: Callable[[Tensor], Any] | None) -> str | None:
    """The SHA-256 of all parameters of a transform, the same in every process; ``None`` if they cannot be read."""
    try:
        return None if transform is None else _digest(transform, {})
    except (RuntimeError, ValueError):  # an odd tensor, a closure over a name that has no value yet, endless nesting
        return None


def parts_of(item: Any) -> dict[Any, Any]:
    """What a transform, or a part of one, is made of: its elements, its attributes, or what a function refers to."""
    if isinstance(item, (list, tuple)):
        return dict(enumerate(item))
    if isinstance(item, dict):
        return item
    if isinstance(item, partial):
        return {"func": item.func, "args": item.args, "keywords": item.keywords}
    if isinstance(item, MethodType):
        return {"self": item.__self__, "func": item.__func__}
    if isinstance(item, FunctionType):
        names = inspect.getclosurevars(item)
        defaults = {"defaults": item.__defaults__, "kwdefaults": item.__kwdefaults__}
        return {**defaults, "nonlocals": names.nonlocals, "globals": names.globals}
    return getattr(item, "__dict__", {})


def _digest(item: Any, seen: dict[int, tuple[Any, str]]) -> str:
    """The SHA-256 of all that an object is made of. ``seen`` keeps each object alive, so that its id stays unique."""
    if id(item) not in seen:
        seen[id(item)] = item, "in itself"
        text = _written_out(item, seen)
        seen[id(item)] = item, hashlib.sha256(text.encode()).hexdigest()
    return seen[id(item)][1]


def _written_out(item: Any, seen: dict[int, tuple[Any, str]]) -> str:
    if isinstance(item, GENERATORS):
        return "generator"  # its state changes; each epoch seeds it anew
    if isinstance(item, Tensor) and item.layout == torch.strided and not item.is_meta:
        values = item.detach().cpu().resolve_conj().reshape(-1).view(torch.uint8).numpy()
        return f"{item.dtype} {tuple(item.shape)} {values.tobytes()!r}"
    if isinstance(item, np.ndarray) and not item.dtype.hasobject:
        return f"{item.dtype} {item.shape} {item.tobytes()!r}"
    if isinstance(item, (set, frozenset)):
        return f"set {sorted(_digest(part, seen) for part in item)}"
    parts = _parameters(item)
    if not parts:
        return _without_addresses(repr(item))
    kind = item if isinstance(item, FunctionType) else type(item)
    written = sorted(f"{name!r}={_digest(part, seen)}" for name, part in parts.items())
    return f"{kind.__module__}.{kind.__qualname__} {written}"


def _parameters(item: Any) -> dict[Any, Any]:
    """The parts of a transform that make it another one if they differ."""
    parts = {} if isinstance(item, type) else parts_of(item)
    if isinstance(item, nn.Module):
        # Private attributes of torch's own classes differ between releases.
        theirs = type(item).__module__.partition(".")[0] in ("torch", "torchvision")
        own = vars(nn.Module()).keys()
        parts = {name: part for name, part in parts.items() if name not in own and not (theirs and name[0] == "_")}
        for named in (item.named_parameters(recurse=False), item.named_buffers(recurse=False), item.named_children()):
            parts |= dict(named)
    elif isinstance(item, FunctionType):
        # Of the function's globals, only plain values: the rest could be a whole library.
        around = {name: part for name, part in parts["globals"].items() if isinstance(part, (int, float, str))}
        parts = {**parts, "globals": around}
    return parts


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))
