"""From the arguments of a command to its options: refused in one line that says what is right.

A command that starts from a run takes that run's options as its defaults.
"""

import contextlib
import functools
import numbers
import operator
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mnist_lightning.cli.help import COMMANDS
from mnist_lightning.cli.processes import is_launched
from mnist_lightning.errors import InputError, check, shown
from mnist_lightning.runs import Run

STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
"""The options of every parser. Half a flag's name is a mistake, not a flag."""

DEFAULT_SEED = 0

# What the model takes from the data, if its class has the parameter. A list, as YAML has no tuples.
LINKS: dict[str, Callable[[Any], Any]] = {"image_shape": list, "num_classes": int}

# torchvision annotates the degrees of a rotation with it. jsonargparse does not know it by itself.
register_type(numbers.Number, serializer=float, deserializer=float, type_check=isinstance)
# jsonargparse alone makes a path called "None" of null and ~.
register_type(os.PathLike, os.fspath, Path, type_check=isinstance, fail_already_registered=False)


def new_parser(command: str) -> ArgumentParser:
    """The parser of a command that is not one of LightningCLI's."""
    parser = ArgumentParser(prog=f"python -m mnist_lightning {command}", description=COMMANDS[command], **STRICT)
    parser.add_argument("-c", "--config", action="config", help="A YAML file with these options.")
    return parser


def parse(parser: ArgumentParser, args: Sequence[str], **kwargs: Any) -> Namespace:
    """Parse arguments; if one is wrong, say so in one line."""
    try:
        return parser.parse_args(list(args), **kwargs)
    except Exception as error:  # of many kinds: jsonargparse calls code of torch, Lightning and the user's
        raise InputError(_shortened(_one_line(error))) from error


def link_shapes(parser: ArgumentParser) -> None:
    """Have the model take the shape of the images and the number of classes from the data, where its class has them."""
    for name, kind in LINKS.items():
        if f"model.{name}" in _option_names(parser):
            parser.link_arguments(f"data.{name}", f"model.{name}", kind, apply_on="instantiate")


def try_int_before_float(parser: ArgumentParser) -> None:
    """Keep 1 from becoming 1.0, which for ``limit_train_batches`` means all batches and not one.

    jsonargparse tries the types of a union in their order. But typing makes one object of ``Union[int, float]`` and
    ``Union[float, int]``: the one that any library in the process has made first. ``int | float`` keeps its order.
    """
    actions: list[Any] = parser._actions  # noqa: SLF001  # no public list of them
    for action in actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if {int, float} <= set(kinds):
            rest = (kind for kind in kinds if kind not in (int, float))
            action._typehint = functools.reduce(operator.or_, rest, int | float)  # noqa: SLF001  # no public name


def take_options(parser: ArgumentParser, given: Namespace, run: Run, classes: dict[str, type], resume: bool) -> None:
    """Make the options of a run the defaults of a command; refuse what the user gave, if it contradicts them."""
    own: dict[str, Any] = {}
    if resume and run.config is not None:
        parser.default_config_files = [str(run.config)]
        with in_one_line(f"{str(run.config)!r} cannot be read: "):
            own = vars(parser.get_defaults().as_flat())
    elif run.checkpoint is not None:
        seeds = run.checkpoint["callbacks"].get("EpochSeed", {})
        own["seed_everything"] = seeds.get("seed", DEFAULT_SEED)
        for part, cls in classes.items():
            values = run.hyper_parameters(cls, given.get(part) or ())
            own |= {f"{part}.{name}": value for name, value in values.items() if name not in LINKS}
        if not resume:
            own["data.transform"] = None
            if run.config is not None:
                with in_one_line(f"{str(run.config)!r} cannot be read: "):
                    own["data.transform"] = yaml.safe_load(run.config.read_text("utf-8"))["data"].get("transform")
        names = _option_names(parser)
        own = {name: value for name, value in own.items() if name in names}
        parser.set_defaults(own)
    fixed = {"seed_everything"} if resume else set[str]()
    if run.checkpoint is not None:
        fixed |= {"data.dataset", "data.emnist_split", "data.train_size", "data.val_size"}
        fixed |= {name for name in own if name.startswith("model.")}
    if run.checkpoint is not None and resume:
        fixed |= {"data.batch_size", "data.seed"}
    for name in sorted(fixed & own.keys()):
        if name in given and given[name] != own[name]:
            whose = "run" if run.checkpoint is None else "checkpoint"
            raise InputError(
                f"--{name} {given[name]} contradicts the {whose}'s {shown(own[name])}: leave the flag out, or train "
                "anew"
            )


def _option_names(parser: ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions}  # noqa: SLF001  # no public list of them


def choose_seed(wanted: bool | int) -> int | None:
    """The seed of a run, ``None`` for none. It wants a number, ``True`` for a random one, or ``False``."""
    if wanted is False:
        return None
    if wanted is True:  # all processes of a run take the seed that the first process has drawn
        drawn = random.SystemRandom().randrange(2**32)
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if is_launched() else drawn
    check("seed_everything", wanted, 0 <= wanted < 2**32, f"a whole number from 0 to {2**32 - 1}")
    return int(wanted)


@contextlib.contextmanager
def in_one_line(before: str = "") -> Iterator[None]:
    """Turn any exception into an InputError, where only the user's input can be its cause."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of any kind: what a flag names may be code of the user's
        raise InputError(f"{before}{_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """An exception's message, with its type where the message alone would not be understood."""
    message = " ".join(str(error).split())
    clear = (ArgumentError, MisconfigurationException, OSError, RuntimeError, ValueError)
    if message and isinstance(error, clear):
        return message
    return f"{type(error).__name__}: {message}".removesuffix(": ")


def _shortened(message: str) -> str:
    """What is wrong according to jsonargparse, in one line that ends with what would be right."""
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
    words = {"NoneType": "null", "dot import path string": "a class (package.module.Class, if it is your own)"}
    right = " or ".join(dict.fromkeys(words.get(name, name) for name in names))
    return f"--{key[1]} cannot be {value[1]}: it must be {right}"
