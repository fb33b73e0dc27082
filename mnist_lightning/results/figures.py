"""Pictures of the data, the training and the mistakes. Each can be understood without a text around it.

Only the functions that draw import matplotlib. They do not touch its global state: they never use pyplot, and a user's
own style neither changes these pictures nor is changed by them. In each of them, ``name`` is what the images are
called, and ``classes`` are the names of the C classes.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mnist_lightning.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


# M. Okabe and K. Ito, Color Universal Design (2008): people with any kind of colour vision can tell these apart.
BLUE, VERMILLION, BLACK = "#0072B2", "#D55E00", "#000000"
GREY, LIGHT_GREY = "#595959", "#e4e4e4"
COLORS = {"training": BLUE, "validation": VERMILLION, "test": "#333333"}
MARKERS = {"training": "o", "validation": "s", "test": "D"}

WIDTH, DPI = 8.0, 200  # inches and dots: 1,600 pixels; shown 800 wide, 10 points are 14 pixels
LEFT = 0.3  # inches from the left edge to the headings


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Use the style that all pictures share while one is drawn."""
    from matplotlib import style

    ours = {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.labelcolor": GREY,
        "axes.axisbelow": True,
        "grid.color": LIGHT_GREY,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "image.interpolation": "nearest",
        "image.cmap": "gray_r",  # ink on paper
        "text.parse_math": False,  # a name may have a dollar sign
    }
    with style.context(["default", ours]):
        yield


@house_style()
def save(figure: "Figure", path: Path) -> Path:
    """Write a figure as PNG, 1,600 pixels wide, and return its path."""
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name may be in any language
        figure.savefig(png, format="png", metadata={"Software": None})
    write_atomically(path, png.getvalue())
    return path


