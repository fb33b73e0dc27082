"""Pictures of handwriting become images like MNIST's, and what is no handwriting becomes none."""

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from mnist_lightning import MNISTClassifier
from mnist_lightning.data.digit_images import DigitImages, read_digits
from mnist_lightning.data.normal_form import normal_form

Read = Callable[[str], tuple[np.ndarray, np.ndarray]]


def sheet(digits: Any, columns: int, scale: int = 4) -> np.ndarray:
    """A page of digits, 0 (paper) to 1 (ink)."""
    cell = 34 * scale
    page = np.zeros((-(-len(digits) // columns) * cell, columns * cell))
    for i, digit in enumerate(digits):
        y, x = np.array(divmod(i, columns)) * cell + 3 * scale
        page[y : y + 28 * scale, x : x + 28 * scale] = digit.repeat(scale, 0).repeat(scale, 1) / 255
    return page


def photograph(ink: np.ndarray, seed: int = 0, light: float = 0.5, noise: float = 0.03) -> Image.Image:
    """A photograph of it: a gradient of light, noise, JPEG."""
    across = np.linspace(0, light, ink.shape[1])
    page = 0.95 * (1 - across) * (1 - 0.9 * ink) + np.random.default_rng(seed).normal(0, noise, ink.shape)
    file = io.BytesIO()
    Image.fromarray((255 * page.clip(0, 1)).astype(np.uint8)).save(file, "JPEG", quality=50)
    return Image.open(file)


def differs(one: np.ndarray, other: np.ndarray) -> float:
    """The mean difference of two images, in grey levels; 255 * 0.15 is that of two unlike digits."""
    return float(np.abs(one.astype(float) - other).mean())


def test_mnists_own_images_have_the_normal_form(mnist: Read) -> None:
    images, _ = mnist("t10k")
    assert np.mean([np.array_equal(normal_form(image / 255), image) for image in images[:2000]]) >= 0.999
    for image in images[:99]:
        assert np.array_equal(normal_form(np.pad(image.repeat(3, 0).repeat(3, 1), 9) / 255), image)


def test_the_normal_form_averages_areas_rounds_and_centres_the_mass() -> None:
    ink = np.zeros((70, 50))
    ink[10:60, 20:30] = 1  # 50 high: 2.5 pixels become one
    image = normal_form(ink)
    rows, columns = np.nonzero(image)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4 + 1, 23 + 1, 13, 16)  # floor(14.5 - 9.5) is 5
    assert set(image[image > 0].tolist()) == {255}
    ink[10:60, 30] = 1  # the last pixel is covered to 0.4
    assert normal_form(ink)[10].tolist()[12:19] == [255, 255, 255, 255, 102, 0, 0]
    assert normal_form(np.zeros((5, 5))).tolist() == np.zeros((28, 28)).tolist()
    assert normal_form(np.ones((1, 1), bool)).sum() == 255 * 400


@pytest.mark.parametrize("light", [True, False])
def test_a_digit_is_read_from_a_page_wherever_it_stands(mnist: Read, light: bool) -> None:
    images, _ = mnist("t10k")
    for number in (0, 1, 2, 3, 8):  # the last one is a 5 in two pieces
        page = np.pad(sheet(images[[number]], 1, 8), ((70, 20), (10, 150)))
        picture = Image.fromarray((255 * page).astype(np.uint8)) if light else photograph(page, number)
        ((box, image),) = read_digits(picture)
        assert differs(image, images[number]) < 8
        rows, columns = np.nonzero(page > 0.5)
        assert np.allclose(box, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), atol=9)


@pytest.mark.parametrize(("number", "columns"), [(10, 10), (40, 8)])
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_the_digits_of_a_page_are_found_in_reading_order(mnist: Read, number: int, columns: int, lines: int) -> None:
    images, _ = mnist("t10k")
    page = sheet(images[10 : 10 + number], columns)
    if lines:
        page[15::40] = np.maximum(page[15::40], 0.3)
    if lines == 2:
        page[:, 15::40] = np.maximum(page[:, 15::40], 0.3)
    found = [image for _, image in read_digits(photograph(page))]
    assert len(found) == number
    assert all(differs(image, images[10 + i]) < 30 for i, image in enumerate(found))


def test_lines_that_rise_are_read_one_after_the_other(mnist: Read) -> None:
    images, _ = mnist("t10k")
    page = Image.fromarray((255 * sheet(images[10:30], 5)).astype(np.uint8)).rotate(6, Image.Resampling.BILINEAR)
    boxes = np.array([box for box, _ in read_digits(page)]).reshape(4, 5, 4)
    assert (np.diff(boxes[..., 0], axis=1) > 0).all()
    assert (np.diff(boxes[..., 1], axis=0) > 50).all()


def empty_pages() -> dict[str, Image.Image]:
    blank, lines, squares = (np.zeros((450, 600)) for _ in range(3))
    lines[20::40] = squares[20::40] = squares[:, 20::40] = 0.6
    turned = np.asarray(Image.fromarray(squares.astype(np.float32)).rotate(2, Image.Resampling.BILINEAR))
    y, x = np.mgrid[-1:1:450j, -1:1:600j]
    pages = {name: Image.new("L", (600, 450), name) for name in ("white", "black", "grey")}
    pages |= {"gradient": photograph(blank, light=0.7, noise=0), "noise": photograph(blank, light=0, noise=0.1)}
    pages |= {"lines": photograph(lines), "squares": photograph(squares), "turned squares": photograph(turned)}
    pages["dark corners"] = photograph(0.3 * (x**2 + y**2))
    pages["random"] = Image.fromarray(np.random.default_rng(0).integers(0, 256, (450, 600), np.uint8))
    table = blank.copy()
    table[:, :40] = table[-40:] = 0.8
    return pages | {
        "on a dark table": photograph(table),
        "one pixel": Image.new("L", (1, 1)),
        "thin": Image.new("L", (5000, 1)),
    }


@pytest.mark.parametrize("name", empty_pages())
def test_an_empty_page_has_no_digits(name: str) -> None:
    assert read_digits(empty_pages()[name]) == []


def test_specks_are_no_digits(mnist: Read) -> None:
    images, _ = mnist("t10k")
    page = sheet(images[:4], 4)
    for y, x in np.random.default_rng(0).integers(5, 120, (20, 2)):
        page[y : y + 3, 4 * x : 4 * x + 3] = 1
    assert len(read_digits(photograph(page))) == 4
    dust = np.zeros((400, 600))
    for y, x in np.random.default_rng(0).integers(5, 390, (20, 2)):
        dust[y : y + 2, x : x + 2] = 1
    assert read_digits(photograph(dust)) == []


def test_a_thin_pen_gets_strokes_like_mnists() -> None:
    page = Image.new("L", (600, 600), 255)
    ImageDraw.Draw(page).line([(200, 150), (400, 150), (280, 450)], 0, 5)
    ((_, image),) = read_digits(page)
    assert 2 <= (image[:, 9] / 255).sum() <= 3  # the bar of the 7; the pen itself is 0.3 pixels wide


def picture(mode: str) -> Any:
    """A black 7 on white in many a form."""
    page = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(page).line([(80, 60), (220, 60), (130, 240)], 0, 20)
    black, ink, pixels = Image.new("L", page.size), Image.fromarray(255 - np.asarray(page)), np.asarray(page)
    palette, exif, turned, scan = page.convert("P"), Image.Exif(), io.BytesIO(), io.BytesIO()
    palette.info["transparency"] = 255
    exif[0x0112] = 6  # turned by 90 degrees
    page.transpose(Image.Transpose.ROTATE_90).save(turned, "JPEG", exif=exif)
    page.convert("CMYK").save(scan, "TIFF", compression="tiff_lzw")
    odd = {
        "RGBA": Image.merge("RGBA", [black, black, black, ink]),  # black on transparent black
        "LA": Image.merge("LA", [black, ink]),
        "P with transparency": palette,
        "EXIF": Image.open(turned),
        "TIFF": Image.open(scan),
        "12 of 16 bits": Image.fromarray((pixels.astype(np.uint16) * 16) & 4095),
        "array": pixels,
        "array of floats": pixels / 255,
        "array of colours": np.stack([pixels] * 3, -1),
    }
    return odd[mode] if mode in odd else page.convert(mode)


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "F", "P with transparency", "EXIF", "TIFF"]


