"""``pictures.csv`` and ``pictures.png``: what a network reads in pictures of handwriting."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from mnist_lightning.files import write_atomically
from mnist_lightning.results import style
from mnist_lightning.results.style import LEFT, WIDTH, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from mnist_lightning.data.digits import Box

DRAWN = 60  # digits in pictures.png at most
SURE = 0.5  # a digit of a lower probability is marked
COLUMNS = 5
SIDE, ACROSS, DOWN, HEADING = 0.64, 1.49, 1.22, 0.36  # inches


class Reading(NamedTuple):
    """A digit that was found in a picture."""

    file: str
    box: "Box"
    image: np.ndarray  # what the network sees: (28, 28) uint8
    part: np.ndarray  # of the picture: (h, w, 3) uint8


def cut(picture: "Image", box: "Box") -> np.ndarray:
    """A digit with the paper around it, ``(h, w, 3)`` uint8, of at most 160 pixels."""
    middle = (box.left + box.right) // 2, (box.top + box.bottom) // 2
    half = max(box.right - box.left, box.bottom - box.top) * 2 // 3 + 1
    left, top = (max(at - half, 0) for at in middle)
    right, bottom = (min(at + half, size) for at, size in zip(middle, picture.size, strict=True))
    part = picture.crop((left, top, right, bottom)).convert("RGB")
    part.thumbnail((160, 160))
    return np.asarray(part)


def write(readings: Sequence[Reading], probabilities: Tensor, names: Sequence[str], folder: Path) -> None:
    """Write ``pictures.csv`` and, of the first digits, ``pictures.png``.

    ``probabilities`` are ``(N, C)`` float, a row for each digit, and ``names`` those of the C classes.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "left", "top", "right", "bottom", "prediction", *(f"p{name}" for name in names)])
    for reading, row in zip(readings, probabilities, strict=True):
        # A spreadsheet would run a cell that begins with one of these.
        file = f"./{reading.file}" if reading.file.lstrip()[:1] in ("=", "+", "-", "@") else reading.file
        table.writerow([file, *reading.box, names[int(row.argmax())], *(f"{value:.9g}" for value in row.tolist())])
    write_atomically(folder / "pictures.csv", text.getvalue().encode("utf-8", "surrogateescape"))
    style.save(_picture(readings, probabilities, names), folder / "pictures.png")


@style.house_style()
def _picture(readings: Sequence[Reading], probabilities: Tensor, names: Sequence[str]) -> "Figure":
    pairs = zip(readings[:DRAWN], probabilities, strict=False)
    files = [(file, [*digits]) for file, digits in groupby(pairs, lambda pair: pair[0].file)]
    height = sum(HEADING + DOWN * math.ceil(len(digits) / COLUMNS) for _, digits in files)
    number = f"{len(readings):,} digits"
    if len(readings) == 1:
        number = "1 digit"
    elif len(readings) > DRAWN:
        number = f"the first {DRAWN} of {number}"
    picture = style.blank_picture(
        0.75 + height,
        f"What the network reads: {number}",
        f"Each digit in the picture, as the network saw it, and its two best guesses. Red: below {percent(SURE, 0)}.",
    )
    axes, y = style.axes_at(picture, LEFT, 0, WIDTH - 2 * LEFT, height), 0.0
    for file, digits in files:
        y += HEADING
        name = file if file.isprintable() else repr(file)
        if len(name) >= 80:
            name = f"...{name[-76:]}"
        axes.text(0, y - 0.1, name, va="baseline", color=style.GREY)
        for i, (reading, row) in enumerate(digits):
            _draw(axes, ACROSS * (i % COLUMNS), y + DOWN * (i // COLUMNS), reading, row, names)
        y += DOWN * math.ceil(len(digits) / COLUMNS)
    axes.set(xlim=(0, WIDTH - 2 * LEFT), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    return picture


def _draw(axes: "Axes", x: float, y: float, reading: Reading, row: Tensor, names: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    tall, wide = (size * SIDE / max(reading.part.shape[:2]) for size in reading.part.shape[:2])
    left, top = x + (SIDE - wide) / 2, y + (SIDE - tall) / 2
    axes.imshow(reading.part, extent=(left, left + wide, top + tall, top), interpolation="antialiased")
    x2 = x + SIDE + 0.04
    axes.imshow(reading.image, extent=(x2, x2 + SIDE, y + SIDE, y), vmin=0, vmax=255)
    shares, places = (guesses.tolist() for guesses in row.topk(min(2, len(names))))
    best, *others = zip((names[place] for place in places), shares, strict=True)
    color, edge, mark = style.BLACK, style.LIGHT_GREY, ""
    if best[1] < SURE:
        color, edge, mark = style.VERMILLION, style.VERMILLION, "?"
    for corner in (x, x2):
        axes.add_patch(Rectangle((corner, y), SIDE, SIDE, fill=False, edgecolor=edge))
    below = y + SIDE + 0.17
    axes.text(x, below, f"{best[0]}{mark}   {percent(best[1])}", fontsize=9.5, color=color, fontweight="bold")
    for name, share in others:
        axes.text(x, below + 0.16, f"{name}   {percent(share)}", fontsize=8.5, color=style.GREY)
