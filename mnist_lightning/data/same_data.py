"""What a resumed fit must have in common with the one that it goes on with: the images, their order, their transforms.

A checkpoint holds no code. Of the user's own functions that change the images, it records the name or ``repr``.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mnist_lightning.errors import InputError, shown

TRANSFORMS = ("train_transform", "transform")


def data_state(data: Any) -> dict[str, Any]:
    """What a checkpoint records of the data, once they are loaded."""
    return {
        **{name: transform_name(getattr(data, name)) for name in TRANSFORMS},
        "dataset": data.name,
        "classes": list(data.classes),
        "val_size": 0 if data.val_dataset is None else len(data.val_dataset),
        "train_size": 0 if data.train_dataset is None else len(data.train_dataset),
        "batch_size": int(data.batch_size),  # numpy's numbers would not load as data
        "seed": int(data.seed),
    }


def compare_with_state(data: Any, state: dict[str, Any]) -> None:
    """Refuse other data than a checkpoint's in a ``fit``, and warn elsewhere: a test with noise may be wanted."""
    trainer = data.trainer
    is_fit = trainer is not None and trainer.state.fn == "fit"
    # Lightning's Tuner tries batch sizes, and then restores the rest from its own checkpoint of this name.
    if is_fit and Path(trainer.ckpt_path or "").name.startswith(".scale_batch_size_"):
        return
    try:
        _check_state(state, data, is_fit)
    except InputError as error:
        if is_fit:
            raise
        rank_zero_warn(str(error))


def check_same_data(checkpoint: Mapping[str, Any], data: Any, resume: bool) -> None:
    """Refuse other data than those of a checkpoint, also of one with a data module of another class.

    If training does not go on, only the data set, its classes and ``transform`` count.
    """
    for key, state in checkpoint.items():
        if key != "datamodule_hyper_parameters" and isinstance(state, dict) and {*TRANSFORMS} <= state.keys():
            _check_state(state, data, resume)


def _check_state(there: Mapping[str, Any], data: Any, resume: bool) -> None:
    here = data_state(data)
    for name in here if resume else ("transform", "dataset", "classes"):
        # An older checkpoint does not have all of them. It knows no data set but MNIST.
        before = there.get(name, "MNIST" if name == "dataset" else here[name])
        if before != here[name]:
            raise InputError(
                f"the checkpoint was trained with {name} {shown(before, 200)}, here it is {shown(here[name], 200)}: "
                "give the one that it was trained with, or train anew"
            )


def transform_name(transform: Callable[[Tensor], Any] | None) -> str | None:
    """A transform's name and parameters in one line. It has no addresses, which differ between processes."""
    if transform is None:
        return None
    text = repr(transform)
    if hasattr(transform, "__qualname__"):  # a function
        text = f"{transform.__module__}.{transform.__qualname__}"
    elif text == object.__repr__(transform):  # an object whose class has no __repr__
        parameters = ", ".join(f"{name}={value!r}" for name, value in getattr(transform, "__dict__", {}).items())
        text = f"{type(transform).__module__}.{type(transform).__qualname__}({parameters})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))