def blank_figure(height: float, title: str, subtitle: str) -> "Figure":
    """An empty figure, ``height`` inches high. The heading takes the top 0.75 inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    figure.text(LEFT / WIDTH, 1 - 0.33 / height, short(title, 90), fontsize=14, fontweight="bold", color=BLACK)
    figure.text(LEFT / WIDTH, 1 - 0.58 / height, subtitle, fontsize=10, color=GREY)
    return figure


def axes_at(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Axes at a place that is given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def marks(what: str) -> dict[str, Any]:
    """The colour and the mark that a figure, such as the training error, has in every picture."""
    return {"color": COLORS[what], "marker": MARKERS[what], "clip_on": False, "zorder": 3}


# ------------------------------------------------------------------------------------ the training


@house_style()
def curves_figure(rows: Sequence[Mapping[str, float]], name: str = "MNIST") -> "Figure":
    """Loss and accuracy by epoch, of training and of validation or, without a validation, of the final test.

    ``rows`` are those of ``metrics.csv``. Missing figures are skipped. Figures that are not finite or beyond 1e30 leave
    a gap, and so do accuracies that are none.

    Returns:
        Two axes: the loss in nats, and the accuracy as a fraction. Each has one line for training and one for
        validation or test. The lines hold the figures of the rows.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    has = {name: any(f"{name}_loss" in row for row in rows) for name in ("val", "test")}
    other = "validation" if has["val"] else "test"
    rest = f" {other.capitalize()}: with the weights held still." if any(has.values()) else ""
    figure = blank_figure(
        4.1, f"{name}: loss and accuracy by epoch", f"Training: means over the epoch, while the weights move.{rest}"
    )
    for metric, label, left in (("loss", "loss: cross-entropy (nats)", 0.8), ("acc", "accuracy (% of images)", 4.75)):
        axes = axes_at(figure, left, 0.6, 2.25, 2.5)
        series = {"training": _series(rows, f"train_{metric}")}
        series[other] = _series(rows, f"val_{metric}") if other == "validation" else _final_test(rows, metric)
        if metric == "acc":  # nothing clips the lines, and a dashed one of 1e300 inches would be drawn for ever
            series = {name: (xs, [y if 0 <= y <= 1 else math.nan for y in ys]) for name, (xs, ys) in series.items()}
        for name, (epochs, values) in series.items():
            axes.plot(
                epochs,
                values,
                label=name,
                linestyle="--" if name == "validation" else "-",
                linewidth=1.8,
                markersize=7 if name == "test" else 5,
                markevery=None if len(epochs) <= 20 else [-1],
                **marks(name),
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        every = [epoch for epochs, _ in series.values() for epoch in epochs]
        if every:
            pad = 0.04 * (max(every) - min(every)) or 0.5
            axes.set_xlim(min(every) - min(pad, 0.5), max(every) + pad)  # the axis never reaches back to an epoch 0
        low, high = axes.get_ylim()
        if metric == "acc":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}"))
            axes.set_ylim(max(low, 0), min(high, 1))
        else:
            negative = any(y < 0 for _, ys in series.values() for y in ys)  # as another loss may be
            axes.set_ylim(low if negative else 0, high)
        _label_ends(axes, series, "{:.2%}" if metric == "acc" else "{:.4f}")
    return figure


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The epochs at which a metric was measured, and its values."""
    trained = [row for row in rows if "train_loss" in row]
    # A validation in the middle of an epoch is placed at its step.
    steps = (trained[-1]["step"] + 1) / (trained[-1]["epoch"] + 1) if trained else None
    epochs, values = [], []
    for row in rows:
        if name in row:
            ends_epoch = "train_loss" in row
            epochs.append((row["step"] + 1) / steps if steps and not ends_epoch else row["epoch"] + 1)
            values.append(row[name] if abs(row[name]) <= 1e30 else math.nan)
    return epochs, values


def _final_test(rows: Sequence[Mapping[str, float]], metric: str) -> tuple[list[float], list[float]]:
    """The last test, placed at the end of the last epoch."""
    epochs, values = _series(rows, f"test_{metric}")
    trained, _ = _series(rows, f"train_{metric}")
    return (trained or epochs)[-1:] if values else [], values[-1:]


def _label_ends(axes: "Axes", series: Mapping[str, tuple[list[float], list[float]]], unit: str) -> None:
    """Name each line and its last value beside the axes. Above the axes, say how far apart the last values are."""
    ends, labels = {}, {}
    for name, (epochs, values) in series.items():
        finite = [i for i, value in enumerate(values) if math.isfinite(value)]
        if finite:
            last = finite[-1]
            ends[name] = epochs[last], values[last]
            labels[name] = unit.format(values[last]).replace("%", " %")
            if last + 1 < len(values):
                labels[name] = f"NaN in\nepoch {math.ceil(epochs[last + 1])}"
    if not ends:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color=GREY)
        axes.set(xticks=[], yticks=[])
        return
    if len(ends) == 2 and len({epoch for epoch, _ in ends.values()}) == 1:
        (epoch, training), (_, other) = ends.values()
        gap = f"{100 * (training - other):.2f} points" if "%" in unit else unit.format(other - training)
        axes.vlines(epoch, min(training, other), max(training, other), color=GREY, linewidth=1, zorder=2)
        axes.set_title(f"gap at the end: {gap}".replace("-", "\N{MINUS SIGN}"), loc="right", fontsize=10, color=GREY)
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    places = [min(max((ends[name][1] - low) / (high - low), 0.05), 0.97) for name in order]
    if len(places) == 2:  # two labels of two lines need 0.17 of the axes' height between them
        middle = min(max(sum(places) / 2, 0.135), 0.885)
        if places[1] - places[0] < 0.17:
            places = [middle - 0.085, middle + 0.085]
    beside: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (8, 0), "textcoords": "offset points"}
    for name, place in zip(order, places, strict=True):
        text = f"{name}\n{labels[name]}"
        axes.annotate(text, (1, place), va="center", color=COLORS[name], linespacing=1.1, **beside)


# ---------------------------------------------------------------------------------------- the data


DIGITS = tuple("0123456789")
FEW = 10  # classes that have a row of samples each, or numbers beside their bars


def short(name: str, most: int = 18) -> str:
    """A name of the user's in one line, and not too long to be shown."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - 3]}..."


def class_word(classes: Sequence[str]) -> str:
    """What a class is called in tables and pictures."""
    return "digit" if (*classes,) == DIGITS else "class"


@house_style()
def samples_figure(images: Tensor, targets: Tensor, classes: Sequence[str] = DIGITS, name: str = "MNIST") -> "Figure":
    """The first ten training images of each class, one row for each; of more than ten classes, one image of each.

    ``images`` are ``(N, H, W)`` or ``(N, 3, H, W)`` uint8, and ``targets`` are ``(N,)`` int64 from 0.
    """
    classes = [*map(short, classes)]
    high, wide = images.shape[-2:]
    each = 10 if len(classes) <= FEW else 1
    tiles: list[np.ndarray] = []
    for number in range(len(classes)):
        tiles += [*images[targets == number][:each].numpy()]
        tiles += [_paper(images)] * (each * (number + 1) - len(tiles))  # there may be too few
    word = class_word(classes)
    colours = "from 0 (paper) to 255 (ink)" if images.ndim == 3 else "in three colours"
    title = f"{name}: {'ten training images' if each > 1 else 'a training image'} of each {word}"
    subtitle = f"{wide} x {high} pixels {colours}; of each {word} the first{' ten' if each > 1 else ''}."
    if each == 1:
        return _mosaic(title, subtitle, tiles, columns=10, gap=8, width=7.4, captions=classes)[0]
    longest = max(map(len, classes))
    left = 0.65 if longest < 3 else 0.35 + 0.085 * longest
    figure, _ = _mosaic(title, subtitle, tiles, columns=10, gap=2, left=left, width=7.85 - left)
    bold: dict[str, Any] = {"fontsize": 14 if longest < 3 else 10, "fontweight": "bold", "color": BLUE}
    for number, label in enumerate(classes):
        figure.axes[0].text(-6, (high + 2) * number + high / 2, label, ha="right", va="center", **bold)
    return figure


