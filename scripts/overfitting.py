"""Why does the tutorial's network overfit, and what helps? Train variants of it on several seeds, and compare.

    python scripts/overfitting.py                          # a selection: under 10 minutes on two cores
    python scripts/overfitting.py --full --out DIR         # the whole table
    python scripts/overfitting.py --out ALL --merge A B    # the cells of several machines, or of a kept .csv

One variant on one seed is a cell: a run of its own, written to ``--out`` when it is finished. The same
command goes on from there; several may work on one folder, best on a seed each. Whatever cells the folder
holds then become ``overfitting.csv`` (one row a cell), ``overfitting.md`` (the table and the finding) and
``overfitting.png``.

Errors are taken in eval mode with the final weights, on the training images as they are in the files: the
running mean of an epoch sees the weights move, dropout and the changed images. 5,000 of the 60,000
training images are held out for validation, so 55,000 is the largest training set that can take part in a
choice; "60,000 images" has no validation error. Nothing is ever chosen by test error.
"""

import argparse
import csv
import difflib
import io
import json
import logging
import math
import statistics
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torchvision.transforms import v2
from tqdm import tqdm

from mnist_lightning import MNISTClassifier, MNISTDataModule, figures
from mnist_lightning.checkpoint import load_checkpoint, write_atomically
from mnist_lightning.data import MNISTDataset
from mnist_lightning.errors import InputError
from mnist_lightning.resume import StopOnSIGTERM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VAL_SIZE, MOST_IMAGES = 5_000, 60_000


class Variant(NamedTuple):
    """The tutorial's network and training, but for what is said here.

    Attributes:
        label: What is changed.
        epochs: How many are trained, at most.
        hidden_size: As of ``MNISTClassifier``, like ``dropout`` and ``weight_decay``.
        train_size: As of ``MNISTDataModule``.
        degrees: Each batch is rotated by up to this many degrees, either way.
        shift: Each batch is shifted by up to this part of the image's width, and of its height.
        patience: Stop after so many epochs without a lower validation loss, and take the weights of the
            lowest; 0: train to the end.
    """

    label: str
    epochs: int = 5
    hidden_size: int = 512
    train_size: int = MOST_IMAGES - VAL_SIZE
    dropout: float = 0.0
    weight_decay: float = 0.0
    degrees: float = 0.0
    shift: float = 0.0
    patience: int = 0

    @property
    def name(self) -> str:
        return f"{self.label}, {self.epochs} epochs"

    @property
    def slug(self) -> str:
        return self.name.replace(",", "").replace(" ", "-")

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "label"}

    @property
    def val_size(self) -> int:
        return min(VAL_SIZE, MOST_IMAGES - self.train_size)

    @property
    def cost(self) -> float:
        """How long it takes beside the others: an image costs 130 units' time whatever the network (measured)."""
        epochs = min(self.epochs, 3 * self.patience) if self.patience else self.epochs
        return (epochs * self.train_size + MOST_IMAGES) * (self.hidden_size + 130)


SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
VARIANTS = (
    *(Variant(f"{size} units", epochs, hidden_size=size) for epochs in (5, 50) for size in SIZES),
    *(Variant(f"{size:,} images", 50, train_size=size) for size in (1_000, 3_000, 10_000, 30_000, MOST_IMAGES)),
    Variant("early stopping", 50, patience=5),
    *(Variant(f"dropout {share}", epochs, dropout=share) for epochs, share in ((5, 0.5), (50, 0.25), (50, 0.5))),
    *(Variant("weight decay 1e-4", epochs, weight_decay=1e-4) for epochs in (5, 50)),
    Variant("weight decay 1e-3", 50, weight_decay=1e-3),
    *(Variant("shifts, rotations", epochs, degrees=10, shift=0.05) for epochs in (5, 50)),
    Variant("shifts, dropout 0.25", 50, degrees=10, shift=0.05, dropout=0.25),
)
SELECTION = (
    "16-units-5-epochs",
    "512-units-5-epochs",
    "2048-units-5-epochs",
    "16-units-50-epochs",
    "512-units-50-epochs",
    "1000-images-50-epochs",
    "10000-images-50-epochs",
    "early-stopping-50-epochs",
    "dropout-0.5-5-epochs",
    "weight-decay-1e-4-5-epochs",
    "shifts-rotations-5-epochs",
)
"""Trained by default: they tell the story, and on two cores take less than 10 minutes."""

