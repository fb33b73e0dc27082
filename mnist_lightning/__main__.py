"""The command in a process of its own: ``python -m mnist_lightning``, or ``mnist-lightning``."""

import atexit
import os
import sys


def command() -> None:
    """Run the command that this process was started for; when it is over, so is the process.

    To take apart what was imported, object by object, takes the interpreter 0.9 s, as long as an
    epoch of training. Here, as in mypy, the system frees all of it at once, after whatever anybody has
    registered with ``atexit`` is done.

    Raises:
        SystemExit: As :func:`mnist_lightning.cli.main` does.
    """
    codes: list[int] = []

    def end() -> None:
        # Another program may have run this one, by runpy, and end with a code of its own.
        if not codes or vars(sys.modules[__name__]) is not globals():
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):
            return  # they are not there, or nobody reads them any more: the interpreter says so
        os._exit(codes[0])

    if not atexit._ncallbacks():  # or else somebody watches the process from its start, as coverage does
        atexit.register(end)  # before all others, and so called after them
    try:
        from mnist_lightning.cli.front_door import main

        main()
        codes.append(0)
    except KeyboardInterrupt:  # before `main` hears it
        codes.append(130)
        raise SystemExit(130) from None
    except SystemExit as stopped:
        if isinstance(stopped.code, int):
            codes.append(stopped.code)
        raise


if __name__ == "__main__":
    command()
