"""The pictures: what they plot is what they were given, and no input is too odd to draw."""

import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from mnist_lightning.results.curves import curves_picture
from mnist_lightning.results.inspection import counts_picture, means_picture, samples_picture
from mnist_lightning.results.report_pictures import confusion_picture, mistakes_picture, weights_picture
from mnist_lightning.results.style import save

TRAINED = [
    {"epoch": 0, "step": 468, "train_loss": 0.2568, "train_acc": 0.9258},
    {"epoch": 1, "step": 937, "train_loss": 0.1034, "train_acc": 0.9691},
    {"epoch": 2, "step": 1406, "train_loss": 0.0686, "train_acc": 0.9795},
]
TESTED = {"epoch": 3, "step": 1407, "test_loss": 0.0899, "test_acc": 0.9723}
VALIDATED = [
    {**row, "val_loss": loss, "val_acc": acc}
    for row, loss, acc in zip(TRAINED, (0.19, 0.11, 0.12), (0.94, 0.96, 0.97), strict=True)
]


def lines(figure: Any) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The points of every line: by the axes' label, then by the line's."""
    return {
        axes.get_ylabel(): {line.get_label(): [*map(tuple, line.get_xydata().tolist())] for line in axes.lines}
        for axes in figure.axes
    }


def texts(figure: Any) -> str:
    found = figure.findobj(matplotlib.text.Text)
    return "\n".join(text.get_text() for text in found).replace("\N{MINUS SIGN}", "-")


def overlap(figure: Any, labels: list[Any]) -> bool:
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [label.get_window_extent(renderer) for label in labels if label.get_text()]
    return any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_curves_show_training_beside_validation_or_the_last_test_each_at_its_epoch() -> None:
    loss, accuracy = lines(curves_picture([*VALIDATED, TESTED])).values()
    assert loss == {
        "training": [(1, 0.2568), (2, 0.1034), (3, 0.0686)],
        "validation": [(1, 0.19), (2, 0.11), (3, 0.12)],
    }
    assert accuracy["validation"] == [(1, 0.94), (2, 0.96), (3, 0.97)]
    figure = curves_picture([*TRAINED, TESTED])
    assert [by_name["test"] for by_name in lines(figure).values()] == [[(3, 0.0899)], [(3, 0.9723)]]
    for said in ("gap at the end: 0.72 points", "gap at the end: 0.0213", "training\n97.95 %", "test\n97.23 %"):
        assert said in texts(figure)
    more = {"epoch": 3, "step": 1875, "train_loss": 0.05, "train_acc": 0.985}
    last = {"epoch": 4, "step": 1876, "test_loss": 1, "test_acc": 0.5}
    figure = curves_picture([*TRAINED, TESTED, more, last])
    assert lines(figure)["accuracy (% of images)"]["test"] == [(4, 0.5)]
    half = {"epoch": 1, "step": 702, "val_loss": 0.15, "val_acc": 0.95}
    figure = curves_picture([VALIDATED[0], half, VALIDATED[1]])
    epochs = [epoch for epoch, _ in lines(figure)["accuracy (% of images)"]["validation"]]
    assert epochs == [1, pytest.approx(703 / 469), 2]


def test_what_is_not_finite_leaves_a_gap_and_is_named() -> None:
    rows = [TRAINED[0], {**TRAINED[1], "train_loss": math.nan}, {**TRAINED[2], "train_loss": math.inf}]
    figure = curves_picture(rows)
    loss = lines(figure)["loss: cross-entropy (nats)"]["training"]
    assert loss[0] == (1, 0.2568)
    assert np.isnan([value for _, value in loss[1:]]).all()
    assert "training\nNaN in\nepoch 2" in texts(figure)


def test_axes_of_curves_have_whole_epochs_and_accuracies_up_to_100_percent() -> None:
    for epochs in (1, 2, 5, 50):
        rows = [{"epoch": i, "step": i, "train_loss": 1 / (i + 1), "train_acc": 1 - 0.1**i} for i in range(epochs)]
        loss, accuracy = curves_picture(rows).axes
        assert loss.get_ylim()[0] == 0
        assert accuracy.get_ylim()[1] <= 1
        for axes in (loss, accuracy):
            assert axes.get_xlabel() == "epoch"
            left, right = axes.get_xlim()
            ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
            assert ticks
            assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)
    rows = [{"epoch": i, "step": i, "train_loss": loss, "train_acc": 0.5} for i, loss in enumerate([0.5, -2.0])]
    low, high = curves_picture(rows).axes[0].get_ylim()  # of a loss that may be below 0
    assert low < -2 < 0.5 < high


HISTORIES: dict[str, list[dict[str, float]]] = {
    "nothing": [],
    "test only": [TESTED],
    "one epoch": TRAINED[:1],
    "one and test": [TRAINED[0], TESTED],
    "val only": [{"epoch": 0, "step": 9, "val_loss": 1.0, "val_acc": 0.5}],
    "nan": [{"epoch": 0, "step": 0, "train_loss": math.nan, "train_acc": math.nan}],
    "huge": [{"epoch": 0, "step": 0, "train_loss": 1e30, "train_acc": 0.0}, {**TESTED, "test_loss": 1e-30}],
    "constant": [{"epoch": i, "step": i, "train_loss": 0.0, "train_acc": 1.0} for i in range(50)],
    "other": [{"epoch": i, "step": i, "learning_rate": 0.1} for i in range(3)],
    "beyond reason": [{**VALIDATED[0], "val_acc": -1e304}, {**VALIDATED[1], "train_acc": 98.0, "val_loss": -1e304}],
}


@pytest.mark.parametrize("rows", HISTORIES.values(), ids=HISTORIES)
def test_no_history_is_too_odd_to_draw(rows: list[dict[str, float]], tmp_path: Path) -> None:
    path = save(curves_picture(rows), tmp_path / "run" / "curves.png")
    with Image.open(path) as picture:
        assert abs(picture.size[0] - 1600) <= 1  # releases of matplotlib round differently
        assert abs(picture.size[1] - 820) <= 1
        assert len(picture.convert("L").getcolors()) > 10


def test_bars_are_each_digit_s_share_of_its_split() -> None:
    counts = {"training": torch.arange(1, 11), "test": torch.full((10,), 5)}
    figure = counts_picture(counts)
    training, test = figure.axes[0].containers
    assert [bar.get_height() for bar in training] == pytest.approx([100 * n / 55 for n in range(1, 11)])
    assert [bar.get_height() for bar in test] == [10] * 10
    assert [text.get_text() for text in figure.axes[0].texts[:10]] == [str(n) for n in range(1, 11)]


@pytest.mark.parametrize("number", [0, 1_000_000])
def test_counts_of_a_lopsided_split_can_be_drawn(number: int, tmp_path: Path) -> None:
    lopsided = torch.tensor([number, *(0 for _ in range(9))])
    for picture in (
        counts_picture({"validation": lopsided}),
        means_picture(torch.full((10, 28, 28), math.nan), lopsided),
    ):
        with Image.open(save(picture, tmp_path / "a.png")) as drawn:
            assert len(drawn.convert("L").getcolors()) > 10


def test_samples_stand_in_the_row_of_their_digit_and_missing_ones_are_blank_paper() -> None:
    targets = torch.arange(10).repeat(12)
    images = (targets + 1).to(torch.uint8)[:, None, None].expand(-1, 28, 28)
    sheet = samples_picture(images[:-5], targets[:-5]).axes[0].images[0].get_array()
    for digit in range(10):
        row = sheet[30 * digit : 30 * digit + 28]
        assert set(np.unique(row.compressed())) == {digit + 1}
        assert row.count() == 10 * 28 * 28
    sheet = samples_picture(images[:1], torch.tensor([4])).axes[0].images[0].get_array()
    assert (sheet == 1).sum() == (sheet[120:148, :28] == 1).sum() == 28 * 28


@pytest.mark.parametrize("most", [0, 5_923])
def test_cells_of_the_confusion_matrix_hold_its_counts(most: int, tmp_path: Path) -> None:
    confusion = torch.arange(100).reshape(10, 10).clamp(max=most)
    figure = confusion_picture(confusion)
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    for digit, said in itertools.product(range(10), range(10)):
        count = int(confusion[digit, said])
        assert cells[said, digit] == (f"{count:,}" if count else "·")
    wrong = figure.axes[0].images[0].get_array()
    assert not np.diag(wrong).any()
    save(figure, tmp_path / "confusion.png")


TITLES = [(0, 0, "no mistakes"), (1, 1, "the only mistake"), (7, 7, "all 7 mistakes")]


@pytest.mark.parametrize(("shown", "mistakes", "title"), [*TITLES, (25, 26, "the 25 most confident of 26 mistakes")])
def test_the_gallery_says_how_many_mistakes_it_shows(shown: int, mistakes: int, title: str, tmp_path: Path) -> None:
    images = torch.full((shown, 28, 28), 200, dtype=torch.uint8)
    figure = mistakes_picture(images, [(f"line {i}", "small") for i in range(shown)], mistakes, 10_000)
    assert f"MNIST: {title}" in texts(figure).split("\n")
    drawn = [line for line in texts(figure).split("\n") if line.startswith("line")]
    assert drawn == [f"line {i}" for i in range(shown)]
    save(figure, tmp_path / "gallery.png")
    captions = [("said aquarium_fish,\nis sweet_pepper, >99.9 %", f"image {i}") for i in range(shown)]
    figure = mistakes_picture(images, captions, mistakes, 100, "Things")
    assert not overlap(figure, figure.axes[0].texts)


@pytest.mark.parametrize(("units", "scale"), [(1, 1.0), (2, 0.0), (64, 1.0)])
def test_the_colours_of_weights_are_centred_on_zero(units: int, scale: float, tmp_path: Path) -> None:
    figure = weights_picture(torch.linspace(-1, 3, units * 784).reshape(-1, 28, 28) * scale, 512)
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high < 0
    save(figure, tmp_path / "weights.png")


def test_drawing_neither_heeds_nor_changes_the_users_style(tmp_path: Path) -> None:
    plain = save(curves_picture(TRAINED), tmp_path / "plain.png").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red", "savefig.dpi": 30}):
        before = dict(matplotlib.rcParams)
        assert save(curves_picture(TRAINED), tmp_path / "styled.png").read_bytes() == plain
        assert dict(matplotlib.rcParams) == before


TEN, LETTERS = ["Ankle boot", *"abcdefgh", "T-shirt/top"], [*"abcdefghijklmnopqrstuvwxyz"]
HUNDRED = pytest.param([f"class_{i:02}_long"[:12] for i in range(100)], marks=pytest.mark.slow)


@pytest.mark.parametrize("classes", [TEN, LETTERS, HUNDRED], ids=len)
def test_names_of_classes_do_not_overlap(classes: list[str], tmp_path: Path) -> None:
    n = len(classes)
    images, targets = torch.zeros((n, 3, 32, 32), dtype=torch.uint8), torch.arange(n)
    counts = {"training": torch.full((n,), 5), "validation": torch.ones(n), "test": torch.ones(n)}
    every = [
        confusion_picture(torch.ones((n, n), dtype=torch.int64), "Things", classes),
        counts_picture(counts, "Things", classes),
        samples_picture(images, targets, "Things", classes),
        means_picture(images.float(), counts["training"], "Things", classes),
    ]
    for figure in every:
        assert all(name in texts(figure).split("\n") for name in classes)
        assert "Things: " in texts(figure)
        save(figure, tmp_path / "a.png")
        axes = figure.axes[0]
        if axes.axison:
            assert not overlap(figure, axes.get_xticklabels())
            assert not overlap(figure, axes.get_yticklabels())
        else:
            assert not overlap(figure, axes.texts)
    numbers = [text.get_text() for text in every[0].axes[0].texts if text.get_text() == "1"]
    assert len(numbers) == (n * n if n <= 16 else 0)


def test_colours_are_drawn_as_they_are() -> None:
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).to(torch.uint8)
    sheet = samples_picture(images, torch.tensor([0, 1]), "Pets", ["cat", "dog"]).axes[0].images[0].get_array()
    assert np.allclose(sheet[:32, :32] * 255, images[0].permute(1, 2, 0))
    assert np.allclose(sheet[34:66, :32] * 255, images[1].permute(1, 2, 0))
    assert (sheet[:32, 34:] == 1).all()  # white paper, for images that are missing
