"""What a person watches: one bar where there is a terminal, and lines that stay."""

import contextlib
import io
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main
from mnist_lightning.runs import progress

RUN = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "20", "--model.hidden_size", "8"]
RUN += ["--data.val_size", "300", "--trainer.limit_test_batches", "2"]


class Prints(MNISTClassifier):
    """Prints while there is a bar, and between two epochs, when there is none."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 10:
            self.print("in the middle")

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.print("at the end")


class Terminal(io.StringIO):
    """Standard output as a terminal of 80 columns."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What is left on it: a carriage return goes back to the start of the line."""
        assert "\x1b" not in self.getvalue()  # no second bar, for which the cursor would have to move up
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


@pytest.fixture(autouse=True)
def _of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_a_terminal_shows_one_bar_and_keeps_only_the_lines(terminal: Terminal) -> None:
    with contextlib.redirect_stdout(terminal):
        main(["fit", *RUN], Prints)
    for bar in ("Epoch 1/2 |", "Epoch 2/2 |", "Testing |"):
        assert f"\r{bar}" in terminal.getvalue()
    lines = terminal.screen()
    assert not any("|" in line for line in lines)
    (first,) = (at for at, line in enumerate(lines) if line.startswith("Epoch 1/2"))
    shown = [re.sub(r"\d+\.\d+", "N", line) for line in lines[first - 2 : first + 6]]
    line = "Epoch {}/2  N s  train_loss N  train_acc N  val_loss N\n         val_acc N"
    printed = ["in the middle", "at the end"]
    assert shown == [*printed, *line.format(1).split("\n"), *printed, *line.format(2).split("\n")]


def test_an_evaluation_in_a_terminal_shows_its_bar_and_leaves_none(terminal: Terminal) -> None:
    main(["fit", *RUN, "--trainer.enable_progress_bar", "false"])
    for command, bar in (("validate", "Validating |"), ("test", "Testing |"), ("predict", "Predicting |")):
        assert bar not in terminal.getvalue()
        with contextlib.redirect_stdout(terminal):
            main([command, "--trainer.limit_predict_batches", "2"])
        assert f"\r{bar}" in terminal.getvalue()
    assert not any("|" in line for line in terminal.screen())


def test_ctrl_c_leaves_no_bar_behind(terminal: Terminal) -> None:
    class Interrupted(MNISTClassifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 30:
                raise KeyboardInterrupt

    with contextlib.redirect_stdout(terminal), pytest.raises(SystemExit) as stop:
        main(["fit", *RUN], Interrupted)
    assert stop.value.code == 130
    lines = terminal.screen()
    assert not any("|" in line for line in lines)
    assert sum(line.startswith("Epoch 1/2  ") for line in lines) == 1
    assert any(line.startswith("Stopped") for line in lines)


def test_without_a_terminal_there_are_only_lines(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *RUN], Prints)
    said = capsys.readouterr()
    assert "|" not in said.out
    assert "\r" not in said.out + said.err
    assert re.findall(r"^(Epoch ./2|in the middle|at the end)", said.out, re.MULTILINE) == [
        *("in the middle", "at the end", "Epoch 1/2"),
        *("in the middle", "at the end", "Epoch 2/2"),
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how long a thread has waited")
def test_one_line_says_that_other_programs_have_the_cores() -> None:
    program = f"""
import os, subprocess, sys
from mnist_lightning.cli import main
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})  # and of the child
with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
    try:
        main({["fit", *RUN]})
    finally:
        other.kill()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert re.findall("^(Epoch|Busy)", done.stdout, re.MULTILINE) == ["Epoch", "Busy", "Epoch"]


@pytest.mark.parametrize(("share", "lines"), [(0.1, 0), (0.5, 1)])
def test_a_short_wait_is_not_worth_a_line(
    share: float, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "waited_for_a_core", lambda: share * time.perf_counter())
    main(["fit", *RUN])
    assert capsys.readouterr().out.count(f"Busy     other programs kept the training waiting for {share:.0%}") == lines
