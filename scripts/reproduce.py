"""Train as ``python -m mnist_lightning fit`` does, on many seeds, and compare with Keras 2.2.4.

    OMP_NUM_THREADS=1 python scripts/reproduce.py --seeds 20

prints a Markdown table: Keras's figures over 60 seeds, this package's over its own, and how far apart they lie.
"""

import argparse
import contextlib
import io
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist_lightning.cli import main as mnist_lightning
from mnist_lightning.runs import Run

EPOCHS = 5
KERAS = Path(__file__).parent.parent / "tests" / "keras-2.2.4-one-thread-seeds-1-60.jsonl"

# What the tutorial's notebook printed in April 2019 (its test loss is not in it).
NOTEBOOK = {
    **{f"loss, epoch {n}": loss for n, loss in enumerate((0.2551, 0.1023, 0.0671, 0.0493, 0.0365), 1)},
    **{f"acc, epoch {n}": acc for n, acc in enumerate((0.9257, 0.9690, 0.9800, 0.9855, 0.9885), 1)},
    "test acc": 0.9778,
}

# What is promised of 20 seeds.
MAX_STANDARD_ERRORS, MAX_RATIO = 3, 2
ENOUGH_SEEDS = 5  # for a verdict

Result = dict[str, Any]
"""``seed``, ``loss`` and ``acc`` (one number per epoch), ``test_loss`` and ``test_acc``."""


def train(seed: int) -> Result:
    """The figures of ``python -m mnist_lightning fit --seed_everything SEED``."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        mnist_lightning(["fit", f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"])
        *rows, test = Run.open(root=folder).metrics
    loss, acc = ([row[name] for row in rows] for name in ("train_loss", "train_acc"))
    return {"seed": seed, "loss": loss, "acc": acc, "test_loss": test["test_loss"], "test_acc": test["test_acc"]}


def figures(results: Sequence[Result]) -> dict[str, list[float]]:
    """The values over all seeds of each figure that is compared."""
    columns = {
        f"{what}, epoch {n + 1}": [r[what][n] for r in results] for what in ("loss", "acc") for n in range(EPOCHS)
    }
    return {**columns, "test loss": [r["test_loss"] for r in results], "test acc": [r["test_acc"] for r in results]}


class Comparison(NamedTuple):
    """One figure here and in Keras."""

    mean: float
    deviation: float  # the standard deviation of one run (NaN for a single one)
    keras_mean: float
    keras_deviation: float
    errors: float  # difference of the means, in standard errors of the difference
    ratio: float  # the standard deviation here by that in Keras


def compare(results: Sequence[Result], keras: Sequence[Result]) -> dict[str, Comparison]:
    """Compare each figure of two samples of runs."""
    comparisons = {}
    theirs = figures(keras)
    for name, values in figures(results).items():
        mean, keras_mean = statistics.fmean(values), statistics.fmean(theirs[name])
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        keras_deviation = statistics.stdev(theirs[name])
        errors = (mean - keras_mean) / math.sqrt(deviation**2 / len(values) + keras_deviation**2 / len(keras))
        ratio = deviation / keras_deviation
        comparisons[name] = Comparison(mean, deviation, keras_mean, keras_deviation, errors, ratio)
    return comparisons


def misses(comparisons: Mapping[str, Comparison]) -> list[str]:
    """What lies outside the bounds, in words."""
    found = []
    for name, c in comparisons.items():
        if not abs(c.errors) <= MAX_STANDARD_ERRORS:
            found.append(f"{name}: {c.errors:+.1f} standard errors")
        if not 1 / MAX_RATIO <= c.ratio <= MAX_RATIO:
            found.append(f"{name}: standard deviation {c.ratio:.2f} times Keras's")
    return found


def report(results: Sequence[Result], keras: Sequence[Result]) -> str:
    """The comparison as a Markdown table, and a verdict below it."""
    comparisons = compare(results, keras)
    here, there = f"{len(results)} seeds here", f"{len(keras)} seeds of Keras 2.2.4"
    rows = [["", "notebook", there, "s.d.", here, "s.d.", "difference (s.e.)", "ratio of s.d."], ["---", *["---:"] * 7]]
    for name, c in comparisons.items():
        figures = [f"{figure:.5f}" for figure in (c.keras_mean, c.keras_deviation, c.mean, c.deviation)]
        notebook = f"{NOTEBOOK[name]:.4f}" if name in NOTEBOOK else ""
        cells = [*figures, f"{c.errors:+.1f}", f"{c.ratio:.2f}"]
        rows.append([name, notebook, *("" if "nan" in cell else cell for cell in cells)])  # one seed has no s.d.
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if len(results) < ENOUGH_SEEDS:
        return f"{table}\n\nNo verdict: it takes {ENOUGH_SEEDS} seeds or more."
    found = misses(comparisons)
    return (
        f"{table}\n\nWithin {MAX_STANDARD_ERRORS} standard errors of the difference, and standard deviations within a "
        f"factor of {MAX_RATIO}: {'NO: ' + '; '.join(found) if found else 'yes, everywhere'}."
    )


def main(args: Sequence[str] | None = None) -> int:
    """Print the table; 0 if all figures agree or the seeds are too few to say, 1 if not, 2 for unusable input."""
    parser = argparse.ArgumentParser(description="Compare many seeds with Keras 2.2.4's.")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many, from 0 on; default: 20")
    seeds = parser.parse_args(args).seeds
    if seeds < 1:
        parser.exit(2, f"reproduce: error: --seeds must be at least 1, got {seeds}\n")
    keras = [json.loads(line) for line in KERAS.read_text().splitlines()]
    results = []
    for seed in range(seeds):
        results.append(train(seed))
        print(f"seed {seed}: test_acc {results[-1]['test_acc']:.4f}", file=sys.stderr, flush=True)
    print(report(results, keras))
    return int(len(results) >= ENOUGH_SEEDS and bool(misses(compare(results, keras))))


if __name__ == "__main__":
    sys.exit(main())
