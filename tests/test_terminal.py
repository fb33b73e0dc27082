"""What a person sees who watches a run in a terminal."""

import contextlib
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pty, fcntl, termios = (pytest.importorskip(name, reason="Windows has none") for name in ("pty", "fcntl", "termios"))

PRINTS = """
from lightning.pytorch import Callback

class Prints(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            trainer.progress_bar_callback.print("printed at batch", batch_idx)
"""


def screen(written: str) -> list[str]:
    """The lines that stay on a terminal: a carriage return goes back to the start of its line."""
    lines, at = [""], 0
    for part in re.split("([\r\n])", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written)):
        if part in ("\r", "\n"):
            at = 0
            lines += [""] * (part == "\n")
        else:
            lines[-1] = lines[-1][:at] + part + lines[-1][at + len(part) :]
            at += len(part)
    return [line.rstrip() for line in lines]


@pytest.mark.slow
def test_what_is_printed_while_a_bar_is_drawn_has_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    command = [sys.executable, "-m", "mnist_lightning", "fit", "--trainer.max_epochs", "1", "--model.hidden_size", "8"]
    command += ["--trainer.limit_train_batches", "5", "--trainer.callbacks", "prints.Prints"]
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # without a size, tqdm draws no bar
    written = b""
    with subprocess.Popen(command, cwd=tmp_path, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(terminal, 1 << 16):
                written += part
    os.close(terminal)
    assert process.returncode == 0
    assert b"|" in written  # there was a bar
    lines = screen(written.decode())
    assert "printed at batch 2" in lines
    assert [line for line in lines if line.startswith("Epoch")] == [line for line in lines if "train_loss" in line]
