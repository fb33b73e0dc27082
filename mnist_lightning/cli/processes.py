"""Several processes that are one run: which of them prints errors, and what they tell each other before they begin."""

import contextlib
import hashlib
import itertools
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from mnist_lightning.errors import InputError

OBSERVER = "lightning.fabric.strategies.launchers.subprocess_script"
"""The logger of Lightning's thread that kills the first process of a machine when another one has ended."""

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in the order in which Lightning reads them


def check_environment() -> None:
    """Refuse ranks that are no numbers: Lightning reads them as it is imported, and fails."""
    for name in RANKS:
        if not os.environ.get(name, "0").strip().isdecimal():
            raise InputError(
                f"the environment variable {name} must be a whole number, got {os.environ[name]!r}: unset it"
            )


def started_by_srun() -> bool:
    """Whether SLURM started this process as one task of a job step; a shell inside an allocation is none."""
    return "SLURM_STEP_ID" in os.environ


def started_by_torchrun() -> bool:
    """Whether torchrun started this process. One rank variable does not say so: it may be left over."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_launched() -> bool:
    """Whether a launcher started this process as one of several: torchrun, SLURM or Lightning's own."""
    return started_by_torchrun() or started_by_srun() or "MASTER_PORT" in os.environ


def check_launcher(processes: int) -> None:
    """Refuse a local rank that is left over: Lightning would wait for ever for the process with rank 0."""
    if processes > 1 and "LOCAL_RANK" in os.environ and not is_launched():
        raise InputError(
            f"the environment variable LOCAL_RANK is {os.environ['LOCAL_RANK']}, but no launcher has started this "
            "process: unset it"
        )


def is_connected() -> bool:
    """Whether this process is one of several that have found each other."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def prints_errors() -> bool:
    """Whether this process says what is wrong: where a launcher started several on a machine, the first does."""
    several = is_connected() or started_by_torchrun() or started_by_srun()
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


class RollCall:
    """Says to all processes that torchrun started whether this one can begin, and hears the same from them.

    Before they are connected, a process that has no checkpoint, or no data, ends; the others would
    wait for it. On machines without a common folder, they could also start from different checkpoints.
    """

    _calls = itertools.count()  # a program may run several commands, all processes in the same order

    def __init__(self) -> None:
        self._name = f"mnist_lightning/{next(self._calls)}"
        self._store: Any = None

    def ready(self, *files: str | Path | None) -> None:
        """This process can begin, from these files.

        Raises:
            InputError: If another process cannot, or if its files are not the same.
        """
        self._open()
        if self._store is None:
            return
        digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file is not None]
        answers = self._exchange({"error": None, "files": digests})
        for rank, answer in enumerate(answers):
            if answer["error"]:
                raise InputError(f"process {rank} of {len(answers)} cannot begin: {answer['error']}")
            if answer["files"] != answers[0]["files"]:
                raise InputError(
                    f"process {rank} of {len(answers)} has another run or checkpoint than process 0: copy the run's "
                    "folder from the first machine to all others"
                )

    def failed(self, error: Exception) -> None:
        """This process cannot begin; nothing to say if it has begun, or if it is alone."""
        if self._store is None:
            with contextlib.suppress(RuntimeError):
                self._open(timeout=timedelta(seconds=20))  # so long it waits until the others have heard
                if self._store is not None:
                    self._exchange({"error": str(error)})

    def _open(self, **timeout: Any) -> None:
        if started_by_torchrun() and os.environ.get("WORLD_SIZE", "1") != "1":
            from torch.distributed.rendezvous import rendezvous

            self._store, self._rank, self._world_size = next(rendezvous("env://", **timeout))

    def _exchange(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        self._store.set(f"{self._name}/{self._rank}", json.dumps(answer))
        return [json.loads(self._store.get(f"{self._name}/{rank}")) for rank in range(self._world_size)]
