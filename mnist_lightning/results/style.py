"""What all pictures share. ``name`` is always what the images are called, and ``classes`` the names of the classes.

Only functions that draw import matplotlib, and never pyplot: a user's own style neither changes these pictures nor is
changed by them.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_lightning.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


# M. Okabe and K. Ito, Color Universal Design (2008): people with any kind of colour vision can tell these apart.
BLUE, VERMILLION, BLACK = "#0072B2", "#D55E00", "#000000"
GREY, LIGHT_GREY = "#595959", "#e4e4e4"
COLORS = {"training": BLUE, "validation": VERMILLION, "test": "#333333"}

WIDTH, DPI = 8.0, 200  # inches and dots: 1,600 pixels
LEFT = 0.3  # inches from the left edge to the headings
DIGITS = tuple("0123456789")


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of ``house.mplstyle``."""
    from matplotlib import style

    with style.context(["default", "mnist_lightning.results.house"]):
        yield


@house_style()
def save(picture: "Figure", path: Path) -> Path:
    """Write a picture as PNG, and return its path."""
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name may be in any language
        picture.savefig(png, format="png", metadata={"Software": None})
    write_atomically(path, png.getvalue())
    return path


def blank_picture(height: float, title: str, subtitle: str) -> "Figure":
    """An empty picture, so many inches high. The heading takes the top 0.75 inches."""
    from matplotlib.figure import Figure

    picture, left = Figure((WIDTH, height), DPI), LEFT / WIDTH
    picture.text(left, 1 - 0.33 / height, short(title, 90), size=14, weight="bold", color=BLACK)
    picture.text(left, 1 - 0.58 / height, subtitle, size=10, color=GREY)
    return picture


def axes_at(picture: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Axes at a place in inches."""
    across, up = picture.get_size_inches()
    return picture.add_axes((left / across, bottom / up, width / across, height / up))


def mosaic(
    title: str,
    subtitle: str,
    tiles: Sequence[np.ndarray],
    columns: int,
    gap: int,
    width: float,
    left: float = LEFT,
    below: float = 0.2,
    captions: Sequence[str] = (),
    **shades: Any,
) -> tuple["Figure", "AxesImage"]:
    """A picture of images, ``(H, W)`` or ``(3, H, W)`` each, in axes whose unit is the pixel. NaN is white paper.

    ``gap`` is in pixels; ``width``, ``left`` and ``below`` are in inches.
    """
    rows = max(math.ceil(len(tiles) / columns), 1)
    shape = tiles[0].shape if tiles else (28, 28)
    high, wide = shape[-2:]
    size = rows * (high + gap) - gap, columns * (wide + gap) - gap
    places = [((high + gap) * (i // columns), (wide + gap) * (i % columns)) for i in range(len(tiles))]
    sheet = np.full((*shape[:-2], *size), np.nan, np.float32)
    for (y, x), tile in zip(places, tiles, strict=True):
        sheet[..., y : y + high, x : x + wide] = tile
    if sheet.ndim == 3:
        sheet = np.moveaxis(np.nan_to_num(sheet, nan=255), 0, 2) / 255
    height, above = width * size[0] / size[1], 0.3 if captions else 0.1
    picture = blank_picture(0.75 + above + height + below, title, subtitle)
    axes = axes_at(picture, left, below, width, height)
    axes.axis("off")
    fontsize = 7 if len(captions) > 10 and max(map(len, captions)) > 2 else 10  # many names are written small
    for (y, x), caption in zip(places, captions, strict=False):
        axes.text(x + wide / 2, y - 1, caption, ha="center", va="bottom", size=fontsize)
    return picture, axes.imshow(sheet, **{"vmin": 0, "vmax": 255, **shades})


def colour_strip(picture: "Figure", image: "AxesImage", label: str, **kwargs: Any) -> None:
    """Explain the colours of an image beside it."""
    place = image.axes.get_position()
    strip = picture.add_axes((place.x1 + 0.2 / WIDTH, place.y0, 0.15 / WIDTH, place.height))
    picture.colorbar(image, cax=strip, label=label, **kwargs).outline.set_visible(False)


def marks(what: str) -> dict[str, Any]:
    """The colour and the mark of ``"training"``, ``"validation"`` or ``"test"``."""
    marker = {"training": "o", "validation": "s", "test": "D"}[what]
    return {"color": COLORS[what], "marker": marker, "clip_on": False, "zorder": 3}


def class_word(classes: Sequence[str]) -> str:
    """What a class is called."""
    return "digit" if (*classes,) == DIGITS else "class"


def short(name: str, most: int = 18) -> str:
    """A name in one line of at most so many letters."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - 3]}..."


def percent(share: float, decimals: int = 1) -> str:
    """A share in [0, 1] as ``99.7 %``."""
    return f"{100 * share:.{decimals}f} %"
