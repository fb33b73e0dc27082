"""``predict photo.jpg scans/``: a run reads pictures."""

import contextlib
import csv
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.cli.predict_pictures import split
from mnist_lightning.data import PACKAGED
from mnist_lightning.data.digit_images import read_digits
from mnist_lightning.runs import Run

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "100", "--model.hidden_size", "32"]
RUN = Path("lightning_logs/version_0")

IGNORED = ["ignore:.*does not have many workers", "ignore:.*torch.cuda.*", "ignore:.*no `validation_step`"]
pytestmark = pytest.mark.filterwarnings(*IGNORED)
Read = Callable[[str], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    main(["fit", *QUICK, "--trainer.default_root_dir", str(root)])
    return root


@pytest.fixture(autouse=True)
def pages(trained: Path, tmp_path: Path, mnist: Read) -> dict[str, list[int]]:
    """A run, and pictures that it can read: their names, and the numbers of their test images."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    images, _ = mnist("t10k")
    Path("scans").mkdir()
    there = {"one.png": [0], "scans/a.png": [2, 0, 1], "scans/b.JPG": [3, 4]}
    for name, numbers in there.items():
        page = np.hstack([np.pad(images[number], 6) for number in numbers]).repeat(4, 0).repeat(4, 1)
        Image.fromarray(255 - page).save(name)
    Path("scans/notes.txt").write_text("no picture")
    return there


def read(*args: str, code: int = 0, **classes: Any) -> None:
    with pytest.raises(SystemExit) if code else contextlib.nullcontext() as stop:
        main(["predict", *args], **classes)
    assert stop is None or stop.value.code == code


def rows(run: Path = RUN) -> list[dict[str, str]]:
    with (run / "pictures.csv").open() as file:
        return list(csv.DictReader(file))


def probabilities(row: dict[str, str]) -> list[float]:
    return [float(row[f"p{number}"]) for number in range(10)]


def test_pictures_are_read_and_shown(
    pages: dict[str, list[int]], capsys: pytest.CaptureFixture[str], mnist: Read
) -> None:
    read("one.png", "--ckpt_path", "last", "scans")
    printed = capsys.readouterr()
    assert printed.err == ""
    table = rows()
    assert list(table[0]) == ["file", "left", "top", "right", "bottom", "prediction", *(f"p{n}" for n in range(10))]
    assert [row["file"] for row in table] == [name for name, numbers in pages.items() for _ in numbers]
    images, _ = mnist("t10k")
    pixels = torch.from_numpy(images[[n for numbers in pages.values() for n in numbers]])[:, None] / 255
    expected = Run.open(RUN).load(MNISTClassifier).eval().predict_step(pixels, 0)
    found = np.array([probabilities(row) for row in table])
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found, expected.detach(), atol=0.25)  # JPEG, and a page of paper
    assert [int(row["prediction"]) for row in table] == found.argmax(1).tolist()
    (box, _), *_ = read_digits("one.png")
    assert [int(table[0][side]) for side in box._fields] == list(box)
    for name in pages:
        mine = [row for row in table if row["file"] == name]
        words = [row["prediction"] if max(probabilities(row)) >= 0.5 else row["prediction"] + "?" for row in mine]
        assert f"\n{name}  {' '.join(words)}\n" in printed.out
    with Image.open(RUN / "pictures.png") as drawn:
        assert drawn.width == 1600
    assert not (RUN / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("args", "pictures"),
    [
        ("predict", ""),
        ("predict a.png b/", "a.png b/"),
        ("predict --ckpt_path last a.png --data.batch_size=8 b.png", "a.png b.png"),
        ("predict --trainer.max_epochs -1 a.png", "a.png"),
        ("predict --print_config a.png", "a.png"),
        ("predict a.png -- -b.png --c.png", "a.png -b.png --c.png"),
        ("--config c.yaml predict a.png", "a.png"),
        ("fit a.png", ""),
    ],
)
def test_what_is_no_flag_and_no_flags_value_is_a_picture(args: str, pictures: str) -> None:
    own, found = split(args.split())
    assert found == pictures.split()
    assert own == [word for word in args.split() if word not in (*found, "--")] or args == "fit a.png"


def test_reading_needs_no_mnist_and_applies_the_runs_own_transform() -> None:
    shutil.copytree(PACKAGED, "data")
    flags = ["--data.data_dir", "data", "--data.transform", "torchvision.transforms.v2.Normalize"]
    flags += ["--data.transform.mean", "[0.5]", "--data.transform.std", "[0.1]"]
    main(["fit", *QUICK, *flags])
    shutil.rmtree("data")
    read("one.png")
    (row,) = rows(RUN.with_name("version_1"))
    ((_, image),) = read_digits("one.png")
    pixels = (torch.from_numpy(image)[None, None] / 255 - 0.5) / 0.1
    expected = Run.open(RUN.with_name("version_1")).load(MNISTClassifier).eval().predict_step(pixels, 0)[0]
    np.testing.assert_allclose(probabilities(row), expected.detach(), atol=1e-5)


class Letters(MNISTDataModule):
    classes = tuple("abcdefghij")


class Unsure(MNISTClassifier):
    """Gives every image the same probabilities, of four classes."""

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.tensor([[0.4, 0.0, 0.3, 0.3]]).expand(len(batch[0]), 4)


def test_classes_have_their_names_and_a_digit_that_is_not_sure_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK], data_class=Letters)
    read("one.png", data_class=Letters)
    (row,) = rows(RUN.with_name("version_1"))
    assert list(row)[6:] == [f"p{name}" for name in "abcdefghij"]
    assert f"one.png  {row['prediction']}" in capsys.readouterr().out
    main(["fit", *QUICK], Unsure)
    read("scans/a.png", model_class=Unsure)
    assert "scans/a.png  0? 0? 0?\n" in capsys.readouterr().out


def bad_pictures() -> dict[str, str]:
    whole = Path("one.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Path("text.png").write_text("no picture")
    Path("nothing.png").touch()
    frames = [Image.new("L", (50, 50), grey) for grey in (0, 99, 200)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save("pages.tif", save_all=True, append_images=frames[1:])
    Image.new("L", (300, 200), 255).save("empty.png")
    Path("folder").mkdir()
    # A head alone: 40,000 x 40,000 pixels.
    head = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    crc = zlib.crc32(head).to_bytes(4, "big")
    Path("bomb.png").write_bytes(whole[:8] + (13).to_bytes(4, "big") + head + crc + whole[33:])
    return {
        "cut.png": "cannot be read as a picture, or was cut short",
        "text.png": "'text.png' is no picture",
        "nothing.png": "'nothing.png' is no picture",
        "moving.gif": "'moving.gif' has several pictures",
        "pages.tif": "'pages.tif' has several pictures",
        "empty.png": "'empty.png' is empty: no ink",
        "folder": "no pictures in the folder 'folder'",
        "bomb.png": "'bomb.png' has too many pixels",
        "nowhere.png": "no picture at 'nowhere.png'",
        "a\x1b[2J.png": r"no picture at 'a\x1b[2J.png'",
        "x" * 300: "no picture at",
        "": "no picture at ''",
    }


def test_each_bad_picture_is_one_line_and_the_others_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    bad = bad_pictures()
    for name, says in bad.items():
        read(name, code=2)
        printed = capsys.readouterr()
        assert printed.err.startswith("mnist_lightning: error: ")
        assert says in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
    assert not (RUN / "pictures.csv").exists()
    read(*bad, "one.png", code=2)
    lines = capsys.readouterr().err.splitlines()
    assert all(says in line for says, line in zip(bad.values(), lines, strict=True))
    assert [row["file"] for row in rows()] == ["one.png"]


def test_a_program_is_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open("one.png") as picture:
        picture.convert("L").save("scans/page.eps")
    read("scans/page.eps", code=2)
    assert "'scans/page.eps' is no picture" in capsys.readouterr().err
    Path("scans/film.mpg").touch()
    Path("scans/folder.png").mkdir()
    read("scans")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such names")
def test_an_odd_file_name_is_shown_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["=1+1.png", "a $x_1$ b.png", "tab\t.png", "日本語.png"]
    for name in names:
        shutil.copy("one.png", name)
    read(*names, names[1])  # one that is named twice is read once
    # A spreadsheet would run a cell that begins with "=".
    assert [row["file"] for row in rows()] == ["./=1+1.png", *names[1:]]
    assert "'tab\\t.png'  " in capsys.readouterr().out


def test_many_digits_are_all_written_and_not_all_drawn(mnist: Read) -> None:
    page = (
        np.pad(mnist("t10k")[0][:72], ((0, 0), (4, 4), (4, 4))).reshape(9, 8, 36, 36).swapaxes(1, 2).reshape(324, 288)
    )
    Image.fromarray(page.repeat(3, 0).repeat(3, 1)).save("many.png")
    read("many.png")
    assert len(rows()) == 72
    with Image.open(RUN / "pictures.png") as drawn:
        assert drawn.height < 3500  # 12 rows of 5


def test_what_is_no_run_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RUN / "checkpoints/last.ckpt", "mine.ckpt")
    Path("pictures.csv").write_text("mine")
    read("--ckpt_path", "mine.ckpt", "one.png", code=2)
    assert "'pictures.csv' would be replaced" in capsys.readouterr().err
    assert Path("pictures.csv").read_text() == "mine"