def _paper(images: Tensor) -> np.ndarray:
    """A blank tile, for an image that is missing."""
    return np.full(images.shape[1:], 0 if images.ndim == 3 else 255, np.uint8)


@house_style()
def counts_figure(counts: Mapping[str, Tensor], classes: Sequence[str] = DIGITS, name: str = "MNIST") -> "Figure":
    """How often each class occurs in each split.

    ``counts`` are ``(C,)`` int64 for each of ``"training"``, ``"validation"`` and ``"test"`` that is to be shown.
    """
    classes = [*map(short, classes)]
    word, n = class_word(classes), len(classes)
    few = n <= FEW
    figure = blank_figure(
        4.2,
        f"{name}: how often each {word} occurs",
        f"Share of each split{', and in the bars the number of images' * few}. "
        f"Dotted: all {'digits' if word == 'digit' else 'classes'} equally often.",
    )
    longest = max(map(len, classes))
    bottom = 0.6 if longest < 3 else min(0.45 + 0.06 * longest, 1.3)
    axes = axes_at(figure, 0.8, bottom, 6.9, 3.1 - bottom)
    width = 0.84 / len(counts)
    upright: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 9}
    most = max(100 * float(numbers.max()) / max(int(numbers.sum()), 1) for numbers in counts.values())
    for i, (split, numbers) in enumerate(counts.items()):
        places = np.arange(n) + (i - (len(counts) - 1) / 2) * width
        shares = 100 * numbers.numpy() / max(int(numbers.sum()), 1)
        axes.bar(places, shares, 0.92 * width, color=COLORS[split], label=f"{split}: {int(numbers.sum()):,} images")
        for place, share, number in zip(places, shares, numbers.tolist(), strict=True) if few else ():
            inside = share > 0.25 * most  # the bar, or else above it
            y, color = (0, "white") if inside else (share, COLORS[split])
            axes.text(place, y + 0.02 * most, f"{number:,}", color=color, **upright)
    axes.axhline(100 / n, color=BLACK, linestyle=":", linewidth=1)
    axes.set(xlim=(-0.55, n - 0.45), xlabel=word, ylabel="share (% of the split)")
    axes.set_xticks(range(n), classes)
    axes.tick_params(axis="x", length=0)
    if longest > 2:
        axes.tick_params(axis="x", labelsize=min(9, 400 / n), rotation=90 if n > FEW else 30)
    axes.grid(axis="y")
    bars, names = axes.get_legend_handles_labels()
    near: dict[str, Any] = {"frameon": False, "borderpad": 0, "handlelength": 1, "columnspacing": 1.5}
    place = (7.7 / WIDTH, 1 - 0.75 / 4.2)
    figure.legend(bars, names, loc="upper right", bbox_to_anchor=place, ncols=len(counts), **near)
    return figure


@house_style()
def means_figure(means: Tensor, counts: Tensor, classes: Sequence[str] = DIGITS, name: str = "MNIST") -> "Figure":
    """The mean training image of each class.

    ``means`` are ``(C, H, W)`` or ``(C, 3, H, W)`` float in 0 ... 255, and ``counts``, ``(C,)`` int64, are the numbers
    of images. The place of a class without images stays empty.
    """
    classes = [*map(short, classes)]
    word = class_word(classes)
    agree, captions = "sharp where the images agree, blurred where they don't", classes
    if word == "digit":
        agree = "dark where the writers agree, grey where they don't"
        captions = [f"{label}: {number:,} images" for label, number in zip(classes, counts.tolist(), strict=True)]
    figure, image = _mosaic(
        f"{name}: the mean image of each {word}",
        f"Over {int(counts.sum()):,} training images: {agree}.",
        list(means.nan_to_num(float(_paper(means).flat[0])).numpy()),
        columns=5 if len(classes) <= FEW else 10,
        gap=8,
        width=6.6 if means.ndim == 3 else 7.4,
        captions=captions,
    )
    if means.ndim == 3:
        _colorbar(figure, image, "mean pixel: 0 (paper) to 255 (ink)")
    return figure


