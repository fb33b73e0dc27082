"""Ctrl-C while a command begins: it ends the process at once, as there is nothing to lose yet."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process until :func:`becomes_an_exception` is called.

    An import may swallow a KeyboardInterrupt; then a whole run would be trained after Ctrl-C.
    """
    deaf = signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # as a shell's background job is
    if not deaf and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        becomes_an_exception()


def becomes_an_exception() -> None:
    """From here on there is something to lose: Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*args: object) -> None:
    os._exit(130)
