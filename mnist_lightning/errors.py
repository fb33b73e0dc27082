"""The one exception that means: the input is wrong, not the program."""


class InputError(ValueError):
    """Something a user gave cannot be used.

    Its message is one line: what was wrong, what it was, what would be right. The command line
    prints that line and exits with code 2; from Python it is a ``ValueError`` like any other.
    """