# ------------------------------------------------------------------------------------ the mistakes


@house_style()
def confusion_figure(confusion: Tensor, name: str = "MNIST", classes: Sequence[str] = DIGITS) -> "Figure":
    """A confusion matrix that colours the mistakes and not the diagonal.

    ``confusion`` is ``(C, C)`` int64: a row for each class, a column for each prediction. Of more than 16 classes, the
    picture has no numbers.
    """
    from matplotlib.colors import LinearSegmentedColormap

    n, classes = len(confusion), [*map(short, classes)]
    word, longest = class_word(classes), max(map(len, classes))
    right = confusion.diag()
    total, mistakes = int(confusion.sum()), int(confusion.sum() - right.sum())
    # Names need room to the left, and above: many names are written small. The matrix is a square.
    few = n <= MOST_NUMBERS
    margin, above = (1.0, 1.2) if longest < 3 else (1.9, 1.9) if few else (1.2, 1.5)
    side = 6.9 - margin
    figure = blank_figure(
        side + above + 0.4,
        f"{name}: {mistakes:,} mistakes in {total:,} images",
        f"A row holds the images of one {word}, a column what the network called them. The diagonal is right.",
    )
    axes = axes_at(figure, margin, 0.4, side, side)
    wrong = confusion.clone().fill_diagonal_(0)
    shades = LinearSegmentedColormap.from_list("mistakes", ["white", "#F3B27A", VERMILLION, "#7A3300"])
    most = max(int(wrong.max()), 5)
    image = axes.imshow(wrong.numpy(), cmap=shades, vmin=0, vmax=most)
    for number in range(n):
        axes.fill_between((number - 0.5, number + 0.5), number - 0.5, number + 0.5, color=LIGHT_GREY, linewidth=0)
    if few:
        _write_numbers(axes, confusion, most, 9 if longest < 3 else 8)
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
    else:
        _colorbar(figure, image, "images that were called so")
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("the network said", color=BLACK, labelpad=8)
    axes.set_ylabel(f"the {word} is", color=BLACK, labelpad=8)
    axes.xaxis.tick_top()
    axes.set_xticks(range(n), classes, rotation=0 if longest < 3 else 90)
    axes.set_yticks(range(n), classes)
    size = min(12 if longest < 3 else 10, 0.8 * 72 * side / n)
    axes.tick_params(length=0, labelsize=size, labelcolor=BLACK)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    return figure


MOST_NUMBERS = 16


def _write_numbers(axes: "Axes", confusion: Tensor, most: int, small: int) -> None:
    """Write the count into each cell of a confusion matrix, and recall and precision beside it."""
    n, right = len(confusion), confusion.diag()
    middle: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 11}
    for number in range(n):
        for said in range(n):
            count = int(confusion[number, said])
            dark = number != said and count > 0.55 * most
            color, weight = "white" if dark else BLACK if count else "#b0b0b0", "bold" if number == said else "normal"
            axes.text(said, number, f"{count:,}" if count else "·", color=color, fontweight=weight, **middle)
    # Recall and precision: the share of each row and each column that is right, if it has any images.
    for number in range(n):
        for axis, x, y in ((1, n - 0.35, number), (0, number, n - 0.3)):
            whole = int(confusion.sum(axis)[number])
            share = f"{int(right[number]) / whole:.1%}".replace("%", " %") if whole else "-"
            axes.text(x, y, share, ha="left" if axis else "center", va="center_baseline", color=GREY, fontsize=small)
    axes.text(n - 0.35, -0.75, "recall", ha="left", va="center", color=GREY)
    axes.text(-0.65, n - 0.3, "precision", ha="right", va="center", color=GREY)


