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
from typing import IO, TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import lightning
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.core import saving
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from packaging.version import Version
from torch import Tensor

from mnist_lightning.errors import InputError, shown

if TYPE_CHECKING:
    from typing_extensions import Self


class PlainCheckpoints:
    """Makes a model's or a data module's checkpoints plain data, written and read without any code.

    Name it before ``LightningModule`` or ``LightningDataModule`` in the list of base classes.

    Attributes:
        never_from_checkpoints: Parameters that are never taken from a checkpoint.
    """

    never_from_checkpoints: tuple[str, ...] = ()

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, but paths become strings: a checkpoint that loads with ``weights_only=True`` has no paths."""
        frame = inspect.currentframe()
        kwargs.setdefault("frame", frame and frame.f_back)  # Lightning looks there for the arguments of the caller
        super().save_hyperparameters(*args, **kwargs)  # type: ignore[misc]  # the next base class has it
        hparams: Any = self.hparams  # type: ignore[attr-defined]  # as above
        hparams.update({name: os.fspath(value) for name, value in hparams.items() if isinstance(value, os.PathLike)})

    @_restricted_classmethod  # a class method that refuses an instance, which would stay as it is
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> "Self":  # noqa: N805
        """As Lightning's, but it takes only plain data from the checkpoint: tensors, numbers and plain text.

        Lightning itself would run code: it unpickles a file from an ``http`` address, and it imports what a
        hyper-parameter names, if there is one called ``_instantiator``.

        Raises:
            InputError: If the checkpoint holds anything else for a parameter that is not given here, or if
                ``weights_only=False`` is asked for.
        """
        if kwargs.get("weights_only") not in (None, True):
            raise InputError("weights_only=False would run code from the checkpoint: leave it out")
        kwargs["weights_only"] = True
        plain = _plain_file(cls, checkpoint_path, map_location, kwargs)
        return super().load_from_checkpoint(plain, None, *args, **kwargs)  # type: ignore[misc, no-any-return]  # as above


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a Lightning checkpoint, a local file, without running any code from it.

    Every part that Lightning or this package reads has the expected type.

    Raises:
        InputError: If there is no such file, if it is cut short or is no Lightning checkpoint, or if
            it holds anything but plain values and tensors.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises an error if a name is too long
        raise InputError(f"no checkpoint at {path!r}: give the path of a .ckpt file")
    return _read(lambda: Path(path).open("rb"), path, map_location)


def _read(opened: Callable[[], IO[bytes]], name: str, map_location: Any) -> dict[str, Any]:
    try:
        with opened() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of kinds of tensors that are refused below
            entries = zipfile.ZipFile(file).infolist()  # reads the table at the end, not the content
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > file.seek(0, os.SEEK_END):
                raise InputError(
                    f"{name!r} is compressed, and may not fit into memory: torch itself never compresses a checkpoint"
                )
            file.seek(0)
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        parts = {"state_dict": None, **checkpoint} if is_dict(checkpoint) else {"state_dict": None}
        odd = [part for part, is_kind in _KINDS.items() if part in parts and not is_kind(parts[part])]
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        allow = f"; if you wrote it yourself, allow {found[1]} by torch.serialization.add_safe_globals" if found else ""
        raise InputError(
            f"{name!r} holds more than plain values and tensors, and what it holds could be code that runs: only "
            f"checkpoints that load with weights_only=True are read{allow}"
        ) from error
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{name!r} is no checkpoint, or was cut short: give a file that fit has written") from error
    if odd:
        raise InputError(
            f"{name!r} is no Lightning checkpoint ({odd[0]} is missing or has a wrong type): give a file that fit has "
            "written"
            + ', or wrap weights by torch.save({"state_dict": model.state_dict()}, path)'
            * (odd[0] == "state_dict")
        )
    # Other programs may save no version and no callbacks. Lightning needs both: without callbacks, it calls no hook.
    # A pickled OrderedDict may have attributes, and torch would read them; a plain dict has none.
    defaults = {"pytorch-lightning_version": lightning.__version__, "callbacks": {}}
    return {**defaults, **checkpoint, "state_dict": dict(checkpoint["state_dict"])}


def _plain_file(cls: Any, path: Any, map_location: Any, given: Container[str]) -> io.BytesIO:
    """A copy of a checkpoint that has plain hyper-parameters only, as Lightning reads it.

    The path may be an address or an open file. By default, tensors stay on their devices, as in Lightning.
    """
    opened = contextlib.nullcontext(path) if hasattr(path, "read") else get_filesystem(path).open(str(path), "rb")
    with opened as file:
        content = io.BytesIO(file.read())
    default = saving._default_map_location  # noqa: SLF001  # Lightning gives its default no public name
    checkpoint = _read(lambda: content, str(path), map_location or default)
    forget_training(checkpoint)
    key = cls.CHECKPOINT_HYPER_PARAMS_KEY
    checkpoint[key] = plain_hyper_parameters(cls, checkpoint.get(key, {}), given)
    # Lightning also looks for hyper-parameters, and for what makes them, in these places.
    for name in (cls.CHECKPOINT_HYPER_PARAMS_NAME, cls.CHECKPOINT_HYPER_PARAMS_TYPE, "hparams", "module_arguments"):
        checkpoint.pop(name, None)
    plain = io.BytesIO()
    torch.save(checkpoint, plain)
    plain.seek(0)
    return plain


def forget_training(checkpoint: dict[str, Any]) -> None:
    """Remove the progress of the training, and the version by which Lightning would try to convert it."""
    checkpoint.pop("loops", None)
    checkpoint["pytorch-lightning_version"] = lightning.__version__


def plain_hyper_parameters(cls: type, saved: Mapping[str, Any], given: Container[str] = ()) -> dict[str, Any]:
    """The values that a checkpoint has for the parameters of a class; everything else in it is ignored.

    A number is always safe, and so is a list of numbers. A text may be the name of code, and jsonargparse would
    import it. A text is therefore taken only if the parameter's annotation is made of ``int``, ``float``,
    ``str``, ``bool``, ``None``, ``Literal`` and paths.

    Raises:
        InputError: If the checkpoint has any other value for a parameter that the caller has not given. To take the
            default instead could silently make another network.
    """
    plain = {}
    for name, annotation in _parameters(cls).items():
        if name in getattr(cls, "never_from_checkpoints", ()):
            continue
        value = saved.get(name, ...)
        text = type(value) is str and len(value) <= 4096 and _means_text(annotation)
        numbers = type(value) in (list, tuple) and all(type(item) in (int, float) for item in value)
        if text or numbers or type(value) in (bool, int, float, NoneType):
            plain[name] = value
        elif name in saved and name not in given:
            raise InputError(
                f"the checkpoint's {name} is {shown(value)}, which could name code: give {name} of {cls.__name__} "
                "yourself"
            )
    return plain


def _parameters(cls: type) -> dict[str, Any]:
    """Names and annotations of a class's parameters, and of its base class's, if it passes on ``**kwargs``."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        init: Any = base.__init__  # type: ignore[misc]
        try:
            parameters = [*inspect.signature(init, eval_str=True).parameters.values()][1:]
        except Exception:  # an annotation may have a name that only type checkers import
            parameters = [*inspect.signature(init).parameters.values()][1:]
        named = [item for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
        found = {item.name: item.annotation for item in named} | found
        if not any(item.kind is item.VAR_KEYWORD for item in parameters):
            break
    return found


def _means_text(annotation: Any) -> bool:
    """Whether a text for a parameter with this annotation is never taken as the name of a class or a function."""
    kind = get_origin(annotation) or annotation
    if kind in (Union, UnionType):
        return all(map(_means_text, get_args(annotation)))
    return kind in (bool, int, float, str, NoneType, Literal, Path, os.PathLike)


# ------------------------------------------------------------------- the types of a checkpoint's parts


def is_dict(value: Any) -> bool:
    """Whether a value is a dict, and of no subclass but ``OrderedDict``."""
    return type(value) in (dict, OrderedDict)


def is_dense(value: Any) -> bool:
    """Whether a value is an ordinary real tensor with its data in memory and no attributes of its own."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and not (value.is_nested or value.is_quantized or value.is_meta or value.dtype.is_complex or vars(value))
    )


def is_plain(value: Any) -> bool:
    """Whether all tensors in a value are dense; everything else that loads with ``weights_only`` is plain."""
    return all(is_dense(leaf) for leaf in _leaves(value) if isinstance(leaf, Tensor))


def is_whole_number(value: Any) -> bool:
    """Whether a value is an int from 0 that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def _leaves(value: Any) -> Iterator[Any]:
    """The values in nested dicts and lists that are no dicts or lists themselves."""
    rest = [value]
    for _ in range(1_000_000):
        if not rest:
            return
        part = rest.pop()
        if isinstance(part, (dict, list, tuple)):
            rest += [*part, *part.values()] if isinstance(part, dict) else part
        else:
            yield part
    # A list can contain itself, and nested lists can stand for far more values than the file has bytes.
    raise InputError("the checkpoint has a part of more than a million values: give one that fit has written")


def is_figure_name(name: Any) -> bool:
    """Whether a figure of ``metrics.csv`` may have this name. None begins with ``=``: a spreadsheet would run that."""
    return type(name) is str and bool(re.match(r"[^\W\d]", name)) and name.isprintable()


def _is_row(row: Any) -> bool:
    """Whether a value is a row of ``metrics.csv``."""
    return (
        is_dict(row)
        and all(map(is_whole_number, (row.get("epoch"), row.get("step"))))
        and all(map(is_figure_name, row))
        and all(type(figure) in (int, float) for figure in row.values())
    )


# All parts of a checkpoint that Lightning or this package reads. Only the weights must be there.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "state_dict": lambda value: is_dict(value) and all(map(is_dense, value.values())),
    "pytorch-lightning_version": lambda value: type(value) is str and len(value) < 40 and bool(Version(value)),
    "epoch": is_whole_number,
    "global_step": is_whole_number,
    "loops": lambda value: is_dict(value) and all(isinstance(leaf, (int, str)) for leaf in _leaves(value)),
    "callbacks": is_dict,
    "optimizer_states": lambda value: type(value) is list and is_plain(value),
    "lr_schedulers": lambda value: type(value) is list and is_plain(value),
    "num_threads": is_whole_number,
    "model_class": lambda value: type(value) is str,
    "metrics_csv": lambda value: type(value) is list and all(map(_is_row, value)),
    **dict.fromkeys(("hyper_parameters", "datamodule_hyper_parameters"), is_dict),
}


# ------------------------------------------------------------------- whole files


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears at ``path`` only when it is whole and on disk.

    If the process is killed, at any moment, the file is either the one before or the new one.

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
    with contextlib.suppress(OSError):  # Windows and some file systems (SMB, 9p, FUSE) cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # only then is the new name on disk
        finally:
            os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of this machine's processes that were killed before they were done."""
    if os.name != "posix":
        return  # on Windows, os.kill cannot ask whether a process exists
    names = re.compile(r"\..+\.(?:ckpt|csv|html|json|onnx|png|pt2|yaml)\.(\d+)\.tmp|\.claim-(\d+)-[0-9a-f]+")
    for path in folder.iterdir():
        if left := names.fullmatch(path.name):
            try:
                os.kill(int(left[1] or left[2]), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
            except (PermissionError, OverflowError):
                pass  # another user's process, or a number too large for a process
