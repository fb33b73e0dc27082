"""Why does the tutorial's network overfit, and what helps? Train variants of it on several seeds, and compare.

    python scripts/overfitting.py                             # a selection
    OMP_NUM_THREADS=1 python scripts/overfitting.py --full    # the whole table
    python scripts/overfitting.py --csv FILE --out DIR        # train nothing: table and picture of kept cells

One variant on one seed is a cell: a ``python -m mnist_lightning fit`` into a folder of its own, ``OUT/VARIANT/seed-N``,
with its output in ``log.txt`` and, when it is finished, its figures in ``cell.json``. After a kill, the same command
goes on. Several processes may share ``--out``, best with a seed each: no cell is trained by two of them. All cells in
``--out`` become ``overfitting.csv`` (a row each), ``overfitting.md`` (the table) and ``overfitting.png``.

Errors are taken in eval mode with the final weights, on the images as they are in the files: the running mean of an
epoch sees the weights move, dropout and the changed images. 5,000 of the 60,000 training images are held out for
validation; "60,000 images" holds out none, and has no validation error. Test data chooses nothing.
"""

import argparse
import contextlib
import csv
import io
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main as mnist_lightning
from mnist_lightning.data import MNISTDataset
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomically
from mnist_lightning.results.style import BLACK, GREY, LIGHT_GREY, axes_at, blank_picture, house_style, marks, save
from mnist_lightning.runs import Run
from mnist_lightning.runs.folder import lock_run
from mnist_lightning.safe_checkpoints import load_checkpoint

TRAIN_IMAGES, VAL_SIZE = 60_000, 5_000


class Variant(NamedTuple):
    """The tutorial's network and training, with what is changed."""

    label: str
    epochs: int = 5
    hidden_size: int = 512
    train_size: int = TRAIN_IMAGES - VAL_SIZE
    dropout: float = 0.0
    weight_decay: float = 0.0
    degrees: float = 0.0  # each batch is rotated by up to so many, either way
    shift: float = 0.0  # each batch is shifted by up to this part of the image's width, and of its height
    patience: int = 0  # stop after so many epochs without a lower validation loss; take the weights of the lowest

    @property
    def name(self) -> str:
        return f"{self.label}, {self.epochs} epochs"

    @property
    def slug(self) -> str:
        return self.name.replace(",", "").replace(" ", "-")

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._field_defaults}

    @property
    def changed(self) -> set[str]:
        """The settings that are not the tutorial's, but for the epochs."""
        return {name for name, value in self.settings.items() if value != self._field_defaults[name]} - {"epochs"}


VARIANTS = (
    *(Variant(f"{2**i} units", epochs, hidden_size=2**i) for epochs in (5, 50) for i in range(4, 12)),
    *(Variant(f"{size:,} images", 50, train_size=size) for size in (1_000, 3_000, 10_000, 30_000, TRAIN_IMAGES)),
    Variant("early stopping", 50, patience=5),
    *(Variant(f"dropout {share}", epochs, dropout=share) for epochs, share in ((5, 0.5), (50, 0.25), (50, 0.5))),
    *(Variant("weight decay 1e-4", epochs, weight_decay=1e-4) for epochs in (5, 50)),
    Variant("weight decay 1e-3", 50, weight_decay=1e-3),
    *(Variant("shifts, rotations", epochs, degrees=10, shift=0.05) for epochs in (5, 50)),
    Variant("shifts, dropout 0.25", 50, degrees=10, shift=0.05, dropout=0.25),
)
SELECTION = """
    16-units-5-epochs 512-units-5-epochs 2048-units-5-epochs 16-units-50-epochs 512-units-50-epochs
    1000-images-50-epochs 10000-images-50-epochs early-stopping-50-epochs
    dropout-0.5-5-epochs weight-decay-1e-4-5-epochs shifts-rotations-5-epochs
"""

Cell = dict[str, Any]
"""What was trained, and its figures: a row of ``overfitting.csv``. A cell that was resumed has no ``seconds``."""


