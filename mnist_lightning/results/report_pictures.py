"""The pictures of a report: ``confusion_matrix.png``, ``mistakes.png`` and ``first_layer.png``."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mnist_lightning.results import style
from mnist_lightning.results.style import BLACK, DIGITS, GREY, percent, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 16  # classes whose confusion matrix has numbers


@style.house_style()
def confusion_picture(confusion: Tensor, name: str = "MNIST", classes: Sequence[str] = DIGITS) -> "Figure":
    """A confusion matrix, ``(C, C)`` int64, whose mistakes are coloured."""
    from matplotlib.colors import LinearSegmentedColormap

    word, classes, n = style.class_word(classes), [*map(short, classes)], len(confusion)
    total, mistakes = int(confusion.sum()), int(confusion.sum() - confusion.trace())
    few, short_names = n <= FEW, max(map(len, classes)) < 3
    # Names need room to the left, and above. The matrix is a square.
    margin, above = (1.9, 1.9) if few else (1.2, 1.5)
    if short_names:
        margin, above = 1.0, 1.2
    side = 6.9 - margin
    picture = style.blank_picture(
        side + above + 0.4,
        f"{name}: {mistakes:,} mistakes in {total:,} images",
        f"A row holds the images of one {word}, a column what the network called them. The diagonal is right.",
    )
    axes = style.axes_at(picture, margin, 0.4, side, side)
    shades = LinearSegmentedColormap.from_list("mistakes", ["white", "#F3B27A", style.VERMILLION, "#7A3300"])
    wrong = confusion.clone().fill_diagonal_(0)
    most = max(int(wrong.max()), 5)
    image = axes.imshow(wrong.numpy(), cmap=shades, vmin=0, vmax=most)
    for i in range(n):
        axes.fill_between((i - 0.5, i + 0.5), i - 0.5, i + 0.5, color=style.LIGHT_GREY, linewidth=0)
    if few:
        _write_numbers(axes, confusion, most, 9 if short_names else 8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
    else:
        style.colour_strip(picture, image, "images that were called so")
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("the network said", color=BLACK, labelpad=8)
    axes.set_ylabel(f"the {word} is", color=BLACK, labelpad=8)
    axes.xaxis.tick_top()
    axes.set_xticks(range(n), classes, rotation=0 if short_names else 90)
    axes.set_yticks(range(n), classes)
    size = min(12 if short_names else 10, 0.8 * 72 * side / n)
    axes.tick_params(which="both", length=0, labelsize=size, labelcolor=BLACK)
    axes.spines[:].set_visible(False)
    return picture


def _write_numbers(axes: "Axes", confusion: Tensor, most: int, small: int) -> None:
    n, rows, columns = len(confusion), confusion.sum(1).tolist(), confusion.sum(0).tolist()
    for (number, said), count in np.ndenumerate(confusion.numpy()):
        color, weight = BLACK, "normal"
        if number == said:
            weight = "bold"
        elif count > 0.55 * most:
            color = "white"  # the cell is dark
        text = f"{count:,}"
        if not count:
            color, text = "#b0b0b0", "·"
        axes.text(said, number, text, color=color, weight=weight, ha="center", va="center_baseline", size=11)
    for i, right in enumerate(confusion.diag().tolist()):
        for x, y, ha, whole in ((n - 0.35, i, "left", rows[i]), (i, n - 0.3, "center", columns[i])):
            share = percent(right / whole) if whole else "-"
            axes.text(x, y, share, ha=ha, va="center_baseline", color=GREY, size=small)
    axes.text(n - 0.35, -0.75, "recall", ha="left", va="center", color=GREY)
    axes.text(-0.65, n - 0.3, "precision", ha="right", va="center", color=GREY)


@style.house_style()
def mistakes_picture(
    images: Tensor, captions: Sequence[tuple[str, str]], mistakes: int, total: int, name: str = "MNIST"
) -> "Figure":
    """The first of so many mistakes in ``total`` images, ``(K, H, W)`` or ``(K, 3, H, W)`` uint8.

    A caption is one line, or two, and another, smaller one.
    """
    title = f"the {len(captions)} most confident of {mistakes:,} mistakes"
    if mistakes == 1:
        title = "the only mistake"
    elif mistakes == len(captions):
        title = f"all {mistakes} mistakes" if mistakes else "no mistakes"
    parts = [line.split("\n") for line, _ in captions]
    lines = max(map(len, parts), default=1) - 1  # names need two
    gap = 16 + 6 * lines
    picture, _ = style.mosaic(
        f"{name}: {title}",
        f"In {total:,} images. The percentage is the probability that the network gave its answer.",
        [*images.numpy()],
        columns=5,
        gap=gap,
        width=7.0,
        left=0.5,
        below=0.45 + 0.2 * lines,
    )
    high, wide = images.shape[-2:]
    size = min(9.5, 190 / max(len(part) for both in parts for part in both)) if lines else 9.5
    for i, (line, small) in enumerate(captions):
        x, y = (wide + gap) * (i % 5) + wide / 2, (high + gap) * (i // 5) + high + 2
        picture.axes[0].text(x, y, line, ha="center", va="top", size=size)
        picture.axes[0].text(x, y + 6 + 5 * lines, small, ha="center", va="top", size=8.5, color=GREY)
    return picture


@style.house_style()
def weights_picture(weights: Tensor, total: int, colours: bool = False) -> "Figure":
    """The weights of some of ``total`` hidden units, ``(K, H, W)`` float; of ``colours``, their means."""
    shown, units = len(weights), f"{total:,} hidden units"
    if shown < total:
        units = f"the {shown} strongest of {units}"
    # The largest 0.5 % of the weights would hide the others.
    limit = float(weights.abs().double().quantile(0.995)) or 1.0
    picture, image = style.mosaic(
        f"First layer: the weights of {units}",
        "Ink on red excites a unit, on blue inhibits it. Ordered by the size of its weights to the output.",
        [*weights.numpy()],
        columns=math.ceil(math.sqrt(shown)),
        gap=2,
        width=6.6,
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
    )
    label = "mean weight of a pixel's three colours" if colours else "weight of a pixel in 0 (paper) to 1 (ink)"
    style.colour_strip(picture, image, label, extend="both")
    return picture
