"""Files that appear whole or not at all, and checkpoints that are read as data, never as code."""

import contextlib
import inspect
import io
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import IO, Any, Literal, Union, get_args, get_origin

import lightning
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from packaging.version import Version
from torch import Tensor

from mnist_lightning.errors import InputError, shown


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a Lightning checkpoint without running anything in it.

    Args:
        path: A local file; nothing is fetched.
        map_location: As in ``torch.load``.

    Returns:
        The checkpoint; what Lightning and this package read of it is of the kind that they expect.

    Raises:
        InputError: If there is no such file, if it is cut short or no checkpoint of Lightning's, or
            if it holds anything but plain values and tensors.
    """
    path = os.fspath(path)
    if "://" in path:
        raise InputError(f"a checkpoint must be a local file, got {path!r}; download it first")
    if not os.path.isfile(path):  # noqa: PTH113  # Path's raises where a name is too long
        raise InputError(f"no checkpoint at {path!r}: give the path of a .ckpt file")
    return _read(lambda: Path(path).open("rb"), path, map_location)


def _read(opened: Callable[[], IO[bytes]], name: str, map_location: Any) -> dict[str, Any]:
    try:
        with opened() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on tensors that are refused anyway
            entries = zipfile.ZipFile(file).infolist()  # their table stands at the end
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > file.seek(0, os.SEEK_END):
                raise InputError(
                    f"{name!r} is compressed, and may be too large for the memory: torch compresses nothing"
                )
            file.seek(0)
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        parts = {"state_dict": None, **checkpoint} if is_dict(checkpoint) else {"state_dict": None}
        odd = [part for part, is_kind in KINDS.items() if part in parts and not is_kind(parts[part])]
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{name!r} holds more than plain values and tensors, and what it holds could be code that runs: only "
            "checkpoints that load with weights_only=True are read"
        ) from error
    except Exception as error:  # of many kinds, where a file is not what it should be
        raise InputError(f"{name!r} is no checkpoint, or was cut short: give a file that fit has written") from error
    if odd:
        raise InputError(
            f"{name!r} is no Lightning checkpoint (no {odd[0]} in it, or an odd one): give a file that fit has written"
            + ', or wrap weights by torch.save({"state_dict": model.state_dict()}, path)' * (odd[0] == "state_dict")
        )
    # Other programs save no version, on which Lightning insists, and no callbacks, without which it calls no hook; a
    # pickled OrderedDict may have attributes, which torch would read.
    defaults = {"pytorch-lightning_version": lightning.__version__, "callbacks": {}}
    return {**defaults, **checkpoint, "state_dict": dict(checkpoint["state_dict"])}


# ------------------------------------------------------------------- what is in it


def is_dict(value: Any) -> bool:
    return type(value) in (dict, OrderedDict)


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor as layers have them, in memory, and nothing more."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and not (value.is_nested or value.is_quantized or value.is_meta or value.dtype.is_complex or vars(value))
    )


def _leaves(value: Any) -> Iterator[Any]:
    """What dicts and lists are made of in the end."""
    rest = [value]
    for _ in range(1_000_000):
        if not rest:
            return
        part = rest.pop()
        if isinstance(part, (dict, list, tuple)):
            rest += [*part, *part.values()] if isinstance(part, dict) else part
        else:
            yield part
    # A list can hold itself, or one list many times that holds another one many times.
    raise InputError("the checkpoint has a part of more than a million values: give one that fit has written")


def is_plain(value: Any) -> bool:
    """Whether all tensors are dense; whatever else loads weights-only is plain."""
    return all(is_dense(leaf) for leaf in _leaves(value) if isinstance(leaf, Tensor))


def is_whole_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_row(row: Any) -> bool:
    """Whether this is a row of ``metrics.csv``. A spreadsheet would run a name that begins with ``=``."""
    return (
        is_dict(row)
        and all(map(is_whole_number, (row.get("epoch"), row.get("step"))))
        and all(type(name) is str and re.match(r"[^\W\d]", name) and name.isprintable() for name in row)
        and all(type(figure) in (int, float) for figure in row.values())
    )


# Whatever Lightning and this package read of a checkpoint. Only the weights must be there.
KINDS: dict[str, Callable[[Any], bool]] = {
    "state_dict": lambda value: is_dict(value) and all(map(is_dense, value.values())),
    "pytorch-lightning_version": lambda value: type(value) is str and len(value) < 40 and bool(Version(value)),
    "epoch": is_whole_number,
    "global_step": is_whole_number,
    "loops": lambda value: is_dict(value) and all(isinstance(leaf, (int, str)) for leaf in _leaves(value)),
    "callbacks": is_dict,
    "optimizer_states": lambda value: type(value) is list and is_plain(value),
    "lr_schedulers": lambda value: type(value) is list and is_plain(value),
    "metrics_csv": lambda value: type(value) is list and all(map(_is_row, value)),
    **dict.fromkeys(("hyper_parameters", "datamodule_hyper_parameters"), is_dict),
}


def forget_training(checkpoint: dict[str, Any]) -> None:
    """Leave out how far a training had come, and the version by which Lightning would try to understand it."""
    checkpoint.pop("loops", None)
    checkpoint["pytorch-lightning_version"] = lightning.__version__


def plain_hyper_parameters(cls: type, saved: Mapping[str, Any], given: Container[str] = ()) -> dict[str, Any]:
    """What a checkpoint says of a class's own parameters; of anything else, nothing is taken.

    A number is never code. A text may be: jsonargparse imports what it names. So it is taken only where the
    parameter's annotation is made of ``int``, ``float``, ``str``, ``bool``, ``None``, ``Literal`` and paths.

    Args:
        cls: The class that is to be made.
        saved: The checkpoint's hyper-parameters.
        given: Names of parameters that come from elsewhere.

    Raises:
        InputError: If the checkpoint has anything else for a parameter that is not given: its default could silently
            be another network.
    """
    plain = {}
    for name, annotation in _parameters(cls).items():
        value = saved.get(name, ...)
        text = type(value) is str and len(value) <= 4096 and _means_text(annotation)
        if text or type(value) in (bool, int, float, NoneType):
            plain[name] = value
        elif name in saved and name not in given:
            raise InputError(
                f"the checkpoint's {name} is {shown(value)}, which could name code: give {name} of {cls.__name__} "
                "yourself"
            )
    return plain


def _parameters(cls: type) -> dict[str, Any]:
    """Names and annotations of what a class takes, and of what its ``**kwargs`` pass on to the class above it."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        init: Any = base.__init__  # type: ignore[misc]
        try:
            parameters = [*inspect.signature(init, eval_str=True).parameters.values()][1:]
        except Exception:  # an annotation that is there for type checkers only
            parameters = [*inspect.signature(init).parameters.values()][1:]
        named = [item for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
        found = {item.name: item.annotation for item in named} | found
        if not any(item.kind is item.VAR_KEYWORD for item in parameters):
            break
    return found


def _means_text(annotation: Any) -> bool:
    """Whether no text can mean a class or a function, where this is the annotation."""
    kind = get_origin(annotation) or annotation
    if kind in (Union, UnionType):
        return all(map(_means_text, get_args(annotation)))
    return kind in (bool, int, float, str, NoneType, Literal, Path, os.PathLike)


# ------------------------------------------------------------------- the ways in


def plain_file(cls: Any, path: Any, map_location: Any, given: Container[str]) -> io.BytesIO:
    """A checkpoint for Lightning's own ``load_from_checkpoint``, with plain hyper-parameters only.

    Lightning's would have jsonargparse import what the others name, wherever one is called ``_instantiator``.

    Args:
        cls: The LightningModule or the LightningDataModule that is to be made.
        path: A path, an address or an open file.
        map_location: As in ``torch.load``; by default Lightning's, which leaves tensors on their devices.
        given: Names of parameters that the caller gives.
    """
    from lightning.pytorch.core import saving

    opened = contextlib.nullcontext(path) if hasattr(path, "read") else get_filesystem(path).open(str(path), "rb")
    with opened as file:
        content = io.BytesIO(file.read())
    checkpoint = _read(lambda: content, str(path), map_location or saving._default_map_location)
    forget_training(checkpoint)
    key = cls.CHECKPOINT_HYPER_PARAMS_KEY
    checkpoint[key] = plain_hyper_parameters(cls, checkpoint.get(key, {}), given)
    for name in (cls.CHECKPOINT_HYPER_PARAMS_NAME, cls.CHECKPOINT_HYPER_PARAMS_TYPE, "hparams", "module_arguments"):
        checkpoint.pop(name, None)  # other places, and other makers, of hyper-parameters
    plain_content = io.BytesIO()
    torch.save(checkpoint, plain_content)
    plain_content.seek(0)
    return plain_content


def safely(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``load_from_checkpoint``, with ``weights_only=True`` among them.

    Left to itself, Lightning loads an ``http`` address with full pickle, which runs what is in it.
    """
    if kwargs.get("weights_only") not in (None, True):
        raise InputError("weights_only=False would run code from the checkpoint: leave it out")
    return {**kwargs, "weights_only": True}


def plain(hparams: Any) -> None:
    """Turn paths among hyper-parameters, a subclass's too, into strings: a weights-only checkpoint has no paths."""
    for name, value in hparams.items():
        if isinstance(value, os.PathLike):
            hparams[name] = os.fspath(value)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears at ``path`` when it is whole and on disk.

    A kill at any moment leaves either the file that was there before or the new one.

    Raises:
        InputError: If it cannot be written: the disk is full, or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            remove_leftovers(path.parent)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r} ({error.strerror}): make room or the folder writable; what was there before "
            "is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if os.name == "posix":  # The new name is on disk when the folder is.
        with contextlib.suppress(OSError):  # some file systems (SMB, 9p, FUSE) cannot do that
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine have left that were killed in a write, or as they claimed a folder."""
    if os.name != "posix":
        return  # Windows has no signal that only asks whether there is a process
    names = re.compile(r"\..+\.(?:ckpt|csv|json|png|yaml)\.(\d+)\.tmp|\.claim-(\d+)-[0-9a-f]+")
    for path in folder.iterdir():
        if left := names.fullmatch(path.name):
            try:
                os.kill(int(left[1] or left[2]), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
            except (PermissionError, OverflowError):
                pass  # another user's process, or no process's number