@pytest.mark.parametrize("mode", [*MODES, "12 of 16 bits", "array", "array of floats", "array of colours"])
def test_a_picture_of_any_kind_is_read(mode: str) -> None:
    ((_, wanted),) = read_digits(picture("L"))
    ((_, image),) = read_digits(picture(mode))
    assert differs(image, wanted) < 3


def test_a_large_and_a_small_picture_are_read(mnist: Read) -> None:
    images, _ = mnist("t10k")
    ((box, image),) = read_digits(np.pad(sheet(images[[3]], 1, 40), 1000))
    assert differs(image, images[3]) < 8
    assert np.allclose(box[1::2], (1000 + 7 * 40, 1000 + 27 * 40), atol=45)
    ((box, image),) = read_digits(images[3])
    assert differs(image, images[3]) < 8
    rows, columns = np.nonzero(images[3] > 127)
    assert np.allclose(box, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), atol=1)
    ((_, image),) = read_digits(images[3][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    assert differs(image, images[3]) < 20


def test_digits_go_through_a_trainer(mnist: Read, trainer: Callable[..., Trainer]) -> None:
    images, _ = mnist("t10k")
    dataset = DigitImages([images[0], images[1]])
    image, target = dataset[0]
    assert (image.shape, image.dtype, float(image.max()), target) == ((1, 28, 28), torch.float32, 1.0, -1)
    outputs = trainer().predict(MNISTClassifier(8), DataLoader(dataset, 2))
    assert [batch.shape for batch in outputs] == [(2, 10)]
    assert torch.equal(DigitImages([images[0]], lambda batch: batch / 2)[0][0], image / 2)


@pytest.mark.slow
def test_no_command_imports_what_only_pictures_or_an_export_need() -> None:
    late = {"mnist_lightning.data.picture", "onnx", "onnxscript", "onnxruntime"}
    code = f"import sys, mnist_lightning.cli.mnist_cli; print({late} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
