"""How the processes of a command end: one process or several, with an exit code, and one line if something is wrong."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mnist_lightning.errors import InputError

if TYPE_CHECKING:
    from mnist_lightning.runs.stopping import StopOnSIGTERM

OBSERVER = "lightning.fabric.strategies.launchers.subprocess_script"
"""The logger of Lightning's thread that kills the first process of a machine when another one has ended."""


@contextlib.contextmanager
def exit_codes(stop: "StopOnSIGTERM") -> Iterator[None]:
    """End the process as a shell and the other processes expect: :func:`main` lists the codes."""
    import logging  # not above: it registers with atexit, where the end of the process must come first

    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from torch import distributed

    connected = is_connected()
    try:
        yield
        if is_connected() and not connected:
            # Lightning leaves Gloo's threads to the end of the process, which they may turn into an abort.
            distributed.destroy_process_group()
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None  # Lightning exits with 0, and after Ctrl-C with 1
    except SystemExit as stopped:
        raise SystemExit(128 + signal.SIGINT if is_ctrl_c(stopped) else stopped.code) from None
    except Exception as error:
        if lost_another(error):
            print(
                "mnist_lightning: error: another process of this run is gone, and this one ends with it; "
                "'fit --ckpt_path last' goes on from the last epoch that was whole",
                file=sys.stderr,
            )
            logging.getLogger(OBSERVER).setLevel(logging.WARNING)  # it would say the same
            raise SystemExit(1) from None
        if stop.trainer is not None and stop.trainer.strategy.launcher is not None:
            stop.trainer.strategy.launcher.kill(signal.SIGTERM)  # the others must not wait for this process
        if isinstance(error, MisconfigurationException):
            raise InputError(" ".join(str(error).split())) from error
        raise


def prints_errors() -> bool:
    """Whether this process says what is wrong: where a launcher started several on a machine, the first does."""
    several = is_connected() or _has_launcher()
    return not several or os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def is_ctrl_c(error: BaseException) -> bool:
    """Whether this is a KeyboardInterrupt, or what Lightning makes of one."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in (error, error.__context__))


def lost_another(error: BaseException) -> bool:
    """Whether an exception means that another process is gone, or cannot be reached."""
    from torch import distributed

    # Gloo's errors are plain RuntimeErrors, which name its source file.
    gloo = is_connected() and isinstance(error, RuntimeError) and "gloo" in str(error)
    return gloo or (distributed.is_available() and isinstance(error, distributed.DistError))


def is_connected() -> bool:
    """Whether this process is one of several that have found each other."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def is_launched() -> bool:
    """Whether a launcher started this process as one of several: torchrun, SLURM or Lightning's own."""
    return _has_launcher() or "MASTER_PORT" in os.environ


def _has_launcher() -> bool:
    # A rank alone may be left over, and a shell inside a SLURM allocation is no task of a job step.
    return bool({"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"} & os.environ.keys())