Cell = dict[str, Any]
"""Plain numbers: what was trained (``variant``, ``seed``, the settings), how, and the figures.

``train``, ``val`` and ``test`` ``_loss`` and ``_acc`` are those of the final weights in eval mode;
``running_loss`` and ``running_acc`` the means over the last epoch, which are no such thing.
"""

FIGURES = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("loss", "acc")]
NUMBERS = [
    *FIGURES,
    "seed",
    "parameters",
    "epochs_trained",
    "weights_of_epoch",
    "running_loss",
    "running_acc",
    "seconds",
]


def evaluate(model: LightningModule, dataset: MNISTDataset) -> tuple[float, float]:
    """Loss and accuracy in eval mode, on the images as they are in the files."""
    model.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for images, targets in zip(dataset.images.split(5_000), dataset.targets.split(5_000), strict=True):
            logits = model(images / 255)
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            right += int((logits.argmax(dim=1) == targets).sum())
    return loss / len(dataset), right / len(dataset)


def train(variant: Variant, seed: int, callbacks: Sequence[Callback] = ()) -> Cell:
    """Train one cell, on the CPU: so small a network is hardly faster on a GPU, and all cells shall be alike."""
    began = time.monotonic()
    transform = v2.RandomAffine(
        variant.degrees, (variant.shift, variant.shift), interpolation=v2.InterpolationMode.BILINEAR
    )
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", PossibleUserWarning)  # no workers, no validation: that is how it is meant
        warnings.filterwarnings("ignore", ".*LeafSpec")  # between Lightning and torch
        seed_everything(seed, workers=True, verbose=False)
        model = MNISTClassifier(variant.hidden_size, dropout=variant.dropout, weight_decay=variant.weight_decay)
        data = MNISTDataModule(
            val_size=variant.val_size,
            train_size=variant.train_size,
            train_transform=transform if variant.degrees or variant.shift else None,
            seed=seed,
        )
        best = ModelCheckpoint(folder, monitor="val_loss", save_weights_only=True)
        stopping = [EarlyStopping("val_loss", patience=variant.patience), best] if variant.patience else []
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=variant.epochs,
            callbacks=[*callbacks, *stopping],
            logger=False,
            enable_checkpointing=variant.patience > 0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=data)
        running = {f"running_{what}": trainer.callback_metrics[f"train_{what}"].item() for what in ("loss", "acc")}
        trained = taken = trainer.current_epoch
        if variant.patience:
            checkpoint = load_checkpoint(best.best_model_path)
            model.load_state_dict(checkpoint["state_dict"])
            taken = checkpoint["epoch"] + 1
    data.setup("test")
    figures = dict.fromkeys(FIGURES)
    for split, dataset in (("train", data.train_dataset), ("val", data.val_dataset), ("test", data.test_dataset)):
        if dataset is not None:
            figures[f"{split}_loss"], figures[f"{split}_acc"] = evaluate(model, dataset)
    return {
        "variant": variant.name,
        "seed": seed,
        **variant.settings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs_trained": trained,
        "weights_of_epoch": taken,
        **figures,
        **running,
        "seconds": round(time.monotonic() - began, 1),
        "torch": torch.__version__,
    }


# ------------------------------------------------------------------------------------- the cells


def cell_path(out: Path, variant: Variant, seed: int) -> Path:
    return out / variant.slug / f"seed-{seed}.json"


def check_cell(cell: Any, variants: Mapping[str, Variant], where: str) -> Cell:
    """See that a cell is whole, and one of this table.

    Raises:
        InputError: If it is not, or was trained with other settings than the table's.
    """
    try:
        variant = variants.get(cell["variant"])
        numbers = [cell[name] for name in NUMBERS if cell[name] is not None or not name.startswith("val")]
        good = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        good = good and all(0 <= cell[name] <= 1 for name in ("train_acc", "test_acc"))
    except (KeyError, TypeError):
        good = False
    if not good:
        raise InputError(f"{where} is damaged: delete it, and its cell will be trained again")
    if variant is None:
        raise InputError(f"{where} is no cell of this table: choose another folder")
    for name, value in variant.settings.items():
        if cell.get(name) != value:
            raise InputError(
                f"{where} was trained with {name} {cell.get(name)}, where the table has {value}: delete it, or "
                "choose another folder"
            )
    return dict(cell)


