"""The one exception that means: the input is wrong, not the program; and the checks of numbers."""

import reprlib
from collections.abc import Callable
from numbers import Integral, Real


class InputError(ValueError):
    """Something that a user gave cannot be used.

    Its message is one line: what was wrong, what it was, what would be right. The command line
    prints that line and exits with code 2; from Python it is a ``ValueError`` like any other.
    """

    def __init__(self, message: str) -> None:
        # The message may contain a path or a value with escape sequences, and a terminal would obey them.
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(line if len(line) <= 2000 else f"{line[:1500]} ... {line[-400:]}")


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """The value as a plain int, if it is a whole number, Python's or numpy's, from ``least`` to ``most``.

    Raises:
        InputError: If it is anything else; the message has the name and the range.
    """
    number = plain_number(value)
    if isinstance(number, int) and least <= number <= most:
        return number
    raise InputError(f"{name} must be a whole number from {least:,} to {most:,}, got {value!r}")


def real_number(name: str, value: object, is_right: Callable[[float], bool], what: str) -> float:
    """The value as a plain float, if it is a number, Python's or numpy's, that ``is_right`` accepts.

    Raises:
        InputError: If it is anything else; the message has the name, and what it must be.
    """
    number = plain_number(value)
    if number is not None and is_right(number):
        return float(number)
    raise InputError(f"{name} must be {what}, got {value!r}")


def plain_number(value: object) -> int | float | None:
    """A Python or numpy number as a plain int or float; ``None`` for a bool or anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def shown(value: object, most: int = 60) -> str:
    """The ``repr`` of a value for a message: one line, and not much longer than ``most`` characters."""
    short = reprlib.Repr()  # reads only as much of a long or deep value as it shows
    short.maxstring = short.maxother = most
    text = " ".join(short.repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."
