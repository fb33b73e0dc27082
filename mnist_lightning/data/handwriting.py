"""Pictures of handwriting, from any photograph to images like MNIST's.

``read_digits`` finds the ink of a picture, its pieces, and the digits that they form, in reading order. ``normal_form``
gives each of them the size and the place that MNIST's digits have.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor

from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.errors import InputError

SIDE = 20  # the longer side of MNIST's digits, in pixels
STROKE = 2.4  # the width of a stroke in them; the median is 2.3
THIN = 1.3  # a thinner stroke is made wider; few of MNIST's strokes are thinner
LONGEST = 1600  # the longer side of a picture when digits are looked for: a larger one is made smaller
SHORTEST = 200  # a smaller one is made larger


class Box(NamedTuple):
    """Where a digit stands in its picture, in pixels: from ``left`` and ``top`` to before ``right`` and ``bottom``."""

    left: int
    top: int
    right: int
    bottom: int


def read_digits(image: Any) -> list[tuple[Box, np.ndarray]]:
    """Find the digits in a picture, and bring each into the form of MNIST's images.

    The picture may be dark on light or light on dark, with uneven light, noise, or ruled paper. Digits must not touch.

    Args:
        image: A path, a Pillow image of any mode, or an array: ``(H, W)``, or ``(H, W, 3)`` or
            ``(H, W, 4)`` uint8. It is turned as its EXIF data say. Transparent pixels are white.

    Returns:
        A pair for each digit, in reading order: its box in the picture, and its image, ``(28, 28)`` uint8 from 0
        (paper) to 255 (ink). A page without ink gives an empty list.

    Raises:
        InputError: If the file cannot be read, is no picture, or has several.
    """
    picture = _as_picture(image)
    grey, scale, added = _resized(picture)
    found = []
    for box, digit in _in_reading_order(_digits(_ink(grey))):
        places = [round(place / scale) - added for place in box]
        left, right = np.clip(places[::2], 0, picture.width).tolist()
        top, bottom = np.clip(places[1::2], 0, picture.height).tolist()
        found.append((Box(left, top, right, bottom), normal_form(_widened(digit))))
    return found


# ------------------------------------------------------------------------------------ the picture


def formats() -> list[str]:
    """The kinds of files that are read: no EPS, which Ghostscript would run, and none that Pillow only recognises."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")]


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """A picture from a file: upright, of 8 bits, without transparency.

    Raises:
        InputError: If the file is missing, is no picture or a damaged one, is too large, or has several pictures.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):  # noqa: PTH113  # Path.is_file raises an error if a name is too long
        raise InputError(f"no picture at {name!r}: give a picture, or a folder of pictures")
    with contextlib.suppress(ImportError):
        import pillow_heif  # photographs of some phones; it need not be there

        pillow_heif.register_heif_opener()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of pictures of more than 89 million pixels
            with Image.open(path, formats=formats()) as picture:
                # A phone's JPEG may be an MPO: the first is the photograph.
                if picture.format == "MPO" or not getattr(picture, "is_animated", False):
                    return _plain(picture)
    except UnidentifiedImageError as error:
        raise InputError(f"{name!r} is no picture: give a PNG, a JPEG or another file that Pillow opens") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name!r} has too many pixels: make it smaller than 178 million") from error
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{name!r} cannot be read as a picture, or was cut short ({error})") from error
    raise InputError(
        f"{name!r} has several pictures, as an animation or a document has: save the one to read by itself"
    )


def _plain(picture: Image.Image) -> Image.Image:
    """A picture of any mode, upright, as ``L`` or ``RGB``."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):  # 16 bits, of which a scanner may use 12
        values = np.nan_to_num(np.asarray(picture, np.float32))
        values -= min(float(values.min()), 0)
        return Image.fromarray((255 * values / float(values.max() or 1)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _as_picture(image: Any) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        return open_picture(image)
    if isinstance(image, Image.Image):
        return _plain(image)
    array = np.asarray(image)
    grey = array.ndim == 2 and array.dtype.kind in "buif"
    if not array.size or not (grey or (array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(
            "an image must be a path, a Pillow image, or an array (H, W) of numbers or (H, W, 3) uint8, got "
            f"{type(image).__name__} of {array.dtype} and shape {array.shape}"
        )
    return _plain(Image.fromarray(array if array.dtype == np.uint8 else array.astype(np.float32)))


def _resized(picture: Image.Image) -> tuple[np.ndarray, float, int]:
    """A picture's brightness, ``(H, W)`` in [0, 1], in the size in which digits are looked for.

    Also how many times as large this is as the picture, and how many of its pixels were added on each side.
    """
    picture, longest = picture.convert("L"), max(picture.size)
    smaller = -(-longest // LONGEST)
    grey = np.asarray(picture.reduce(smaller), np.float32) / 255
    if longest > SHORTEST:
        return grey, 1 / smaller, 0
    # A small picture may be cut close to its digit. Give it paper, as there is along most of its border.
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    image = Image.fromarray(np.pad(grey, longest // 4 + 1, constant_values=np.median(border)))
    factor = -(-SHORTEST // longest)
    larger = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    return np.asarray(larger).clip(0, 1), factor, longest // 4 + 1


# ------------------------------------------------------------------------------------ paper and ink


def _ink(grey: np.ndarray) -> np.ndarray:
    """How much darker than the paper each pixel is (or lighter than a blackboard), ``(H, W)`` float in [0, 1].

    Without ink, all is 0.
    """
    small = np.asarray(Image.fromarray(grey).reduce(-(-max(grey.shape) // 200)))  # light needs no more pixels
    wide = max(small.shape)
    rough = ndimage.gaussian_filter(small / _plane(small), 0.5)
    skewness = _skewness(rough - ndimage.gaussian_filter(rough, 0.1 * wide))
    # Ink covers little of a page, so that the brightness of a page with ink is skewed. That of noise is not.
    if abs(skewness) < 0.7:
        return np.zeros_like(grey)
    if skewness > 0:
        grey, small = 1 - grey, 1 - small
    light = _plane(small)
    # A shadow is wider than a fifth of the picture, a stroke is not.
    paper = light * ndimage.gaussian_filter(
        ndimage.grey_closing(ndimage.gaussian_filter(small / light, 1), max(wide // 5, 3)), 1
    )
    paper = np.asarray(Image.fromarray(paper).resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    ink: np.ndarray = 1 - grey / paper.clip(0.02)
    ink = (ink - float(np.median(ink))).clip(0, 1)
    # In the dark, noise looks like ink.
    darker = ndimage.gaussian_filter(ink * paper, 1)
    return np.where(darker > 5 * _noise(ndimage.gaussian_filter(paper - grey, 1)), ink, 0)


def _plane(grey: np.ndarray) -> np.ndarray:
    """The light of the whole picture: the polynomial of the second degree that is nearest to the paper."""
    y, x = (np.linspace(-1, 1, side) for side in grey.shape)
    y, x = np.meshgrid(y, x, indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    values, paper = grey.ravel(), np.ones(grey.size, bool)
    light = values
    for _ in range(4):
        light = terms @ np.linalg.lstsq(terms[paper], values[paper], rcond=None)[0]
        rest = values - light
        paper = np.abs(rest - np.median(rest)) <= 2 * max(_noise(rest), 0.01)
    shape: np.ndarray = light.reshape(grey.shape).clip(0.05).astype(np.float32)
    return shape


def _skewness(values: np.ndarray) -> float:
    """The third moment of all values; 0 if they are all (almost) equal."""
    rest = values - values.mean()
    return 0.0 if rest.std() < 0.002 else float((rest**3).mean() / rest.std() ** 3)


def _noise(ink: np.ndarray) -> float:
    """The standard deviation of the paper, from the median, which the ink hardly moves."""
    return 1.48 * float(np.median(np.abs(ink - np.median(ink))))


def _threshold(values: np.ndarray) -> float:
    """N. Otsu (1979): the value that best divides all values into two groups."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    gap = mass / below.clip(1) - (mass[-1] - mass) / above.clip(1)
    return float(edges[1:][np.argmax(below * above * gap**2)])


# ------------------------------------------------------------------------------------ pieces and digits


def _digits(ink: np.ndarray) -> list[tuple[Box, np.ndarray]]:
    """The digits on a page: the box of each, and its ink, ``(h, w)`` float in [0, 1]."""
    smooth = ndimage.gaussian_filter(ink, 1)
    least = max(5 * _noise(smooth), 0.06)
    if not (smooth > least).any():
        return []
    threshold = max(_threshold(smooth[smooth > least]), least)
    # Without the lines of ruled or squared paper: first those from left to right, then those from above.
    mask = _without_rows(_without_rows(smooth > 0.6 * threshold).T).T
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    strongest = ndimage.maximum(smooth, labels, range(1, labels.max() + 1))
    pieces = [
        _Piece({number}, box, int((labels[box] == number).sum()))
        for number, box in enumerate(ndimage.find_objects(labels), 1)
        if strongest[number - 1] > threshold
    ]
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    found = []
    for piece in _joined([piece for piece in pieces if _may_be_ink(piece, labels, border)]):
        grow = 1 + round(0.05 * max(piece.size))  # the soft edge of the ink is part of it
        top, left = (max(side.start - grow, 0) for side in piece.box)
        bottom, right = (side.stop + grow for side in piece.box)
        part = (slice(top, bottom), slice(left, right))
        own = np.isin(labels[part], list(piece.numbers))
        near = (ndimage.distance_transform_edt(~own) <= grow) & (smooth[part] > 0.25 * threshold)
        dark = np.quantile(ink[part][own], 0.9)
        y, x = piece.box
        found.append((Box(x.start, y.start, x.stop, y.stop), (near * ink[part] / max(dark, 1e-9)).clip(0, 1)))
    return found


class _Piece(NamedTuple):
    """Ink that hangs together, or several such parts that are one digit."""

    numbers: set[int]  # in the array of labels
    box: tuple[slice, slice]
    area: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.box[0].stop - self.box[0].start, self.box[1].stop - self.box[1].start


def _may_be_ink(piece: _Piece, labels: np.ndarray, border: np.ndarray) -> bool:
    """Whether a piece can be part of a digit, and is no speck, no line, no shadow, and no edge of the desk."""
    longer, shorter, page = max(piece.size), min(piece.size), max(labels.shape)
    on_border = int(np.isin(border, list(piece.numbers)).sum())
    cut = on_border > 0.2 * longer and longer < 0.7 * page  # a digit may fill a small picture
    line = longer > 0.3 * page and shorter < 0.05 * longer
    thin = piece.area < 0.01 * longer * longer  # a scratch, or what is left of squared paper
    return longer >= 0.008 * page and on_border < 0.1 * len(border) and not (cut or line or thin)


def _joined(pieces: list[_Piece]) -> list[_Piece]:
    """The digits: pieces of one joined, specks dropped."""
    if not pieces:
        return []
    order = sorted(pieces, key=lambda piece: piece.size[0])
    ink = np.cumsum([piece.area for piece in order])
    usual = order[np.searchsorted(ink, ink[-1] / 2)].size[0]  # half of all ink is in pieces that are at least as high
    digits = [piece for piece in order if piece.size[0] >= 0.6 * usual]
    for piece in sorted(pieces, key=lambda piece: -piece.area):
        if piece.size[0] >= 0.6 * usual:
            continue
        near = min(digits, key=lambda digit: _gap(piece, digit))
        if _gap(piece, near) < 0.15 * usual:
            if piece.area > 0.03 * near.area:
                digits[digits.index(near)] = _union(piece, near)
        elif piece.size[0] >= 0.25 * usual:
            digits.append(piece)
    return digits


def _gap(one: _Piece, other: _Piece) -> float:
    """How far two boxes are apart."""
    gaps = [max(a.start - b.stop, b.start - a.stop, 0) for a, b in zip(one.box, other.box, strict=True)]
    return float(np.hypot(*gaps))


def _union(one: _Piece, other: _Piece) -> _Piece:
    y, x = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one.box, other.box, strict=True))
    return _Piece(one.numbers | other.numbers, (y, x), one.area + other.area)


def _without_rows(mask: np.ndarray) -> np.ndarray:
    """The ink without thin, straight lines from left to right across most of the page, of a slope of up to 0.1."""
    width, thick = mask.shape[1], 4 + max(mask.shape) // 150
    y, x = np.nonzero(ndimage.maximum_filter1d(mask.view(np.uint8), 3, axis=0))
    places = [np.rint(y - slope * (x - width / 2)).astype(int) + width for slope in np.arange(-0.1, 0.1, 2 / width)]
    rest, lines = np.ones(len(y), bool), np.zeros_like(mask)
    for place in sorted(places, key=lambda place: -(np.bincount(place) ** 2).sum()):  # the clearest lines first
        counts = np.bincount(place[rest], minlength=mask.shape[0] + 2 * width)
        beside = np.maximum(np.roll(counts, thick), np.roll(counts, -thick))
        is_line = ndimage.binary_dilation((counts > 0.8 * width) & (beside < 0.6 * counts), iterations=thick // 2)
        on = rest & is_line[place]
        lines[y[on], x[on]] = True
        rest &= ~on
    if not lines.any():
        return mask
    # A stroke that crosses a line goes on.
    left: np.ndarray = mask & ~lines
    bridged = ndimage.binary_closing(np.pad(left, 2 * thick), np.ones((2 * thick, 1)))
    left |= lines & bridged[2 * thick : -2 * thick, 2 * thick : -2 * thick]
    return left


def _in_reading_order(found: list[tuple[Box, np.ndarray]]) -> list[tuple[Box, np.ndarray]]:
    """Lines from above, each from the left. In a line, the boxes of neighbours overlap vertically."""
    lines: list[list[tuple[Box, np.ndarray]]] = []
    for box, digit in sorted(found, key=lambda pair: pair[0].left):
        for line in lines:
            last = line[-1][0]
            overlap = min(box.bottom, last.bottom) - max(box.top, last.top)
            if overlap > 0.4 * min(box.bottom - box.top, last.bottom - last.top):
                line.append((box, digit))
                break
        else:
            lines.append([(box, digit)])
    lines.sort(key=lambda line: np.mean([box.top + box.bottom for box, _ in line]))
    return [pair for line in lines for pair in line]


# ------------------------------------------------------------------------------------ MNIST's form


def _widened(ink: np.ndarray) -> np.ndarray:
    """The ink of a thin pen with strokes as wide as MNIST's."""
    mask = np.pad(ink > 0.5, 1)
    if not mask.any():
        return ink
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    unit = max(np.ptp(rows), np.ptp(columns)) / SIDE  # one pixel of MNIST's
    # On a stripe that is w wide, the mean distance to the paper is (w + 2) / 4.
    width = 4 * float(ndimage.distance_transform_edt(mask)[mask].mean()) - 2
    if width > THIN * unit:
        return ink
    more = (STROKE * unit - width) / 2
    room = int(more) + 2
    distance = ndimage.distance_transform_edt(~np.pad(ink > 0.5, room))
    wider: np.ndarray = np.maximum((more + 0.5 - distance).clip(0, 1), np.pad(ink, room))
    return wider


def normal_form(ink: np.ndarray) -> np.ndarray:
    """One digit in the form that all images of MNIST have. MNIST's own images (nearly) all stay as they are.

    Y. LeCun et al., Gradient-based learning applied to document recognition (1998), section III.A; the details are
    those that C. Yadav and L. Bottou found: Cold case: the lost MNIST digits (2019).

    1. Only the box around all ink counts: all pixels above 0. Its longer side has ``n`` pixels.
    2. The box is made smaller, so that ``n`` pixels become 20. A new pixel is the mean of the square of ink that it
       covers, ``n / 20`` pixels wide and high: pixel ``i`` covers from ``i * n / 20`` to ``(i + 1) * n / 20``, in both
       directions. A pixel at its edge counts with the share of its area that is inside, and what lies beyond the
       box is paper. So the left and upper edges of the box are edges of pixels.
    3. The means, times 255, are rounded to whole numbers, half to even.
    4. The 20 x 20 pixels go into 28 x 28, with their centre of mass at the centre. If ``c`` is the centre of mass of
       the rounded pixels (the first of the 20 has the place 0), the first one goes to place ``floor(14.5 - c)``,
       but to none at which the ink would leave the 28 pixels.

    Args:
        ink: ``(H, W)`` bool, or float in [0, 1], from 0 (paper) to 1 (ink).

    Returns:
        ``(28, 28)`` uint8 from 0 (paper) to 255 (ink); all 0 if there is no ink.
    """
    image = np.zeros((28, 28), np.uint8)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return image
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    covered = max(box.shape) / SIDE
    means = _shares(box.shape[0], covered) @ box @ _shares(box.shape[1], covered).T
    pixels = np.rint(255 * means).astype(np.uint8)
    if not pixels.any():  # ink so thin that all of it is rounded to paper
        return image
    y, x = np.floor(14.5 - np.array(ndimage.center_of_mass(pixels))).clip(0, 28 - np.array(pixels.shape)).astype(int)
    image[y : y + len(pixels), x : x + pixels.shape[1]] = pixels
    return image


def _shares(size: int, covered: float) -> np.ndarray:
    """How much each old pixel gives to each new one, ``(new, size)``, if a new one covers so many old ones."""
    first, old = covered * np.arange(np.ceil(size / covered - 1e-9))[:, None], np.arange(size)
    shared: np.ndarray = np.minimum(first + covered, old + 1) - np.maximum(first, old)
    return shared.clip(0) / covered


class DigitImages(MNISTDataset):
    """Digits for ``Trainer.predict``, in a DataLoader. ``dataset[i]`` is ``(image, target)``, as in MNIST.

    An image is ``(1, 28, 28)`` float in [0, 1], or what ``transform`` makes of it. A target is -1: it is not known.

    Args:
        digits: Images, each ``(28, 28)`` uint8, as :func:`read_digits` gives them.
        transform: The ``transform`` of the data that the network was trained on, if it has one.
    """

    def __init__(self, digits: Sequence[np.ndarray], transform: Callable[[Tensor], Any] | None = None) -> None:
        images = torch.from_numpy(np.array(digits, np.uint8).reshape(-1, 28, 28))
        super().__init__(images, torch.full((len(images),), -1), transform)