class TorchClassifier(MNISTClassifier):
    """The network on torch's own layers, as in the kept table: the command prefers oneDNN, which rounds otherwise."""

    def on_fit_start(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.__class__ = nn.Linear


def command(variant: Variant, seed: int, folder: Path) -> list[str]:
    """What trains a cell, behind ``python -m mnist_lightning``."""
    arguments = [
        "fit",
        f"--seed_everything={seed}",
        f"--model.hidden_size={variant.hidden_size}",
        f"--model.dropout={variant.dropout}",
        f"--model.weight_decay={variant.weight_decay}",
        f"--data.val_size={min(VAL_SIZE, TRAIN_IMAGES - variant.train_size)}",
        f"--data.train_size={variant.train_size}",
        f"--trainer.max_epochs={variant.epochs}",
        "--trainer.accelerator=cpu",  # so small a network is hardly faster on a GPU, and all cells shall be alike
        "--trainer.devices=1",
        f"--trainer.default_root_dir={folder}",
    ]
    if variant.degrees or variant.shift:
        bilinear = 2  # Pillow's number for it: torchvision 0.21 takes no names
        affine = {"degrees": variant.degrees, "translate": [variant.shift] * 2, "interpolation": bilinear}
        transform = {"class_path": "torchvision.transforms.v2.RandomAffine", "init_args": affine}
        arguments.append(f"--data.train_transform={json.dumps(transform)}")
    if variant.patience:
        stopping = {"monitor": "val_loss", "patience": variant.patience}
        saving = {"filename": "{epoch}", "save_top_k": -1, "save_on_train_epoch_end": True}  # all epochs
        classes = (("EarlyStopping", stopping), ("ModelCheckpoint", saving))
        callbacks = [{"class_path": name, "init_args": options} for name, options in classes]
        arguments.append(f"--trainer.callbacks={json.dumps(callbacks)}")
    return arguments


def train(variant: Variant, seed: int, folder: Path) -> Cell:
    """Train a cell in its folder, or what is left of it to train, and write its ``cell.json``."""
    began, resume = time.monotonic(), ["--ckpt_path=last"] * any(folder.glob("lightning_logs/version_*"))
    with (folder / "log.txt").open("a", buffering=1, encoding="utf-8") as log, contextlib.redirect_stdout(log):
        mnist_lightning([*command(variant, seed, folder), *resume], model_class=TorchClassifier)
    path = Run.open(root=folder).path
    last = taken = load_checkpoint(path)
    if variant.patience:
        lowest = min(last["metrics_csv"], key=lambda row: row["val_loss"])
        taken = load_checkpoint(path.with_name(f"epoch={lowest['epoch']}.ckpt"))
    model = MNISTClassifier(**taken["hyper_parameters"])
    model.load_state_dict(taken["state_dict"])
    data = MNISTDataModule(**taken["datamodule_hyper_parameters"])
    data.setup("fit")
    data.setup("test")
    cell = {"variant": variant.name, "seed": seed, **variant.settings}
    cell["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    cell |= {"epochs_trained": last["epoch"] + 1, "weights_of_epoch": taken["epoch"] + 1}
    for split, dataset in (("train", data.train_dataset), ("val", data.val_dataset), ("test", data.test_dataset)):
        cell[f"{split}_loss"], cell[f"{split}_acc"] = (None, None) if dataset is None else evaluate(model, dataset)
    cell |= {f"running_{what}": last["metrics_csv"][-1][f"train_{what}"] for what in ("loss", "acc")}
    cell |= {"seconds": None if resume else round(time.monotonic() - began, 1), "torch": torch.__version__}
    write_atomically(folder / "cell.json", json.dumps(cell, indent=1).encode() + b"\n")
    return cell


def evaluate(model: MNISTClassifier, dataset: MNISTDataset) -> tuple[float, float]:
    """Loss and accuracy in eval mode, on the images as they are in the files."""
    model.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for images, targets in zip(dataset.images.split(5_000), dataset.targets.split(5_000), strict=True):
            logits = model(images / 255)
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            right += int((logits.argmax(dim=1) == targets).sum())
    return loss / len(dataset), right / len(dataset)


def train_cells(selected: Sequence[tuple[Variant, int]], out: Path) -> None:
    """Train the cells that are not finished and that no other process is training."""
    for number, (variant, seed) in enumerate(selected, 1):
        folder = out / variant.slug / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{number}/{len(selected)}  {variant.name}, seed {seed}: ", end="", flush=True)
        if (folder / "cell.json").exists():
            print("finished before")
            continue
        try:
            lock = lock_run(folder)
        except InputError:
            print("another process is training it")
            continue
        cell = train(variant, seed, folder)
        lock.release()
        training, test = (100 * (1 - cell[f"{split}_acc"]) for split in ("train", "test"))
        print(f"training error {training:.2f} %, test error {test:.2f} %")


def read_cells(source: Path) -> list[Cell]:
    """The finished cells in a folder, or those in an ``overfitting.csv``, in the table's order."""
    try:
        if source.is_file():
            with source.open(newline="", encoding="utf-8") as file:
                texts = ("variant", "torch")
                cells = [
                    {name: text if name in texts else json.loads(text or "null") for name, text in row.items()}
                    for row in csv.DictReader(file)
                ]
        else:
            cells = [json.loads(path.read_text(encoding="utf-8")) for path in source.glob("*/seed-*/cell.json")]
    except (TypeError, ValueError) as error:
        raise InputError(f"{str(source)!r} holds a damaged cell ({error}): give an overfitting.csv") from error
    if not cells:
        raise InputError(f"no finished cells in {str(source)!r}")
    table = {variant.name: variant for variant in VARIANTS}
    for cell in cells:
        name = cell.get("variant")
        if name not in table or not table[name].settings.items() <= cell.items():
            raise InputError(f"{str(source)!r} holds {name!r} with other settings than this table's: choose another")
    return sorted(cells, key=lambda cell: ([*table].index(cell["variant"]), cell["seed"]))


COLUMNS = ("training", "validation", "test", "gap", "test loss")
NOTE = (
    "Training, validation and test: errors in % of the images. Gap: test error less training error, in points. Behind "
    "±: the standard deviation over seeds. That is about seeds alone: on other test images, 2 % would vary by 0.14 "
    "(one standard error of 10,000 draws) for all variants together."
)
Groups = Mapping[Variant, Sequence[Cell]]  # a cell for each seed


def report(cells: Sequence[Cell], out: Path) -> str:
    """Write the three files, and return the table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    groups = {v: group for v in VARIANTS if (group := [cell for cell in cells if cell["variant"] == v.name])}
    table = markdown(groups)
    write_atomically(out / "overfitting.csv", text.getvalue().encode())
    write_atomically(out / "overfitting.md", f"{table}\n\n{NOTE}\n".encode())
    save(draw(groups), out / "overfitting.png")
    return table


def values(cells: Sequence[Cell], what: str) -> list[float]:
    """For each seed an error in %, the gap in points or the test loss in nats; nothing where none were held out."""
    if what == "test loss":
        return [cell["test_loss"] for cell in cells]
    if what == "gap":
        return [b - a for a, b in zip(values(cells, "training"), values(cells, "test"), strict=True)]
    name = {"training": "train_acc", "validation": "val_acc", "test": "test_acc"}[what]
    return [100 * (1 - cell[name]) for cell in cells if cell[name] is not None]


def mean(cells: Sequence[Cell], what: str) -> float:
    """The mean over seeds of one of the table's columns."""
    return statistics.fmean(values(cells, what))


def markdown(groups: Groups) -> str:
    """The table of means, with standard deviations over seeds."""
    heading = ["variant", "epochs", "parameters", "seeds", *COLUMNS]
    rows = [heading, ["---", *["---:"] * (len(heading) - 1)]]
    for variant, cells in groups.items():
        epochs = statistics.fmean(cell["epochs_trained"] for cell in cells)
        row = [variant.label, f"{epochs:.0f}", f"{cells[0]['parameters']:,}", str(len(cells))]
        for what in COLUMNS:
            numbers, digits = values(cells, what), 3 if what == "test loss" else 2
            spread = f"±{statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
            row.append(f"{mean(cells, what):.{digits}f}{spread}" if numbers else "")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@house_style()
def draw(groups: Groups) -> Figure:
    """Above, hidden units and training images; below, the remedies. What is marked are the table's means."""
    remedies = sorted((v for v in groups if not v.changed & {"hidden_size", "train_size"}), key=lambda v: v.epochs)
    # From above to below, with some air between 5 and 50 epochs.
    places = [0.3 * i + 0.2 * (variant.epochs > remedies[0].epochs) for i, variant in enumerate(remedies)]
    below = 1.35 + max(places, default=0)
    subtitle = "Training and test error of the tutorial's network and of its variants. Grey: the gap between them."
    figure = blank_picture(4 + below, "Why does it overfit?", subtitle)
    left, right = (axes_at(figure, at, below + 0.6, 3.1, 2.3) for at in (0.8, 4.6))
    draw_lines(left, groups, "hidden_size", "More hidden units", "hidden units")
    draw_lines(right, groups, "train_size", "More training images", "training images (thousands)", 1_000)
    if remedies:
        axes = axes_at(figure, 2.6, 0.55, 4.3, below - 0.9)
        draw_remedies(axes, {variant: groups[variant] for variant in remedies}, places)
    return figure


def draw_lines(axes: Axes, groups: Groups, setting: str, title: str, xlabel: str, unit: int = 1) -> None:
    """Training and test error against a setting, a pair of lines for each number of epochs."""
    family = sorted((variant for variant in groups if variant.changed <= {setting}), key=lambda v: getattr(v, setting))
    series = {epochs: [variant for variant in family if variant.epochs == epochs] for epochs in (5, 50)}
    series = {epochs: variants for epochs, variants in series.items() if len(variants) > 1}
    for epochs, variants in series.items():
        x = [getattr(variant, setting) for variant in variants]
        y = {what: [mean(groups[variant], what) for variant in variants] for what in ("training", "test")}
        style: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}
        if epochs == max(series):
            axes.fill_between(x, y["training"], y["test"], color=LIGHT_GREY, linewidth=0)
            style = {}
        for what, errors in y.items():
            axes.plot(x, errors, label=f"{what}, {epochs} epochs", markersize=5, **marks(what), **style)
    if series:
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    every = sorted({getattr(variant, setting) for variants in series.values() for variant in variants})
    ticks = [tick for i, tick in enumerate(every) if not i or tick > 1.2 * every[i - 1]]  # 60,000 beside 55,000
    axes.set(xscale="log", xlabel=xlabel, ylabel="error (% of images)", ylim=(0, None))
    axes.set_xticks(ticks, [f"{tick / unit:g}" for tick in ticks], fontsize=9)
    axes.minorticks_off()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.grid(axis="y")


def draw_remedies(axes: Axes, groups: Groups, places: Sequence[float]) -> None:
    """Training and test error of each variant in a row of its own, and the gap between them."""
    across = axes.get_yaxis_transform()
    for y, cells in zip(places, groups.values(), strict=True):
        ends = [mean(cells, "training"), mean(cells, "test")]
        axes.plot(ends, [y, y], color=LIGHT_GREY, linewidth=6, zorder=1)
        for what, error in zip(("training", "test"), ends, strict=True):
            spread = statistics.stdev(values(cells, what)) if len(cells) > 1 else None
            line: dict[str, Any] = {"xerr": spread, "elinewidth": 1, "capsize": 3, "linestyle": "", "markersize": 6}
            axes.errorbar(error, y, label=what if y == places[0] else None, **line, **marks(what))
        axes.text(1.15, y, f"{mean(cells, 'gap'):.2f}", transform=across, ha="right", va="center_baseline")
    axes.text(1.15, 1.02, "gap (points)", transform=axes.transAxes, ha="right", va="bottom", color=GREY)
    axes.text(-2.3 / 4.3, 1.02, "Remedies", transform=axes.transAxes, va="bottom", fontweight="bold")
    names = [v.name if v.changed else f"no remedy, {v.epochs} epochs" for v in groups]
    axes.set_yticks(places, names, color=BLACK)
    axes.set(xlabel="error (% of images), with the standard deviation over seeds")
    axes.set(xlim=(0, None), ylim=(places[-1] + 0.25, -0.25))
    axes.tick_params(axis="y", length=0, pad=8)
    axes.grid(axis="x")
    near: dict[str, Any] = {"borderpad": 0, "handletextpad": 0, "columnspacing": 1}
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), **near)


