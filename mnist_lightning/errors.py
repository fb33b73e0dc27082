"""The one exception that means: the input is wrong, not the program."""

import reprlib


class InputError(ValueError):
    """Something a user gave cannot be used.

    Its message is one line: what was wrong, what it was, what would be right. The command line
    prints that line and exits with code 2; from Python it is a ``ValueError`` like any other.
    """

    def __init__(self, message: str) -> None:
        # Paths and values in it may hold anything, and a terminal obeys the escape sequences that it is sent.
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(line if len(line) <= 2000 else f"{line[:1500]} ... {line[-400:]}")


def shown(value: object, most: int = 60) -> str:
    """A value for a message: its ``repr`` in one line, with at most so many characters of it."""
    short = reprlib.Repr()  # reads no more of a long or deep value than it shows
    short.maxstring = short.maxother = most
    text = " ".join(short.repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."
