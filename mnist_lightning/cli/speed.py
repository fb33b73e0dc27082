"""Every trick for speed on Python and Lightning, for the command's own process, each with its measured gain.

The gains were measured on 2 cores of an AMD EPYC (Zen 5), where a step of the tutorial's training takes 1.6 ms.
What is fast by itself is elsewhere: RMSprop in ``model/optimizer.py``, oneDNN in ``model/linear.py``.
"""

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def freeze_imports() -> Iterator[None]:
    """Import within this context what stays to the end, so that the garbage collector passes it over.

    Searching imported objects for garbage, a thousand times, costs 0.6 s of a command.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def end_without_cleaning() -> Iterator[None]:
    """Run the command of this process within this context; the process then ends by ``os._exit``, as mypy's does.

    Python would take apart what was imported, object by object, in 0.9 s. The system frees all of it at once.
    """
    codes: list[int] = []

    def end() -> None:
        # Python itself ends after an exception that nobody has caught, or if nobody reads the output any more.
        with contextlib.suppress(AttributeError, IndexError, OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(codes[0])

    # Python calls such functions in reverse order, this one last. Where another one is registered already, somebody
    # watches the process from its start, as coverage does: then Python ends as usual.
    if not atexit._ncallbacks():  # noqa: SLF001  # there is no public way to count them
        atexit.register(end)
    try:
        yield
        codes.append(0)
    except SystemExit as stopped:
        if isinstance(stopped.code, int):
            codes.append(stopped.code)
        raise


def no_profiler() -> Any:
    """A profiler that measures nothing, for a Trainer without one.

    Lightning's own makes a new context manager 48 times a step. One for all saves 0.04 ms.
    """
    from lightning.pytorch.profilers import PassThroughProfiler

    class NoProfiler(PassThroughProfiler):
        _nothing = contextlib.nullcontext()

        def profile(self, action_name: str) -> Any:
            return self._nothing

    return NoProfiler()


def hide_missing_gpu() -> None:
    """Say by a variable that there is no GPU, where there is none.

    A CUDA build of torch looks for one in every step of an optimizer, and opens NVIDIA's library each time: 0.17 ms.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