def main(args: Sequence[str] | None = None) -> None:
    """Train what is missing, and report; exit with 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    variants = {variant.slug: variant for variant in VARIANTS}
    parser = argparse.ArgumentParser(description="Why does it overfit, and what helps?", allow_abbrev=False)
    parser.add_argument("--full", action="store_true", help=f"all {len(VARIANTS)} variants on 3 seeds")
    parser.add_argument("--variants", nargs="+", choices=variants, metavar="NAME", help="these, as 16-units-5-epochs")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: 0 1; of the full table 0 1 2")
    parser.add_argument("--out", type=Path, default=Path("overfitting"), metavar="DIR", help="default: overfitting")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="train nothing, report the cells of this file")
    options = parser.parse_args(args)
    names = options.variants or (variants if options.full else SELECTION.split())
    seeds = options.seeds or ([0, 1, 2] if options.full else [0, 1])
    try:
        if options.csv is None:
            # Seed by seed: a study that was broken off has all variants on the first seeds.
            train_cells([(variants[name], seed) for seed in seeds for name in names], options.out)
        table = report(read_cells(options.csv or options.out), options.out)
        print(f"\n{table}\n\nwrote overfitting.csv, .md and .png in {options.out}")
    except (InputError, OSError) as error:
        parser.exit(2, f"overfitting.py: error: {error}\n")
    except SystemExit as stopped:
        if stopped.code != 2:
            print("\nstopped; the same command goes on", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
