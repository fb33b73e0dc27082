"""``curves.png``: loss and accuracy by epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mnist_lightning.results.style import COLORS, GREY, axes_at, blank_picture, house_style, marks, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows: TypeAlias = Sequence[Mapping[str, float]]
Line: TypeAlias = dict[float, float]  # the values of a metric by epoch


@house_style()
def curves_picture(rows: Rows, name: str = "MNIST") -> "Figure":
    """Training and validation or, without a validation, the last test. ``rows`` are those of ``metrics.csv``."""
    from matplotlib.ticker import FuncFormatter

    second, stage = "test", "test"
    if any("val_loss" in row for row in rows):
        second, stage = "validation", "val"
    subtitle = "Training: means over the epoch, while the weights move."
    if any(f"{stage}_loss" in row for row in rows):
        subtitle += f" {second.capitalize()}: with the weights held still."
    picture = blank_picture(4.1, f"{name}: loss and accuracy by epoch", subtitle)
    for metric, left, most, label in (
        ("loss", 0.8, 1e30, "loss: cross-entropy (nats)"),
        ("acc", 4.75, 1, "accuracy (% of images)"),
    ):
        training, other = _line(rows, f"train_{metric}", most), _line(rows, f"{stage}_{metric}", most)
        if second == "test" and other:  # of several, the last
            other = {max(training or other): [*other.values()][-1]}
        lines, axes = {"training": training, second: other}, axes_at(picture, left, 0.6, 2.25, 2.5)
        _plot(axes, lines, label)
        if metric == "acc":
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0), min(high, 1))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}"))
        elif not any(value < 0 for line in lines.values() for value in line.values()):  # another loss may be below 0
            axes.set_ylim(bottom=0)
        _label_ends(axes, lines, metric == "acc")
    return picture


def _line(rows: Rows, name: str, most: float) -> Line:
    """A metric, with NaN beyond ``most``: a dashed line to 1e300 would be drawn for ever."""
    trained = [row for row in rows if "train_loss" in row]
    line = {}
    for row in rows:
        if name in row:
            epoch = row["epoch"] + 1
            if trained and "train_loss" not in row:  # in the middle of an epoch
                steps_per_epoch = (trained[-1]["step"] + 1) / (trained[-1]["epoch"] + 1)
                epoch = (row["step"] + 1) / steps_per_epoch
            line[epoch] = row[name] if abs(row[name]) <= most else math.nan
    return line


def _plot(axes: "Axes", lines: Mapping[str, Line], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, line in lines.items():
        style = marks(name) | {"linewidth": 1.8, "markersize": 7 if name == "test" else 5}
        if name == "validation":
            style["linestyle"] = "--"
        if len(line) > 20:
            style["markevery"] = [-1]
        axes.plot([*line], [*line.values()], label=name, **style)
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    epochs = [epoch for line in lines.values() for epoch in line]
    if epochs:
        first, last = min(epochs), max(epochs)
        pad = 0.04 * (last - first) or 0.5
        axes.set_xlim(first - min(pad, 0.5), last + pad)  # the axis never reaches back to an epoch 0


def _label_ends(axes: "Axes", lines: Mapping[str, Line], is_share: bool) -> None:
    """Write the last values beside the axes, and their gap above."""
    ends = []
    for name, line in lines.items():
        finite = [epoch for epoch, value in line.items() if math.isfinite(value)]
        if finite:
            epoch = finite[-1]
            label = percent(line[epoch], 2) if is_share else f"{line[epoch]:.4f}"
            if later := [other for other in line if other > epoch]:
                label = f"NaN in\nepoch {math.ceil(later[0])}"
            ends.append((line[epoch], epoch, name, label))
    if len(ends) == 2 and ends[0][1] == ends[1][1]:
        (training, epoch, *_), (other, *_) = ends
        gap = f"{100 * (training - other):.2f} points" if is_share else f"{other - training:.4f}"
        axes.vlines(epoch, min(training, other), max(training, other), color=GREY, linewidth=1, zorder=2)
        axes.set_title(f"gap at the end: {gap}".replace("-", "\N{MINUS SIGN}"), loc="right", fontsize=10, color=GREY)
    ends.sort(key=lambda end: end[0])
    low, high = axes.get_ylim()
    places = [min(max((end[0] - low) / (high - low), 0.05), 0.97) for end in ends]
    if len(places) == 2 and places[1] - places[0] < 0.17:  # of the axes' height: labels must not overlap
        middle = min(max(sum(places) / 2, 0.135), 0.885)
        places = [middle - 0.085, middle + 0.085]
    for place, (*_, name, label) in zip(places, ends, strict=True):
        style: dict[str, Any] = {"va": "center", "color": COLORS[name], "linespacing": 1.1}
        axes.annotate(f"{name}\n{label}", (1, place), (8, 0), "axes fraction", "offset points", **style)
