"""Gives a digit MNIST's size, place and stroke."""

import numpy as np
from scipy import ndimage

# In MNIST's pixels: the longer side of a digit, the usual width of its strokes, and a thin one's.
SIDE, STROKE, THIN = 20, 2.4, 1.3


def normal_form(ink: np.ndarray) -> np.ndarray:
    """One digit in the form of MNIST's images, which (nearly) all stay as they are.

    Y. LeCun et al., Gradient-based learning applied to document recognition (1998), section III.A; in detail: C. Yadav
    and L. Bottou, Cold case: the lost MNIST digits (2019).

    Ink is ``(H, W)`` bool, or float from 0 (paper) to 1; the image is ``(28, 28)`` uint8 from 0 (paper) to 255.
    """
    image = np.zeros((28, 28), np.uint8)
    if not ink.any():
        return image
    # The longer side of the ink's box becomes 20 pixels, each the rounded mean of the square that it covers.
    box = ink[_box(ink)]
    covered = max(box.shape) / SIDE
    means = _shares(box.shape[0], covered) @ box @ _shares(box.shape[1], covered).T
    pixels = np.rint(255 * means).astype(np.uint8)
    if not pixels.any():  # of a thin line, all may round to paper
        return image
    # The centre of mass goes to the middle of 28 x 28 pixels, unless the ink would leave them.
    y, x = np.floor(14.5 - np.array(ndimage.center_of_mass(pixels))).clip(0, 28 - np.array(pixels.shape)).astype(int)
    image[y : y + len(pixels), x : x + pixels.shape[1]] = pixels
    return image


def _box(ink: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _shares(size: int, covered: float) -> np.ndarray:
    """How much each old pixel gives to each new one, ``(new, size)``."""
    first, old = covered * np.arange(np.ceil(size / covered - 1e-9))[:, None], np.arange(size)
    shared: np.ndarray = np.minimum(first + covered, old + 1) - np.maximum(first, old)
    return shared.clip(0) / covered


def widened(ink: np.ndarray) -> np.ndarray:
    """The ink of a thin pen with strokes as wide as MNIST's."""
    mask = np.pad(ink > 0.5, 1)
    if not mask.any():
        return ink
    unit = (max(mask[_box(mask)].shape) - 1) / SIDE  # one pixel of MNIST's
    # On a stripe that is w wide, the mean distance to the paper is (w + 2) / 4.
    width = 4 * float(ndimage.distance_transform_edt(mask)[mask].mean()) - 2
    if width > THIN * unit:
        return ink
    more = (STROKE * unit - width) / 2
    room = int(more) + 2
    distance = ndimage.distance_transform_edt(~np.pad(ink > 0.5, room))
    wider: np.ndarray = np.maximum((more + 0.5 - distance).clip(0, 1), np.pad(ink, room))
    return wider
