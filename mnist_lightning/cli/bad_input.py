"""What a user gets for bad input: one line that says what was wrong, what it was, and what would be right."""

import contextlib
import functools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mnist_lightning.errors import InputError

YAML = "yaml without aliases"  # the name under which jsonargparse finds the loader of this package
STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "parser_mode": YAML}
"""The options of every parser. Half a flag's name is a mistake, not a flag."""


def parse(parser: ArgumentParser, args: Sequence[str], **kwargs: Any) -> Namespace:
    """Parse arguments. If one is wrong, the InputError names the config file, unless it names a flag."""
    try:
        return parser.parse_args(list(args), **kwargs)
    except Exception as error:  # of many kinds: jsonargparse calls code of torch, Lightning and the user's
        message = one_line(error)
        given = [arg.partition("=")[::2] for arg in args]
        files = [file or args[at + 1] for at, (name, file) in enumerate(given) if name in ("-c", "--config")]
        flags = [name[2:] for name, _ in given if name.startswith("--") and name != "--config"]
        where = f" (in {', '.join(map(repr, files))})" if files and not any(flag in message for flag in flags) else ""
        raise InputError(_shortened(message) + where) from error


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


@contextlib.contextmanager
def in_one_line(before: str = "") -> Iterator[None]:
    """Turn any exception into an InputError, where only the user's input can be its cause."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of any kind: what a flag names may be code of the user's
        raise InputError(f"{before}{one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An exception's message, with its type where the message alone would not be understood."""
    message = " ".join(str(error).split())
    clear = message and isinstance(error, (ArgumentError, MisconfigurationException, OSError, RuntimeError, ValueError))
    return message if clear else f"{type(error).__name__}: {message}".removesuffix(": ")


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


def load_yaml(text: str) -> Any:
    """Load YAML without aliases: nine lines with aliases can stand for gigabytes, and no option needs one."""
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise yaml.YAMLError("aliases (*name) are not read: write out what they stand for")
    return get_loader("yaml")(text)


set_loader(YAML, load_yaml, (yaml.YAMLError,))
