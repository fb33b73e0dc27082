"""The one exception that means: the input is wrong, not the program."""

import reprlib


class InputError(ValueError):
    """Something that a user gave cannot be used. A command prints its message, which is one line, and exits with 2."""

    def __init__(self, message: str) -> None:
        # A path or a value may hold escape sequences, and a terminal would obey them.
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(line if len(line) <= 2000 else f"{line[:1500]} ... {line[-400:]}")


def check(name: str, value: object, is_right: bool, what: str) -> None:
    """Raise ``InputError`` if the argument ``name`` is not ``what``, such as ``"a number above 0"``."""
    if not is_right:
        raise InputError(f"{name} must be {what}, got {value!r}")


def shown(value: object, most: int = 60) -> str:
    """The ``repr`` of a value for a message: one line of about ``most`` characters."""
    short = reprlib.Repr()  # reads no more of a value than it shows
    short.maxstring = short.maxother = most
    text = " ".join(short.repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."
