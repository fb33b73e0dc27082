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
from typing import Any, cast


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


def unfreeze_imports() -> None:
    """Take the above back before Python ends: triton 3.9 reports on the terminal what is left frozen."""
    gc.unfreeze()


@contextlib.contextmanager
def end_without_cleaning(program: dict[str, Any] | None = None) -> Iterator[None]:
    """Run the command of this process within this context; the process then ends by ``os._exit``.

    Python takes apart what was imported, object by object. This costs 0.9 s, as long as an epoch of training. The
    system frees all of it at once. mypy ends in the same way. Another program may run ``__main__.py`` by ``runpy``, and
    then goes on: its globals are not ``program``.
    """
    codes: list[int] = []

    def end() -> None:
        if not codes or (program is not None and vars(sys.modules["__main__"]) is not program):
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):
            return  # nobody reads the output any more: Python says so
        os._exit(codes[0])

    # Python calls such functions in reverse order, this one last. Where another one is registered already, somebody
    # watches the process from its start, as coverage does: then Python ends as usual.
    if not atexit._ncallbacks():  # noqa: SLF001  # there is no public way to count them
        atexit.register(end)
    try:
        yield
        codes.append(0)
    except KeyboardInterrupt:  # before `main` hears it
        codes.append(130)
        raise SystemExit(130) from None
    except SystemExit as stopped:
        if isinstance(stopped.code, int):
            codes.append(stopped.code)
        raise


@contextlib.contextmanager
def quick_attributes(model_class: type) -> Iterator[None]:
    """Set Lightning's note of the current hook without looking whether the note is a parameter.

    Lightning sets ``_current_fx_name`` 44 times a step. To skip ``nn.Module``'s checks there saves 0.05 ms.
    """
    own, inherited = vars(model_class).get("__setattr__"), cast(Any, model_class.__setattr__)

    def set_attribute(module: Any, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            module.__dict__[name] = value
        else:
            inherited(module, name, value)

    model_class.__setattr__ = set_attribute  # type: ignore[assignment,method-assign]  # taken back below
    try:
        yield
    finally:
        del model_class.__setattr__
        if own is not None:
            model_class.__setattr__ = own  # type: ignore[method-assign]  # as it was


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