def read_cells(source: Path, variants: Mapping[str, Variant]) -> list[Cell]:
    """All finished cells in a folder or in an ``overfitting.csv``, in the table's order."""
    cells = []
    try:
        if source.is_file():
            with source.open(newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.DictReader(file), 2):
                    # An empty cell of the table, as "60,000 images" has for validation, is no JSON: None.
                    cell = {name: text if name in ("variant", "torch") else _json(text) for name, text in row.items()}
                    cells.append(check_cell(cell, variants, f"line {number} of {str(source)!r}"))
        else:
            for path in source.glob("*/seed-*.json"):
                cell = check_cell(_json(path.read_text(encoding="utf-8")), variants, repr(str(path)))
                if path != cell_path(source, variants[cell["variant"]], cell["seed"]):
                    raise InputError(f"{str(path)!r} is no cell of this table: choose another folder")
                cells.append(cell)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {str(source)!r}: {error}") from error
    order = list(variants)
    return sorted(cells, key=lambda cell: (order.index(cell["variant"]), cell["seed"]))


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


def write_cell(out: Path, variant: Variant, cell: Cell) -> None:
    write_atomically(cell_path(out, variant, cell["seed"]), json.dumps(cell, indent=1).encode() + b"\n")


class EpochBar(Callback):
    """Moves the bar on at the end of an epoch."""

    def __init__(self, bar: "tqdm[NoReturn]", cost: float) -> None:
        self.bar, self.cost = bar, cost

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.update(self.cost)


def train_cells(
    selected: Sequence[tuple[Variant, int]],
    out: Path,
    variants: Mapping[str, Variant],
    stop: Callback,
) -> None:
    """Train the cells that ``out`` does not hold yet, and add each as soon as it is finished.

    Raises:
        InputError: If ``out`` holds damaged or other cells, or cannot be written.
    """
    finished = {(cell["variant"], cell["seed"]) for cell in read_cells(out, variants)}
    todo = [(variant, seed) for variant, seed in selected if (variant.name, seed) not in finished]
    if len(todo) < len(selected):
        print(f"{len(selected) - len(todo)} of {len(selected)} cells are in {out} already")
    if todo:
        print(
            f"{'cell':<8}{'variant':<29}{'seed':>4}{'train err':>10}{'test err':>10}{'time':>8}{'left':>9}", flush=True
        )
    began, spent, left = time.monotonic(), 0.0, sum(variant.cost for variant, _ in todo)
    bar = tqdm(
        total=left,
        smoothing=0,  # the mean speed of the whole: cells differ
        file=sys.stdout,
        disable=not sys.stdout.isatty(),
        leave=False,
        dynamic_ncols=True,
        ascii=" #",
        bar_format="{desc} |{bar}| {remaining} left",
    )
    with bar:
        for number, (variant, seed) in enumerate(todo, len(selected) - len(todo) + 1):
            left -= variant.cost
            if cell_path(out, variant, seed).exists():  # by now: another process has been faster
                bar.total = spent + left
                continue
            bar.set_description_str(f"{number}/{len(selected)} {variant.name}, seed {seed}")
            cell = train(variant, seed, [stop, EpochBar(bar, variant.cost / variant.epochs)])
            write_cell(out, variant, cell)
            spent += variant.cost
            bar.update(spent - bar.n)  # what early stopping has saved, too
            errors = "".join(f"{100 * (1 - cell[name]):>8.2f} %" for name in ("train_acc", "test_acc"))
            remaining = _duration((time.monotonic() - began) / spent * left)
            with tqdm.external_write_mode(file=sys.stdout):
                print(
                    f"{number:>3}/{len(selected):<4}{variant.name:<29}{seed:>4}{errors}"
                    f"{_duration(cell['seconds']):>8}{remaining:>9}",
                    flush=True,
                )


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02}"


# ------------------------------------------------------------------------------------ the report

MIN_SEEDS, MIN_STANDARD_ERRORS = 2, 3  # for a statement that two variants differ
ONE_IMAGE = 0.01  # points, of 10,000 test images: closer than that, seeds agree by chance
COLUMNS = ("training", "validation", "test", "gap", "test loss")


