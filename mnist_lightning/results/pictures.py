"""``pictures.csv`` and ``pictures.png``: what a network reads in pictures of handwriting."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from mnist_lightning.files import write_atomically
from mnist_lightning.results import figures
from mnist_lightning.results.figures import BLACK, GREY, LEFT, LIGHT_GREY, VERMILLION, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
    figures.save(_figure(readings, probabilities, names), folder / "pictures.png")


@figures.house_style()
def _figure(readings: Sequence[Reading], probabilities: Tensor, names: Sequence[str]) -> "Figure":
    """The first digits, five in a row, below the name of their file."""
    from matplotlib.patches import Rectangle

    side, across, down, heading, columns = 0.64, 1.49, 1.22, 0.36, 5  # inches, and digits in a row
    shown = readings[:DRAWN]
    files = groupby(reading.file for reading in shown)
    height = sum(heading + down * math.ceil(len([*digits]) / columns) for _, digits in files)
    some = f"the first {DRAWN} of " * (len(readings) > DRAWN)
    figure = figures.blank_figure(
        0.75 + height,
        f"What the network reads: {some}{len(readings):,} digit{'s' * (len(readings) > 1)}",
        f"Each digit in the picture, as the network saw it, and its two best guesses. Red: below {100 * SURE:.0f} %.",
    )
    axes = figures.axes_at(figure, LEFT, 0, WIDTH - 2 * LEFT, height)
    y, column, before = -down, 0, ""
    for (file, _, image, part), row in zip(shown, probabilities, strict=False):
        column = (column + 1) % columns if file == before else 0
        y += down * (column == 0)
        if file != before:
            y += heading
            name = file if file.isprintable() else repr(file)
            axes.text(0, y - 0.1, name if len(name) < 80 else f"...{name[-76:]}", va="baseline", color=GREY)
        before = file
        guesses = row.topk(min(2, len(names)))
        sure = float(guesses.values[0]) >= SURE
        color, edge = (BLACK, LIGHT_GREY) if sure else (VERMILLION, VERMILLION)
        tall, wide = (size * side / max(part.shape[:2]) for size in part.shape[:2])
        x = across * column
        left, top = x + (side - wide) / 2, y + (side - tall) / 2
        axes.imshow(part, extent=(left, left + wide, top + tall, top), interpolation="antialiased")
        x2 = x + side + 0.04
        axes.imshow(image, extent=(x2, x2 + side, y + side, y), vmin=0, vmax=255)
        for corner in (x, x2):
            axes.add_patch(Rectangle((corner, y), side, side, fill=False, edgecolor=edge))
        best: dict[str, Any] = {"fontsize": 9.5, "color": color, "fontweight": "bold"}
        styles = (best, {"fontsize": 8.5, "color": GREY})
        lines = zip(guesses.indices.tolist(), guesses.values.tolist(), strict=True)
        for line, (index, value) in enumerate(lines):
            mark = "?" * (line == 0 and not sure)
            share = f"{value:.1%}".replace("%", " %")
            axes.text(x, y + side + 0.17 + 0.16 * line, f"{names[index]}{mark}   {share}", **styles[line])
    axes.set(xlim=(0, WIDTH - 2 * LEFT), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    return figure
