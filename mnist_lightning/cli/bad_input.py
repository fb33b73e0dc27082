"""Bad input: refused before anything is made, and said in one line."""

import contextlib
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mnist_lightning.errors import InputError

YAML = "yaml without aliases"  # the name under which jsonargparse finds the loader


def is_ctrl_c(error: BaseException) -> bool:
    """Whether this is a KeyboardInterrupt, or what Lightning makes of one."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in (error, error.__context__))


def is_refused_by_a_callback(error: BaseException) -> bool:
    """Whether one of Lightning's callbacks has raised this: a flag named it, and it does not fit the run."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("lightning.pytorch.callbacks.")


@contextlib.contextmanager
def in_one_line(where: str = "") -> Iterator[None]:
    """While flags are read, and what they name is made or tried: whatever goes wrong, the input is to blame."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}{one_line(error)}") from error


def one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    told = message and isinstance(error, (ArgumentError, MisconfigurationException, OSError, RuntimeError, ValueError))
    return message if told else f"{type(error).__name__}: {message}".removesuffix(": ")


def _load_yaml(text: str) -> Any:
    """YAML without aliases: nine lines of them stand for gigabytes, and no option needs one."""
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise yaml.YAMLError("aliases (*name) are not read: write out what they stand for")
    return get_loader("yaml")(text)


set_loader(YAML, _load_yaml, (yaml.YAMLError,))


def parse(parser: ArgumentParser, args: Sequence[str], **kwargs: Any) -> Namespace:
    """Parse, or say in one line what is wrong, and in which file, unless a flag is to blame.

    Raises:
        InputError: If something is.
    """
    try:
        return parser.parse_args(list(args), **kwargs)
    except Exception as error:
        message = one_line(error)
        given = [arg.partition("=")[::2] for arg in args]
        files = [file or args[at + 1] for at, (name, file) in enumerate(given) if name in ("-c", "--config")]
        flags = [name[2:] for name, _ in given if name.startswith("--") and name != "--config"]
        where = f" (in {', '.join(map(repr, files))})" if files and not any(flag in message for flag in flags) else ""
        raise InputError(_shortened(message) + where) from error


def _shortened(message: str) -> str:
    """What jsonargparse says, in one line that ends with what would be right."""
    key = re.match(r'Parser key "([\w.]+)":', message)
    value = re.search(r"(?:Got|Given) value: (.*)$", message)
    types = re.findall(r"Expected an? (.+?)(?=\. Got value| - |: | Given value|$)", message)
    reason = re.search(r"a callable class: (.+?)(?=\. Got value| - Expected a | Given value)", message)
    reason = reason or re.search(r"Problem with given class_path '[\w.]+': (.+?)(?= - | Given value|$)", message)
    if key and reason:
        return f"--{key[1]}: {reason[1]}"
    if not key or not value or not types:
        return message
    types = [name for name in types if not name.startswith("path but")]
    names = [re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\]", r"\1\2", name) for name in types]
    right = " or ".join(dict.fromkeys("null" if name == "NoneType" else name for name in names))
    return f"--{key[1]} cannot be {value[1]}: it must be {right}"


def check_path(name: str, folder: str | None) -> None:
    """Refuse what the system takes for no path, too long or with a NUL, before anything is made."""
    with in_one_line(f"{name} must be the path of a folder, got {folder!r}: "), contextlib.suppress(FileNotFoundError):
        os.lstat(folder or ".")


def as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def check_trainer(trainer: Namespace) -> None:
    """Refuse what Lightning takes, and then divides by, starts hundreds of processes of, or waits for in vain."""
    for name in ("check_val_every_n_epoch", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        value = trainer[name]
        if isinstance(value, (int, float)) and not value > 0:
            raise InputError(f"trainer.{name} must be above 0, got {value}")
    for name, value in trainer.items():
        if isinstance(value, int) and abs(value) >= 2**31:
            raise InputError(f"trainer.{name} must be below {2**31}, got {value}")
    cores = os.cpu_count() or 1
    devices = str(trainer.devices)
    if trainer.accelerator in ("cpu", "auto") and devices.isdecimal() and int(devices) > max(8, cores):
        raise InputError(f"trainer.devices {devices} would start {devices} processes: this machine has {cores} cores")
    if trainer.num_nodes > 1 and not {"MASTER_ADDR", "SLURM_STEP_ID", "LSB_JOBID"} & set(os.environ):
        raise InputError(
            f"trainer.num_nodes {trainer.num_nodes} needs a launcher that starts all of them (torchrun, SLURM): "
            "use it, or leave the flag out"
        )


def check_folder(folder: Path, names: Sequence[str]) -> None:
    """Refuse to write through a link, or over a file in a folder that is no run's."""
    if (folder / "checkpoints").is_symlink():
        raise InputError(f"{str(folder / 'checkpoints')!r} is a link, which is not followed: name the folder itself")
    there = [] if (folder / "config.yaml").is_file() else [name for name in names if os.path.lexists(folder / name)]
    if there:
        raise InputError(
            f"{str(folder / there[0])!r} would be replaced, and {str(folder)!r} is no run's folder: move the file away"
        )


def has_kind(items: Sequence[Any], kind: type) -> bool:
    return any(isinstance(item, kind) for item in items)
