"""Importing the package starts nothing, changes nothing, and loads nothing heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCHED = """
import logging, os, pathlib, random, signal, sys, warnings
import lightning.pytorch, numpy, torch, torchmetrics.classification, torchvision.datasets

def state():
    loggers = {name: (logger.level, logger.propagate, len(logger.handlers))
               for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}
    return loggers, {
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path),
        "warnings": list(map(str, warnings.filters)), "root": (logging.root.level, list(logging.root.handlers)),
        "torch": (torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),
                  torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        "random": (random.getstate(), str(numpy.random.get_state())),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, sys.displayhook),
    }

loggers, before = state()
from mnist_lightning import MNISTClassifier, MNISTDataModule
import mnist_lightning.files, mnist_lightning.runs.folder, mnist_lightning.runs.progress
import mnist_lightning.results.predictions, mnist_lightning.results.report_callback
logged, after = state()
for name in before:
    assert before[name] == after[name], f"{name}: {before[name]} became {after[name]}"
assert loggers == {name: logged[name] for name in loggers}
"""
BARE = "import sys, mnist_lightning; print({'torch', 'lightning', 'numpy', 'torchvision'} & {*sys.modules})"


@pytest.mark.parametrize(
    ("code", "said"), [pytest.param(WATCHED, "", marks=pytest.mark.slow), (BARE, "set()\n")], ids=["all", "bare"]
)
def test_importing_the_package_changes_nothing_and_prints_nothing(code: str, said: str, tmp_path: Path) -> None:
    # Not this process's environment, which an import here may have changed already.
    plain = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP", "TMP", "USERPROFILE")
    env = {name: os.environ[name] for name in plain if name in os.environ}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert [*tmp_path.iterdir()] == []


def test_the_command_line_is_first_at_the_end_of_the_process() -> None:
    # Where something is registered before it, `end_without_cleaning` costs a second: `logging` does so.
    code = (
        "import atexit; before = atexit._ncallbacks(); import mnist_lightning.cli; print(atexit._ncallbacks() - before)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout == b"0\n"
