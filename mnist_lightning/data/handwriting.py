"""Pictures of handwriting, from any photograph to images like MNIST's."""

import numpy as np

SIDE = 20  # the longer side of MNIST's digits, in pixels


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
    y, x = (_place(pixels.sum(axis, dtype=float)) for axis in (1, 0))
    image[y : y + len(pixels), x : x + pixels.shape[1]] = pixels
    return image


def _shares(size: int, covered: float) -> np.ndarray:
    """How much each old pixel gives to each new one, ``(new, size)``, if a new one covers so many old ones."""
    first, old = covered * np.arange(np.ceil(size / covered - 1e-9))[:, None], np.arange(size)
    return np.clip(np.minimum(first + covered, old + 1) - np.maximum(first, old), 0, None) / covered


def _place(mass: np.ndarray) -> int:
    """Where the first pixel goes, so that the centre of mass is in the middle of 28 pixels."""
    centre = (mass * np.arange(len(mass))).sum() / max(mass.sum(), 1)
    return int(np.clip(np.floor(14.5 - centre), 0, 28 - len(mass)))