class Summary(NamedTuple):
    """A variant over its seeds.

    Attributes:
        variant: Which.
        parameters: How many the network has.
        epochs: Trained, the mean.
        values: Per seed, the ``training``, ``validation`` and ``test`` error in % of the images (no validation
            error without images held out), the ``gap`` from training to test error in points, and the
            ``test loss`` in nats.
    """

    variant: Variant
    parameters: int
    epochs: float
    values: dict[str, list[float]]

    @property
    def seeds(self) -> int:
        return len(self.values["test"])

    def mean(self, what: str) -> float:
        return statistics.fmean(self.values[what])

    def deviation(self, what: str) -> float:
        """The standard deviation of one run."""
        return statistics.stdev(self.values[what])

    def text(self, what: str) -> str:
        """Mean and standard deviation, as far as there are any."""
        if not self.values[what]:
            return ""
        return number(self.mean(what), what) + (f"±{number(self.deviation(what), what)}" if self.seeds > 1 else "")


def number(value: float, what: str) -> str:
    return f"{value:.3f}" if what == "test loss" else f"{value:.2f}"


def summarize(cells: Sequence[Cell], table: Sequence[Variant]) -> list[Summary]:
    """The variants that have cells, in the table's order."""
    summaries = []
    for variant in table:
        mine = [cell for cell in cells if cell["variant"] == variant.name]
        error = {
            split: [100 * (1 - cell[f"{split}_acc"]) for cell in mine if cell[f"{split}_acc"] is not None]
            for split in ("train", "val", "test")
        }
        gap = [test - training for training, test in zip(error["train"], error["test"], strict=True)]
        values = {"training": error["train"], "validation": error["val"], "test": error["test"], "gap": gap}
        values["test loss"] = [cell["test_loss"] for cell in mine]
        if mine:
            epochs = statistics.fmean(cell["epochs_trained"] for cell in mine)
            summaries.append(Summary(variant, mine[0]["parameters"], epochs, values))
    return summaries


def change(a: Summary, b: Summary, what: str) -> int:
    """Whether b's mean is clearly below a's (-1), clearly above it (1), or neither (0)."""
    difference = b.mean(what) - a.mean(what)
    error = math.sqrt(a.deviation(what) ** 2 / a.seeds + b.deviation(what) ** 2 / b.seeds)
    if what != "test loss":
        error = max(error, ONE_IMAGE)
    return int(math.copysign(1, difference)) if abs(difference) > MIN_STANDARD_ERRORS * error else 0


def changed(variant: Variant) -> set[str]:
    """The settings that are not the tutorial's."""
    return {name for name, value in variant.settings.items() if value != Variant("").settings[name]}


def series(summaries: Sequence[Summary], setting: str, epochs: int) -> list[Summary]:
    """The tutorial's network with another ``setting``, and itself, from small to large."""
    group = [s for s in summaries if changed(s.variant) <= {setting, "epochs"} and s.variant.epochs == epochs]
    return sorted(group, key=lambda s: s.variant.settings[setting])


