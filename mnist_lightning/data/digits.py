"""Finds the digits of a page: pieces of ink, joined where they are parts of one digit."""

from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import ndimage

from mnist_lightning.data.ink import noise, threshold


class Box(NamedTuple):
    """Where a digit stands, in pixels: from ``left`` and ``top`` to before ``right`` and ``bottom``."""

    left: int
    top: int
    right: int
    bottom: int


Digit: TypeAlias = tuple[Box, np.ndarray]  # and its ink, ``(h, w)`` float in [0, 1]


def find_digits(ink: np.ndarray) -> list[Digit]:
    """The digits of a page, ``(H, W)`` float from 0 (paper) to 1 (ink), in reading order."""
    smooth = ndimage.gaussian_filter(ink, 1)
    least = max(5 * noise(smooth), 0.06)
    if not (smooth > least).any():
        return []
    dark = max(threshold(smooth[smooth > least]), least)
    mask = _without_rows(_without_rows(smooth > 0.6 * dark).T).T  # paper may be ruled, or squared
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    strongest = ndimage.maximum(smooth, labels, range(1, labels.max() + 1))
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    pieces = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        piece = _Piece({number}, box, int((labels[box] == number).sum()))
        if strongest[number - 1] > dark and _may_be_ink(piece, int((border == number).sum()), labels.shape):
            pieces.append(piece)
    found = []
    for piece in _joined(pieces):
        grow = 1 + round(0.05 * max(piece.size))  # the soft edge of the ink is part of it
        top, left = (max(side.start - grow, 0) for side in piece.box)
        bottom, right = (side.stop + grow for side in piece.box)
        part = (slice(top, bottom), slice(left, right))
        own = np.isin(labels[part], list(piece.numbers))
        near = (ndimage.distance_transform_edt(~own) <= grow) & (smooth[part] > 0.25 * dark)
        darkest = np.quantile(ink[part][own], 0.9)
        y, x = piece.box
        found.append((Box(x.start, y.start, x.stop, y.stop), (near * ink[part] / max(darkest, 1e-9)).clip(0, 1)))
    return _in_reading_order(found)


class _Piece(NamedTuple):
    """Ink that hangs together, or a digit of several such parts."""

    numbers: set[int]  # in ``labels``
    box: tuple[slice, slice]
    area: int

    @property
    def size(self) -> tuple[int, int]:  # height and width
        return self.box[0].stop - self.box[0].start, self.box[1].stop - self.box[1].start


def _may_be_ink(piece: _Piece, on_border: int, shape: tuple[int, ...]) -> bool:
    """Whether a piece is no speck, line, shadow or edge of the desk."""
    longer, shorter, page = max(piece.size), min(piece.size), max(shape)
    cut = on_border > 0.2 * longer and longer < 0.7 * page  # a digit may fill a small picture
    line = longer > 0.3 * page and shorter < 0.05 * longer
    thin = piece.area < 0.01 * longer * longer  # a scratch, or what is left of squared paper
    return longer >= 0.008 * page and on_border < 0.2 * sum(shape) and not (cut or line or thin)


def _joined(pieces: list[_Piece]) -> list[_Piece]:
    """Join the pieces of one digit, and drop specks."""
    if not pieces:
        return []
    order = sorted(pieces, key=lambda piece: piece.size[0])
    ink = np.cumsum([piece.area for piece in order])
    usual = order[np.searchsorted(ink, ink[-1] / 2)].size[0]  # half of all ink is in pieces as high
    digits = [piece for piece in order if piece.size[0] >= 0.6 * usual]
    small = [piece for piece in pieces if piece.size[0] < 0.6 * usual]
    for piece in sorted(small, key=lambda piece: -piece.area):
        near = min(digits, key=lambda digit: _gap(piece, digit))
        if _gap(piece, near) < 0.15 * usual:
            if piece.area > 0.03 * near.area:
                sides = zip(piece.box, near.box, strict=True)
                y, x = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in sides)
                digits[digits.index(near)] = _Piece(piece.numbers | near.numbers, (y, x), piece.area + near.area)
        elif piece.size[0] >= 0.25 * usual:
            digits.append(piece)
    return digits


def _gap(one: _Piece, other: _Piece) -> float:
    gaps = [max(a.start - b.stop, b.start - a.stop, 0) for a, b in zip(one.box, other.box, strict=True)]
    return float(np.hypot(*gaps))


def _without_rows(mask: np.ndarray) -> np.ndarray:
    """Without thin, straight lines across most of the width, of a slope of up to 0.1."""
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


def _in_reading_order(digits: list[Digit]) -> list[Digit]:
    """Line by line. In a line, the boxes of neighbours overlap vertically."""
    lines: list[list[Digit]] = []
    for box, ink in sorted(digits, key=lambda digit: digit[0].left):
        for line in lines:
            last = line[-1][0]
            overlap = min(box.bottom, last.bottom) - max(box.top, last.top)
            if overlap > 0.4 * min(box.bottom - box.top, last.bottom - last.top):
                line.append((box, ink))
                break
        else:
            lines.append([(box, ink)])
    lines.sort(key=lambda line: np.mean([box.top + box.bottom for box, _ in line]))
    return [digit for line in lines for digit in line]
