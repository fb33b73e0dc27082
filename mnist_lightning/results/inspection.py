"""A look at the data before training: its shapes, its ranges, its counts, and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.results import style
from mnist_lightning.results.style import COLORS, DIGITS, class_word, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 10  # classes that have a row of samples each, and numbers in their bars
SHORT = {"training": "train", "validation": "val", "test": "test"}


def describe_data(datamodule: MNISTDataModule) -> str:
    """The shapes, ranges and counts of all splits, which are loaded, as in the tutorial, in ASCII."""
    lines, counts = [], class_counts(datamodule)
    for name in counts:
        dataset = getattr(datamodule, f"{SHORT[name]}_dataset")
        images, labels = dataset.images.squeeze(1), dataset.targets
        some = np.array2string(labels.numpy(), threshold=6, separator=", ")
        span = f"{int(images.min())} ... {int(images.max())}"
        for what, tensor, values in (("images", images, span), ("labels", labels, some)):
            dtype = str(tensor.dtype).removeprefix("torch.")
            lines.append(f"{SHORT[name] + '_' + what:<12} {tuple(tensor.shape)!s:<15} {dtype:<5} {values}")
    word = class_word(datamodule.classes)
    width = max(map(len, [word, *datamodule.classes]))
    lines += ["", f"{word:>{width}}" + "".join(f"{SHORT[name]:>16}" for name in counts)]
    for number, name in enumerate(datamodule.classes):
        shares = [f"{int(count[number]):>8,}{int(count[number]) / int(count.sum()):>8.1%}" for count in counts.values()]
        lines.append(f"{name:>{width}}" + "".join(shares))
    lines.append(f"{'all':>{width}}" + "".join(f"{int(count.sum()):>8,}{1:>8.1%}" for count in counts.values()))
    return "\n".join(lines)


def draw_data(datamodule: MNISTDataModule, folder: Path) -> list[Path]:
    """Write three pictures into a folder, and return their paths."""
    train, counts = datamodule.train_dataset, class_counts(datamodule)
    images, targets, called = train.images.squeeze(1), train.targets, (datamodule.name, datamodule.classes)
    means = torch.stack([images[targets == number].float().mean(0) for number in range(datamodule.num_classes)])
    pictures = {
        "samples.png": samples_picture(images, targets, *called),
        "class_counts.png": counts_picture(counts, *called),
        "mean_images.png": means_picture(means, counts["training"], *called),
    }
    return [style.save(picture, folder / name) for name, picture in pictures.items()]


def class_counts(datamodule: MNISTDataModule) -> dict[str, Tensor]:
    """How often each class occurs in each split that there is, ``(C,)`` int64."""
    counts, n = {}, datamodule.num_classes
    for name, short_name in SHORT.items():
        if (dataset := getattr(datamodule, f"{short_name}_dataset")) is not None:
            counts[name] = dataset.targets.bincount(minlength=n)
    return counts


@style.house_style()
def samples_picture(images: Tensor, targets: Tensor, name: str = "MNIST", classes: Sequence[str] = DIGITS) -> "Figure":
    """The first ten images of each class, in a row; of more than ten classes, one image of each.

    ``images`` are ``(N, H, W)`` or ``(N, 3, H, W)`` uint8, and ``targets`` are ``(N,)`` int64 from 0.
    """
    word, classes = class_word(classes), [*map(short, classes)]
    high, wide = images.shape[-2:]
    each = 10 if len(classes) <= FEW else 1
    tiles: list[np.ndarray] = []
    for number in range(len(classes)):
        found = [*images[targets == number][:each].numpy()]
        tiles += found + [np.full(images.shape[1:], np.nan)] * (each - len(found))
    colours = "from 0 (paper) to 255 (ink)" if images.ndim == 3 else "in three colours"
    size = f"{wide} x {high} pixels {colours}; of each {word} the first"
    if each == 1:
        title = f"{name}: a training image of each {word}"
        return style.mosaic(title, f"{size}.", tiles, columns=10, gap=8, width=7.4, captions=classes)[0]
    longest = max(map(len, classes))
    left, fontsize = (0.65, 14) if longest < 3 else (0.35 + 0.085 * longest, 10)
    title = f"{name}: ten training images of each {word}"
    picture, _ = style.mosaic(title, f"{size} ten.", tiles, columns=10, gap=2, left=left, width=7.85 - left)
    for i, label in enumerate(classes):
        bold: dict[str, Any] = {"size": fontsize, "weight": "bold", "color": style.BLUE}
        picture.axes[0].text(-6, (high + 2) * i + high / 2, label, ha="right", va="center", **bold)
    return picture


@style.house_style()
def counts_picture(counts: Mapping[str, Tensor], name: str = "MNIST", classes: Sequence[str] = DIGITS) -> "Figure":
    """How often each class occurs in each split, ``(C,)`` int64."""
    word, classes, n = class_word(classes), [*map(short, classes)], len(classes)
    share, every = "Share of each split", "digits" if word == "digit" else "classes"
    if n <= FEW:
        share += ", and in the bars the number of images"
    subtitle = f"{share}. Dotted: all {every} equally often."
    picture = style.blank_picture(4.2, f"{name}: how often each {word} occurs", subtitle)
    longest = max(map(len, classes))
    bottom = 0.6 if longest < 3 else min(0.45 + 0.06 * longest, 1.3)
    axes = style.axes_at(picture, 0.8, bottom, 6.9, 3.1 - bottom)
    width = 0.84 / len(counts)
    shares = {split: 100 * numbers.numpy() / max(int(numbers.sum()), 1) for split, numbers in counts.items()}
    most = max(map(max, shares.values()))
    for i, (split, numbers) in enumerate(counts.items()):
        places = np.arange(n) + (i - (len(counts) - 1) / 2) * width
        label = f"{split}: {int(numbers.sum()):,} images"
        axes.bar(places, shares[split], 0.92 * width, color=COLORS[split], label=label)
        if n <= FEW:
            for place, height, number in zip(places, shares[split], numbers.tolist(), strict=True):
                inside = height > 0.25 * most  # the bar, or else above it
                y, color = (0, "white") if inside else (height, COLORS[split])
                upright: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "bottom", "size": 9}
                axes.text(place, y + 0.02 * most, f"{number:,}", color=color, **upright)
    axes.axhline(100 / n, color=style.BLACK, linestyle=":", linewidth=1)
    axes.set(xlim=(-0.55, n - 0.45), xlabel=word, ylabel="share (% of the split)")
    axes.set_xticks(range(n), classes)
    axes.tick_params(axis="x", length=0)
    if longest > 2:
        axes.tick_params(axis="x", labelsize=min(9, 400 / n), rotation=90 if n > FEW else 30)
    axes.grid(axis="y")
    corner, look = (7.7 / style.WIDTH, 1 - 0.75 / 4.2), {"frameon": False, "borderpad": 0, "columnspacing": 1.5}
    picture.legend(loc="upper right", bbox_to_anchor=corner, ncols=len(counts), handlelength=1, **look)
    return picture


@style.house_style()
def means_picture(means: Tensor, counts: Tensor, name: str = "MNIST", classes: Sequence[str] = DIGITS) -> "Figure":
    """The mean image of each class, ``(C, H, W)`` or ``(C, 3, H, W)`` in 0 ... 255 or NaN, of ``counts``, ``(C,)``."""
    word, captions = class_word(classes), [*map(short, classes)]
    agree = "sharp where the images agree, blurred where they don't"
    if word == "digit":
        agree = "dark where the writers agree, grey where they don't"
        captions = [f"{label}: {number:,} images" for label, number in zip(classes, counts.tolist(), strict=True)]
    grey = means.ndim == 3
    picture, image = style.mosaic(
        f"{name}: the mean image of each {word}",
        f"Over {int(counts.sum()):,} training images: {agree}.",
        [*means.numpy()],
        columns=5 if len(classes) <= FEW else 10,
        gap=8,
        width=6.6 if grey else 7.4,
        captions=captions,
    )
    if grey:
        style.colour_strip(picture, image, "mean pixel: 0 (paper) to 255 (ink)")
    return picture
