"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from mnist_lightning.cli import main
from mnist_lightning.errors import InputError, check
from mnist_lightning.files import write_atomically

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "8"]
LAST = Path("lightning_logs") / "version_0" / "checkpoints" / "last.ckpt"


def test_an_input_error_is_one_harmless_line() -> None:
    check("size", 3, True, "a number")
    with pytest.raises(InputError, match=r"^size must be a number above 0, got -1$"):
        check("size", -1, False, "a number above 0")
    said = str(InputError("\x1b[31mred\n" + "y" * 10_000))
    assert said.isprintable()
    assert len(said) < 2000


def test_a_failed_save_leaves_the_file_before_and_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("kept") / "file"
    write_atomically(path, b"first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_disk_that_fills_up_while_training_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no file size limit")
    main(["fit", *QUICK])
    before = LAST.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 2
    assert "cannot write" in capsys.readouterr().err
    assert LAST.read_bytes() == before
    assert [file.name for file in LAST.parent.iterdir()] == ["last.ckpt"]
