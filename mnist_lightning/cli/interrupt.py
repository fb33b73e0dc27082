"""Ctrl-C, from the start of a command to its end.

While a command begins, Ctrl-C ends the process at once, because nothing can be lost yet. Later it raises
KeyboardInterrupt. During a training, Lightning then calls ``on_exception`` of every callback and exits with 1; ``fit``
says how to go on and draws the curves (``_leave`` in ``commands.py``), and ``run_command`` makes the exit code 130.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def exit_on_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process until :func:`raise_on_ctrl_c` is called.

    An import may swallow a KeyboardInterrupt; then a whole run would be trained after Ctrl-C.
    """
    deaf = signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # as a shell's background job is
    if not deaf and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        raise_on_ctrl_c()


def raise_on_ctrl_c() -> None:
    """From here on there is something to lose: Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*args: object) -> None:
    os._exit(130)
