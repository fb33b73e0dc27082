"""``predict photo.jpg scans/``: a run reads pictures."""

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
from lightning.pytorch import LightningModule
from PIL import Image

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.cli.pictures import split
from mnist_lightning.data import PACKAGED, read_digits
from mnist_lightning.runs import Run

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "100", "--model.hidden_size", "32"]
RUN = Path("lightning_logs/version_0")

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*torch.cuda.*")
Read = Callable[[str], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    main(["fit", *QUICK, "--trainer.default_root_dir", str(root)])
    return root


@pytest.fixture(autouse=True)
def pages(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist: Read) -> dict[str, list[int]]:
    """A run, and pictures that it can read: their names, and the numbers of their test images."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    images, _ = mnist("t10k")
    Path("scans").mkdir()
    there = {"one.png": [0], "scans/a.png": [2, 0, 1], "scans/b.JPG": [3, 4]}
    for name, numbers in there.items():
        page = np.hstack([np.pad(images[number], 6) for number in numbers]).repeat(4, 0).repeat(4, 1)
        Image.fromarray(255 - page).save(name)
    Path("scans/notes.txt").write_text("no picture")
    return there


def read(*args: str, code: int | None = None, **classes: Any) -> None:
    if code is None:
        main(["predict", *args], **classes)
        return
    with pytest.raises(SystemExit) as stop:
        main(["predict", *args], **classes)
    assert stop.value.code == code


def rows() -> list[dict[str, str]]:
    with (RUN / "pictures.csv").open() as file:
        return list(csv.DictReader(file))


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
    model = Run(RUN).load(MNISTClassifier).eval()
    expected = model.predict_step(
        torch.from_numpy(images[[n for numbers in pages.values() for n in numbers]])[:, None] / 255, 0
    )
    probabilities = np.array([[float(row[f"p{n}"]) for n in range(10)] for row in table])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(probabilities, expected.detach(), atol=0.25)  # JPEG, and a page of paper
    assert [int(row["prediction"]) for row in table] == probabilities.argmax(1).tolist()
    (box, _), *_ = read_digits("one.png")
    assert [int(table[0][side]) for side in box._fields] == list(box)
    for name in pages:
        mine = [row for row in table if row["file"] == name]
        words = [row["prediction"] + "?" * (max(float(row[f"p{n}"]) for n in range(10)) < 0.5) for row in mine]
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


def test_reading_needs_no_mnist(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(PACKAGED, "data")
    main(["fit", *QUICK, "--data.data_dir", "data", "--data.transform", "torch.sqrt"])
    shutil.rmtree("data")
    read("one.png")
    assert (RUN.with_name("version_1") / "pictures.csv").exists()


def test_the_runs_own_transform_is_applied(mnist: Read) -> None:
    flags = ["--data.transform", "torchvision.transforms.v2.Normalize"]
    flags += ["--data.transform.mean", "[0.5]", "--data.transform.std", "[0.1]"]
    main(["fit", *QUICK, *flags])
    read("one.png")
    with (RUN.with_name("version_1") / "pictures.csv").open() as file:
        (row,) = csv.DictReader(file)
    ((_, image),) = read_digits("one.png")
    pixels = (torch.from_numpy(image)[None, None] / 255 - 0.5) / 0.1
    expected = Run(RUN.with_name("version_1")).load(MNISTClassifier).eval().predict_step(pixels, 0)[0]
    np.testing.assert_allclose([float(row[f"p{n}"]) for n in range(10)], expected.detach(), atol=1e-5)


class Letters(MNISTDataModule):
    classes = tuple("abcdefghij")


class Halves(LightningModule):
    """Gives every image the same probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0].mean().reshape(1, 1)).sum()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        return torch.tensor([[0.4, 0.0, 0.3, 0.3]]).expand(len(images), 4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_classes_have_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    read("one.png", data_class=Letters)
    (row,) = rows()
    assert list(row)[6:] == [f"p{name}" for name in "abcdefghij"]
    assert row["prediction"] in "abcdefghij"
    assert f"one.png  {row['prediction']}" in capsys.readouterr().out


def test_any_module_reads_and_a_digit_that_it_is_not_sure_of_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"], Halves)
    read("scans/a.png", model_class=Halves)
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
        "x" * 5000: "no picture at",
        "": "no picture at ''",
    }


def test_each_bad_picture_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for name, says in bad_pictures().items():
        capsys.readouterr()
        read(name, code=2)
        printed = capsys.readouterr()
        assert printed.err.startswith("mnist_lightning: error: ")
        assert says in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
    assert not (RUN / "pictures.csv").exists()


def test_one_bad_picture_is_named_and_the_others_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    bad = bad_pictures()
    read(*bad, "one.png", code=2)
    printed = capsys.readouterr()
    assert printed.err.count("\n") == len(bad)
    assert all(says in line for says, line in zip(bad.values(), printed.err.splitlines(), strict=True))
    assert [row["file"] for row in rows()] == ["one.png"]


def test_a_picture_that_is_named_twice_is_read_once(capsys: pytest.CaptureFixture[str]) -> None:
    read("one.png", "one.png")
    assert len(rows()) == 1
    assert "one.png  7\n" in capsys.readouterr().out


def test_what_predict_writes_is_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    mine = RUN / "pictures.png"
    shutil.copy("one.png", mine)
    before = mine.read_bytes()
    read(str(mine), code=2)
    assert "would be replaced by what predict writes" in capsys.readouterr().err
    assert mine.read_bytes() == before


def test_a_program_is_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open("one.png") as picture:
        picture.convert("L").save("scans/page.eps")
    read("scans/page.eps", code=2)
    assert "'scans/page.eps' is no picture" in capsys.readouterr().err
    Path("scans/film.mpg").touch()
    Path("scans/folder.png").mkdir()
    read("scans")


def test_a_file_name_is_no_formula() -> None:
    shutil.copy("one.png", "=1+1.png")
    read("=1+1.png")
    assert rows()[0]["file"] == "./=1+1.png"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such names")
def test_an_odd_file_name_is_shown_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a $x_1$ b.png", "tab\t.png", "café.png", "日本語.png"):
        shutil.copy("one.png", name)
        read(name)
        assert rows()[0]["file"] == name
    assert "'tab\\t.png'  " in capsys.readouterr().out


def test_many_digits_are_all_written_and_not_all_drawn(mnist: Read) -> None:
    images, _ = mnist("t10k")
    page = np.vstack([np.hstack([np.pad(images[8 * i + j], 4) for j in range(8)]) for i in range(9)])
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