@house_style()
def mistakes_figure(
    images: Tensor, captions: Sequence[tuple[str, str]], mistakes: int, total: int, name: str = "MNIST"
) -> "Figure":
    """A gallery of mistakes, five in a row.

    Args:
        images: ``(K, H, W)`` or ``(K, 3, H, W)`` uint8.
        captions: For each image, one line of text, or two, and another, smaller one.
        mistakes: The number of all mistakes.
        total: The number of all images.
        name: What the images are called.
    """
    shown = len(captions)
    some = f"the {shown} most confident of {mistakes:,} mistakes"
    title = {shown: f"all {mistakes} mistakes", 0: "no mistakes", 1: "the only mistake"}.get(mistakes, some)
    lines = max((line.count("\n") for line, _ in captions), default=0)  # names need two
    gap = 16 + 6 * lines
    figure, _ = _mosaic(
        f"{name}: {title}",
        f"In {total:,} images. The percentage is the probability that the network gave its answer.",
        list(images.numpy()),
        columns=5,
        gap=gap,
        width=7.0,
        left=0.5,
        below=0.45 + 0.2 * lines,
    )
    high, wide = images.shape[-2:]
    longest = max((len(part) for line, _ in captions for part in line.split("\n")), default=1)
    size = min(9.5, 190 / longest) if lines else 9.5
    for i, (line, small) in enumerate(captions):
        row, column = divmod(i, 5)
        x, y = (wide + gap) * column + wide / 2, (high + gap) * row + high + 2
        figure.axes[0].text(x, y, line, ha="center", va="top", fontsize=size)
        figure.axes[0].text(x, y + 6 + 5 * lines, small, ha="center", va="top", fontsize=8.5, color=GREY)
    return figure


@house_style()
def weights_figure(weights: Tensor, total: int, colours: bool = False) -> "Figure":
    """The weights of hidden units as images.

    Args:
        weights: ``(K, H, W)`` float: the weights of K units, the most influential unit first.
        total: The number of all hidden units.
        colours: Whether the weights are means over three colours.
    """
    shown = len(weights)
    # The largest 0.5 % of the weights saturate the colours, so that the others can be seen.
    finite = weights[weights.isfinite()].abs().double()
    limit = float(finite.quantile(0.995)) if len(finite) else 0.0
    figure, image = _mosaic(
        "First layer: the weights of " + f"{f'the {shown} strongest of ' * (shown < total)}{total:,} hidden units",
        "Ink on red excites a unit, on blue inhibits it. Ordered by the size of its weights to the output.",
        list(weights.numpy()),
        columns=max(math.ceil(math.sqrt(shown)), 1),
        gap=2,
        width=6.6,
        cmap="RdBu_r",
        vmin=-(limit or 1),
        vmax=limit or 1,
    )
    label = "mean weight of a pixel's three colours" if colours else "weight of a pixel in 0 (paper) to 1 (ink)"
    _colorbar(figure, image, label, extend="both")
    return figure


def _mosaic(
    title: str,
    subtitle: str,
    tiles: Sequence[np.ndarray],
    columns: int,
    gap: int,
    width: float,
    left: float = LEFT,
    below: float = 0.2,
    captions: Sequence[str] = (),
    **kwargs: Any,
) -> tuple["Figure", "AxesImage"]:
    """A figure of images side by side, ``(H, W)`` or ``(3, H, W)`` each, in one axes whose unit is the pixel.

    The gap between two images is in pixels. The width of a row and the space around all images are in inches. A
    caption stands above its image.
    """
    rows = max(math.ceil(len(tiles) / columns), 1)
    shape = tiles[0].shape if tiles else (28, 28)
    high, wide = shape[-2:]
    size = rows * (high + gap) - gap, columns * (wide + gap) - gap
    sheet = np.full((*size, *shape[:-2]), np.nan if len(shape) == 2 else 1, np.float32)  # white paper
    for i, tile in enumerate(tiles):
        y, x = (high + gap) * (i // columns), (wide + gap) * (i % columns)
        sheet[y : y + high, x : x + wide] = tile if tile.ndim == 2 else np.moveaxis(tile, 0, 2) / 255
    height, above = width * sheet.shape[0] / sheet.shape[1], 0.3 if captions else 0.1
    figure = blank_figure(0.75 + above + height + below, title, subtitle)
    axes = axes_at(figure, left, below, width, height)
    axes.axis("off")
    fontsize = 7 if len(captions) > FEW and max(map(len, captions)) > 2 else 10  # of many names
    for i, caption in enumerate(captions):
        x, y = (wide + gap) * (i % columns) + wide / 2, (high + gap) * (i // columns) - 1
        axes.text(x, y, caption, ha="center", va="bottom", fontsize=fontsize)
    return figure, axes.imshow(sheet, **{"vmin": 0, "vmax": 255, **kwargs})


def _colorbar(figure: "Figure", image: "AxesImage", label: str, **kwargs: Any) -> None:
    """Explain the colours of an image by a strip to its right."""
    place = image.axes.get_position()
    strip = figure.add_axes((place.x1 + 0.2 / WIDTH, place.y0, 0.15 / WIDTH, place.height))
    bar = figure.colorbar(image, cax=strip, label=label, **kwargs)
    bar.outline.set_visible(False)
