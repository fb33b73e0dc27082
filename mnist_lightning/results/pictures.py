"""``pictures.csv`` and ``pictures.png``: what a network reads in pictures of handwriting."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from mnist_lightning.files import write_atomically
from mnist_lightning.results import figures

if TYPE_CHECKING:
    from PIL.Image import Image

    from mnist_lightning.data.handwriting import Box

DRAWN = 60  # digits in pictures.png at most
SURE = 0.5  # a digit of a lower probability is marked


class Reading(NamedTuple):
    """A digit that was found in a picture."""

    file: str
    box: "Box"
    image: np.ndarray
    """What the network sees: ``(28, 28)`` uint8."""
    part: np.ndarray
    """How it stood in the picture: ``(h, w, 3)`` uint8."""


def cut(picture: "Image", box: "Box") -> np.ndarray:
    """A digit with the paper around it, a square where there is room, at most 160 pixels wide: ``(h, w, 3)`` uint8."""
    middle = (box.left + box.right) // 2, (box.top + box.bottom) // 2
    half = max(box.right - box.left, box.bottom - box.top) * 2 // 3 + 1
    ends = [(max(at - half, 0), min(at + half, size)) for at, size in zip(middle, picture.size, strict=True)]
    (left, right), (top, bottom) = ends
    part = picture.crop((left, top, right, bottom)).convert("RGB")
    part.thumbnail((160, 160))
    return np.asarray(part)


def write(readings: Sequence[Reading], probabilities: Tensor, names: Sequence[str], folder: Path) -> None:
    """Write ``pictures.csv``, a row for each digit, and ``pictures.png``, which shows the first of them.

    Args:
        readings: The digits.
        probabilities: ``(N, C)`` float, a row for each digit.
        names: What the C classes are called.
        folder: Where to write.

    Raises:
        InputError: If the files cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "left", "top", "right", "bottom", "prediction", *(f"p{name}" for name in names)])
    for reading, row in zip(readings, probabilities, strict=True):
        # A spreadsheet would run a cell that begins with one of these.
        file = f"./{reading.file}" if reading.file.lstrip()[:1] in ("=", "+", "-", "@") else reading.file
        table.writerow([file, *reading.box, names[int(row.argmax())], *(f"{value:.9g}" for value in row.tolist())])
    write_atomically(folder / "pictures.csv", text.getvalue().encode("utf-8", "surrogateescape"))
    tiles, likely = [], probabilities.topk(min(2, len(names)))
    for reading, values, classes in zip(
        readings[:DRAWN], likely.values.tolist(), likely.indices.tolist(), strict=False
    ):
        guesses = [(names[index], value) for index, value in zip(classes, values, strict=True)]
        tiles.append((reading.file, reading.part, reading.image, guesses))
    figures.save(figures.pictures_figure(tiles, len(readings), SURE), folder / "pictures.png")
