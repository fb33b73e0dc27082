"""Tells the ink of a page from its paper, in uneven light and in noise."""

import numpy as np
from PIL import Image
from scipy import ndimage


def ink_of(grey: np.ndarray) -> np.ndarray:
    """How much darker than the paper (or lighter than a blackboard) each pixel is, of its brightness in [0, 1]."""
    small = np.asarray(Image.fromarray(grey).reduce(-(-max(grey.shape) // 200)))  # light needs no more pixels
    wide = max(small.shape)
    rough = ndimage.gaussian_filter(small / _light(small), 0.5)
    rough -= ndimage.gaussian_filter(rough, 0.1 * wide)
    rough -= rough.mean()
    # Ink covers little of a page, so that its brightness is skewed. That of noise is not.
    skewness = float((rough**3).mean() / max(rough.std(), 1e-9) ** 3)
    if rough.std() < 0.002 or abs(skewness) < 0.7:
        return np.zeros_like(grey)
    if skewness > 0:
        grey, small = 1 - grey, 1 - small
    light = _light(small)
    # A shadow is wider than a fifth of the picture, a stroke is not.
    paper = light * ndimage.gaussian_filter(
        ndimage.grey_closing(ndimage.gaussian_filter(small / light, 1), max(wide // 5, 3)), 1
    )
    paper = np.asarray(Image.fromarray(paper).resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    ink: np.ndarray = 1 - grey / paper.clip(0.02)
    ink = (ink - float(np.median(ink))).clip(0, 1)
    # In the dark, noise looks like ink.
    darker = ndimage.gaussian_filter(ink * paper, 1)
    return np.where(darker > 5 * noise(ndimage.gaussian_filter(paper - grey, 1)), ink, 0)


def noise(ink: np.ndarray) -> float:
    """The standard deviation of the paper. It is of medians, which the ink hardly moves."""
    return 1.48 * float(np.median(np.abs(ink - np.median(ink))))


def threshold(values: np.ndarray) -> float:
    """The value that best divides all values into two groups (N. Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    gap = mass / below.clip(1) - (mass[-1] - mass) / above.clip(1)
    return float(edges[1:][np.argmax(below * above * gap**2)])


def _light(grey: np.ndarray) -> np.ndarray:
    """The light on the page: the polynomial of the second degree that is nearest to the paper."""
    y, x = (np.linspace(-1, 1, side) for side in grey.shape)
    y, x = np.meshgrid(y, x, indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    values, paper = grey.ravel(), np.ones(grey.size, bool)
    light = values
    for _ in range(4):
        light = terms @ np.linalg.lstsq(terms[paper], values[paper], rcond=None)[0]
        rest = values - light
        paper = np.abs(rest - np.median(rest)) <= 2 * max(noise(rest), 0.01)
    page: np.ndarray = light.reshape(grey.shape).clip(0.05).astype(np.float32)
    return page
