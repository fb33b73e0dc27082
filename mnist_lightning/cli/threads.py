"""How many threads a command takes, and how they wait for each other."""

import contextlib
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mnist_lightning.errors import check

MOST = 8
"""A step of this network multiplies for about 1 ms on two cores. We guess that more threads would only wait."""

SPINS = "3000"
"""With fewer, an epoch takes longer on a quiet machine, 1.3 times as long with 1000. With more, on a busy one."""

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""By these, torch lets the user choose the number of threads."""

# Where Linux tells which groups limit a process, and which CPUs share a physical core.
OWN_GROUPS, GROUPS, CPUS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


@contextlib.contextmanager
def short_waits() -> Iterator[None]:
    """Import torch within this context: its threads then soon go to sleep when they wait for each other.

    At the end of each product, the threads of OpenMP wait for the last one. libgomp, which torch's wheels for Linux
    contain, lets them spin 300,000 times before they sleep, on cores that other programs may need. It reads the
    variable once, when it is loaded. Child processes do not inherit it.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@dataclass(frozen=True)
class Threads:
    """How many threads to take (``None``: as torch has it), and why these."""

    number: int | None
    why: str

    def take(self) -> None:
        """Have torch take this number, and Lightning, too, which otherwise divides the cores."""
        import torch

        if self.number is not None:
            torch.set_num_threads(self.number)
            os.environ["OMP_NUM_THREADS"] = str(self.number)


def choose(wanted: int | None, trained: int | None) -> Threads:
    """The user's number of threads, or the one with which the checkpoint was trained, or torch's."""
    if wanted is not None:
        check("threads", wanted, 1 <= wanted <= 1024, "a whole number from 1 to 1,024")
        return Threads(wanted, "--threads")
    for name in VARIABLES:
        if name in os.environ:
            return Threads(None, name)
    if trained is not None:
        return Threads(trained, "as trained before")
    import torch

    most, why = least()
    return Threads(None, why if torch.get_num_threads() == most else "as torch has it")


def limit() -> None:
    """Take no more threads than help. Only what is fixed on a machine decides: other numbers give other last bits."""
    import torch

    most, _ = least()
    if not any(name in os.environ for name in VARIABLES) and torch.get_num_threads() > most:
        torch.set_num_threads(most)


def least() -> tuple[int, str]:
    """The lowest limit of the number of threads, at least 1, and what it is."""
    cpus: Collection[int] = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    limits = {
        "the process's affinity": len(cpus),
        "the cgroup's quota": max(1, math.floor(min(_quota(), len(cpus)))),
        "one for each physical core": _physical_cores(cpus),
        "more would not help": MOST,
    }
    why = min(limits, key=lambda name: limits[name])
    return limits[why], why


def _quota() -> float:
    """How many cores the cgroups of this process allow it: the least of its own group and of those above it."""
    cores = math.inf
    for line in _lines(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = GROUPS / "cpu" if controllers else GROUPS  # version 2 has one tree for all controllers
        # In a container, the path may be the host's. The container's own group is then the root.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            files = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")  # of version 2; of version 1
            words = " ".join(line for name in files for line in _lines(folder / name)).split()
            if len(words) == 2 and words[0].isdecimal():  # otherwise it is "max" or -1
                cores = min(cores, int(words[0]) / int(words[1]))
            if folder == root:
                break
    return cores


def _physical_cores(cpus: Iterable[int]) -> int:
    """How many physical cores these CPUs are: two that share one have the same list of siblings."""
    return len({tuple(_lines(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list")) or (cpu,) for cpu in cpus})


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