def finding(summaries: Sequence[Summary]) -> list[str]:
    """What the numbers say, in sentences that hold for them, whatever they are."""
    known = [s for s in summaries if s.seeds >= MIN_SEEDS]
    base = {s.variant.epochs: s for s in known if changed(s.variant) <= {"epochs"}}
    said = []

    def says(a: Summary, b: Summary, what: str, unit: str = "%") -> str:
        """How a figure gets from a to b, for instance "the test error falls from 2.06 to 1.79 %"."""
        verb = {-1: "falls from", 0: "does not clearly change,", 1: "rises from"}[change(a, b, what)]
        name = what if what.endswith(("gap", "loss")) else f"{what} error"
        joint = "to" if change(a, b, what) else "and"
        return f"the {name} {verb} {number(a.mean(what), what)} {joint} {number(b.mean(what), what)} {unit}"

    if base:
        first, last = base[min(base)], base[max(base)]
        said.append(
            f"After {first.variant.epochs} epochs the tutorial's network ({first.parameters:,} parameters, "
            f"{first.variant.train_size:,} training images) is wrong on {first.mean('training'):.2f} % of the training "
            f"images and on {first.mean('test'):.2f} % of the test images, a gap of {first.mean('gap'):.2f} points."
        )
        if last is not first:
            said.append(
                f"After {last.variant.epochs} epochs {says(first, last, 'training')}, "
                f"{says(first, last, 'test')}, and {says(first, last, 'gap', 'points')}; "
                f"{says(first, last, 'test loss', 'nats')}."
            )
        if last.mean("gap") > 0.95 * last.mean("test"):
            said[-1] += (
                " It knows the training images by heart: what it still gets wrong in the test is nearly all gap."
            )
    for setting, unit, why in (
        ("hidden_size", "units", " A smaller network has the smaller gap, but is the worse network."),
        ("train_size", "training images", " The fewer the images, the more it overfits."),
    ):
        for epochs in sorted({s.variant.epochs for s in known}):
            group = series(known, setting, epochs)
            if len(group) > 1:
                a, b = group[0], group[-1]
                said.append(
                    f"From {a.variant.settings[setting]:,} to {b.variant.settings[setting]:,} {unit} ({epochs} epochs) "
                    f"{says(a, b, 'training')}, {says(a, b, 'test')}, and {says(a, b, 'gap', 'points')}."
                )
                wanted = (1, -1) if setting == "hidden_size" else (-1, -1)
                if (change(a, b, "gap"), change(a, b, "test")) == wanted:
                    said[-1] += why
    for s in known:
        if changed(s.variant) - {"epochs", "hidden_size", "train_size"} and s.variant.epochs in base:
            b = base[s.variant.epochs]
            so = {
                (-1, -1): ": it helps",
                (-1, 0): ": a smaller gap, but no clearly better test",
                (-1, 1): ": a smaller gap, by training worse",
            }.get((change(b, s, "gap"), change(b, s, "test")), "")
            name = s.variant.name[0].upper() + s.variant.name[1:]
            said.append(
                f"{name}: {says(b, s, 'test')}, {says(b, s, 'gap', 'points')}, and "
                f"{says(b, s, 'test loss', 'nats')}{so}."
            )
    choice = best(known)
    if choice is not None:
        said.append(
            f"The lowest validation error, {choice.mean('validation'):.2f} %, has: {choice.variant.name}. Its test "
            f"error is {choice.mean('test'):.2f} %, its gap {choice.mean('gap'):.2f} points."
        )
    return said or [f"No finding: it takes {MIN_SEEDS} seeds a variant or more."]


def best(summaries: Sequence[Summary]) -> Summary | None:
    """The variant with the lowest validation error; test data chooses nothing."""
    return min((s for s in summaries if s.values["validation"]), key=lambda s: s.mean("validation"), default=None)


NOTE = (
    "Training, validation and test: errors in % of the images. Gap: test error less training error, in points. Behind "
    "±: the standard deviation over seeds. In the finding a figure falls or rises if it does so by more than "
    f"{MIN_STANDARD_ERRORS} standard errors of the difference. That is about seeds alone: on other test images, 2 % "
    "would vary by 0.14 (one standard error of 10,000 draws) for all variants together."
)


