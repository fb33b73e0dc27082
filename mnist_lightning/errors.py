"""The one exception that means: the input is wrong, not the program."""


class InputError(ValueError):
    """Something a user gave cannot be used.

    Its message is one line: what was wrong, what it was, what would be right. The command line
    prints that line and exits with code 2; from Python it is a ``ValueError`` like any other.
    """


def shown(value: object) -> str:
    """A value for a message: on one line, without control characters, and not longer than a person reads."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text):,} characters)"