def report(out: Path, table: Sequence[Variant]) -> str:
    """Write the three files from the cells that ``out`` holds, and return what a terminal shows."""
    cells = read_cells(out, {variant.name: variant for variant in table})
    summaries, text = summarize(cells, table), io.StringIO()
    if cells:
        writer = csv.DictWriter(text, list(cells[0]), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
    write_atomically(out / "overfitting.csv", text.getvalue().encode())
    said = finding(summaries)
    write_atomically(out / "overfitting.md", "\n\n".join([markdown(summaries), NOTE, *said, ""]).encode())
    figures.save(draw(summaries), out / "overfitting.png")
    return "\n".join([*terminal(summaries), "", *(textwrap.fill(line, 79) for line in (NOTE, *said))])


def markdown(summaries: Sequence[Summary]) -> str:
    """The table."""
    heading = ["variant", "epochs", "parameters", "seeds", *COLUMNS]
    rows = [heading, ["---", *["---:"] * (len(heading) - 1)]]
    for s in summaries:
        facts = [s.variant.label, f"{s.epochs:.0f}", f"{s.parameters:,}", str(s.seeds)]
        rows.append([*facts, *(s.text(what) for what in COLUMNS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def terminal(summaries: Sequence[Summary]) -> list[str]:
    """The table in 78 columns."""
    lines = [f"{'variant':<20}{'ep.':>4}{'params':>7}{'n':>3}{'training':>11}{'valid.':>11}{'test':>11}{'gap':>11}"]
    for s in summaries:
        errors = "".join(f"{s.text(what):>11}" for what in COLUMNS[:4])
        lines.append(f"{s.variant.label:<20}{s.epochs:>4.0f}{s.parameters / 1000:>6,.0f}k{s.seeds:>3}{errors}")
    return lines


def panel(axes: "Axes", groups: Mapping[int, Sequence[Summary]], setting: str) -> None:
    """Training and test error against a setting, a pair of lines for each number of epochs."""
    title, xlabel, unit = {
        "hidden_size": ("More hidden units", "hidden units", 1),
        "train_size": ("More training images", "training images (thousands)", 1_000),
    }[setting]
    for epochs, group in groups.items():
        x = [s.variant.settings[setting] for s in group]
        last = epochs == max(groups)
        for what in ("training", "test"):
            axes.plot(
                x,
                [s.mean(what) for s in group],
                label=f"{what}, {epochs} epochs",
                color=figures.COLORS[what],
                marker=figures.MARKERS[what],
                markersize=5,
                markerfacecolor=figures.COLORS[what] if last else "white",
                linestyle="-" if last else "--",
                clip_on=False,
                zorder=3,
            )
        if last:
            means = {what: [s.mean(what) for s in group] for what in ("training", "test")}
            axes.fill_between(x, means["training"], means["test"], color=figures.LIGHT_GREY, linewidth=0)
    every = sorted({s.variant.settings[setting] for group in groups.values() for s in group})
    ticks = [tick for i, tick in enumerate(every) if not i or tick > 1.2 * every[i - 1]]  # 60,000 beside 55,000
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick / unit:g}" for tick in ticks], fontsize=9)
    axes.minorticks_off()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set(xlabel=xlabel, ylabel="error (% of images)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def remedy(variant: Variant) -> str:
    return variant.name if changed(variant) - {"epochs"} else f"no remedy, {variant.epochs} epochs"


@figures.house_style()
def draw(summaries: Sequence[Summary]) -> "Figure":
    """Above, the hidden size and the number of training images; below, the remedies.

    Returns:
        Axes for those of the three that have anything to compare. What their lines mark are the
        table's means.
    """
    lengths = sorted({s.variant.epochs for s in summaries})
    sizes = {n: group for n in lengths if len(group := series(summaries, "hidden_size", n)) > 1}
    images = {n: group for n in lengths if len(group := series(summaries, "train_size", n)) > 1}
    remedies = [s for s in summaries if not changed(s.variant) & {"hidden_size", "train_size"}]
    remedies.sort(key=lambda s: s.variant.epochs)
    # From above to below, with some air between two numbers of epochs.
    places = [0.3 * i + 0.2 * lengths.index(s.variant.epochs) for i, s in enumerate(remedies)]
    above, below = 3.25 * bool(sizes or images), 1.35 + places[-1] if remedies else 0.1
    figure = figures.blank_figure(
        0.75 + above + below,
        "Why does it overfit?",
        "Training and test error of the tutorial's network and of its variants. Grey: the gap between them.",
    )
    if sizes:
        panel(figures.axes_at(figure, 0.8, below + 0.6, 3.1, 2.3), sizes, "hidden_size")
    if images:
        panel(figures.axes_at(figure, 4.6, below + 0.6, 3.1, 2.3), images, "train_size")
    if remedies:
        axes = figures.axes_at(figure, 2.6, 0.55, 4.3, below - 0.9)
        for y, s in zip(places, remedies, strict=True):
            axes.plot([s.mean("training"), s.mean("test")], [y, y], color=figures.LIGHT_GREY, linewidth=6, zorder=1)
            for what in ("training", "test"):
                axes.errorbar(
                    s.mean(what),
                    y,
                    xerr=s.deviation(what) if s.seeds > 1 else None,
                    fmt=figures.MARKERS[what],
                    color=figures.COLORS[what],
                    label=what if s is remedies[0] else None,
                    markersize=6,
                    elinewidth=1,
                    capsize=3,
                    clip_on=False,
                    zorder=3,
                )
            axes.text(
                1.15, y, f"{s.mean('gap'):.2f}", transform=axes.get_yaxis_transform(), ha="right", va="center_baseline"
            )
        axes.text(1.15, 1.02, "gap (points)", transform=axes.transAxes, ha="right", va="bottom", color=figures.GREY)
        axes.text(-2.3 / 4.3, 1.02, "Remedies", transform=axes.transAxes, va="bottom", fontweight="bold")
        axes.set_yticks(places, [remedy(s.variant) for s in remedies], color=figures.BLACK)
        axes.set_ylim(places[-1] + 0.25, -0.25)
        axes.set_xlim(left=0)
        axes.set_xlabel("error (% of images), with the standard deviation over seeds")
        axes.tick_params(axis="y", length=0, pad=8)
        axes.grid(axis="x")
        axes.legend(
            frameon=False,
            ncols=2,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderpad=0,
            handletextpad=0,
            columnspacing=1,
        )
    return figure


# -------------------------------------------------------------------------------- the command line


class OneLineParser(argparse.ArgumentParser):
    """An error of the command line is one line, like any other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(args: Sequence[str] | None = None, table: Sequence[Variant] = VARIANTS) -> int:
    """Train what is missing, and report.

    Returns:
        0; 2 for unusable input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser = OneLineParser(
        prog="overfitting.py", description="Why does it overfit, and what helps?", allow_abbrev=False
    )
    parser.add_argument("--full", action="store_true", help=f"all {len(table)} variants on 3 seeds")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="these instead, see --list")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: 0 1; of the full table 0 1 2")
    parser.add_argument("--out", type=Path, default=Path("overfitting"), metavar="DIR", help="default: overfitting")
    parser.add_argument(
        "--merge", nargs="+", type=Path, metavar="DIR", help="take over the cells of these, or of their .csv"
    )
    parser.add_argument("--list", action="store_true", help="name the variants")
    variants = {variant.name: variant for variant in table}
    logger = logging.getLogger("lightning.pytorch")
    logger.setLevel(logging.WARNING)  # no tips
    try:
        options = parser.parse_args(args)
        selected = select(options, table)
        if options.list:
            for variant in table:
                print(f"{variant.slug:<34}{variant.name}")
            return 0
        if options.merge:
            merge(options.merge, options.out, variants)
        else:
            prepare(options.out)
            with StopOnSIGTERM() as stop:
                train_cells(selected, options.out, variants, stop)
        print(f"\n{report(options.out, table)}\n\nwrote overfitting.csv, .md and .png in {options.out}")
    except InputError as error:
        print(f"overfitting.py: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stopped:  # Lightning makes the second of the first
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 143 if isinstance(stopped, SIGTERMException) else 130
    return 0


def select(options: argparse.Namespace, table: Sequence[Variant]) -> list[tuple[Variant, int]]:
    """The cells that are asked for, seed by seed, so that a table broken off is whole for the first seeds."""
    by_slug = {variant.slug: variant for variant in table}
    slugs = options.variants or ([*by_slug] if options.full else [slug for slug in by_slug if slug in SELECTION])
    seeds = options.seeds or ([0, 1, 2] if options.full else [0, 1])
    if options.full and options.variants:
        raise InputError("--full trains all variants: leave out --variants, or --full")
    if options.merge and (options.full or options.variants or options.seeds):
        raise InputError("--merge trains nothing: leave out --full, --variants and --seeds")
    for slug in slugs:
        if slug not in by_slug:
            guess = difflib.get_close_matches(slug, by_slug, n=1)
            hint = f" (did you mean {guess[0]}?)" if guess else ""
            raise InputError(f"no variant {slug!r}{hint}: --list names them")
    for what, given in (("variant", slugs), ("seed", seeds)):
        twice = [value for value in given if given.count(value) > 1]
        if twice:
            raise InputError(f"{what} {twice[0]} is given twice")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"a seed must be from 0 to {2**32 - 1}, got {seed}")
    return [(by_slug[slug], seed) for seed in seeds for slug in slugs]


def prepare(out: Path) -> None:
    """See that the folder can be written to, before hours of training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {str(out)!r} ({error.strerror}): choose another --out") from error


def merge(folders: Sequence[Path], out: Path, variants: Mapping[str, Variant]) -> None:
    """Take over the cells that ``out`` does not hold; of two that are the same, the first counts."""
    found = {folder: read_cells(folder, variants) for folder in folders}
    for folder, cells in found.items():
        if not cells:
            raise InputError(
                f"no cells in {str(folder)!r}: --merge takes folders that --out has made, or their overfitting.csv"
            )
    for folder, cells in found.items():
        new = [cell for cell in cells if not cell_path(out, variants[cell["variant"]], cell["seed"]).exists()]
        for cell in new:
            write_cell(out, variants[cell["variant"]], cell)
        print(f"{len(new)} of {len(cells)} cells taken over from {folder}")


if __name__ == "__main__":
    sys.exit(main())
