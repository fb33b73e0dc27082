"""Train as ``python -m mnist_lightning fit`` does, on many seeds, and compare with Keras 2.2.4.

    python scripts/reproduce.py --seeds 20 --out reproduce.jsonl

prints a Markdown table: Keras's figures over 60 seeds, this package's over its own, and how far
apart they lie. Each seed is written to ``--out`` as soon as it is done; the same command goes on
from there.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer, seed_everything

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import quiet
from mnist_lightning.errors import InputError
from mnist_lightning.model import prefer_onednn
from mnist_lightning.runs.history import MetricsCSV

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


def train(seed: int, epochs: int = EPOCHS) -> Result:
    """One run, with the figures of ``python -m mnist_lightning fit --seed_everything SEED``."""
    with quiet():
        seed_everything(seed, workers=True, verbose=False)
        model, data, log = MNISTClassifier(), MNISTDataModule(seed=seed), MetricsCSV()
        trainer = Trainer(
            max_epochs=epochs,
            logger=log,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        prefer_onednn(model)  # as the command does
        trainer.fit(model, datamodule=data)
        (test,) = trainer.test(model, datamodule=data, verbose=False)
    loss, acc = ([row[name] for row in log.rows[:epochs]] for name in ("train_loss", "train_acc"))
    return {"seed": seed, "loss": loss, "acc": acc, **test}


def train_seeds(seeds: Sequence[int], out: Path | None, train: Callable[[int], Result] = train) -> list[Result]:
    """Train every seed that ``out`` does not hold yet, and add it there."""
    results = {result["seed"]: result for result in (read(out) if out is not None and out.exists() else [])}
    todo = [seed for seed in seeds if seed not in results]
    if len(todo) < len(seeds):
        print(f"{len(seeds) - len(todo)} of {len(seeds)} seeds are in {out} already", file=sys.stderr)
    for done, seed in enumerate(todo, len(seeds) - len(todo) + 1):
        result = results[seed] = train(seed)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a+b") as file:  # in the place of a line that a killed run has left unfinished
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                file.write(json.dumps(result).encode() + b"\n")
        said = f"seed {seed} ({done} of {len(seeds)}): test_acc {result['test_acc']:.4f}"
        print(said, file=sys.stderr, flush=True)
    return [results[seed] for seed in seeds]


def read(path: Path) -> list[Result]:
    """Read results, one JSON object a line; a last line without its end, from a killed run, is passed over."""
    results = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            result = json.loads(line)
            values = [value for (value,) in figures([result]).values()]
            good = len(result["loss"]) == len(result["acc"]) == EPOCHS and isinstance(result["seed"], int)
            good = good and all(isinstance(value, (int, float)) for value in values)
        except (ValueError, LookupError, TypeError):
            good = False
        if not good:
            raise InputError(f"line {number} of {str(path)!r} is no result of {EPOCHS} epochs")
        results.append(result)
    return results


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
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many, default: 20")
    parser.add_argument("--first-seed", type=int, default=0, metavar="K", help="the first of them, default: 0")
    parser.add_argument("--reference", type=Path, default=KERAS, metavar="FILE.jsonl", help=f"default: {KERAS.name}")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="keeps the results, to stop and go on")
    options = parser.parse_args(args)
    try:
        if options.seeds < 1 or options.first_seed < 0:
            raise InputError("--seeds must be at least 1 and --first-seed at least 0")
        keras = read(options.reference)
        if len(keras) < 2:
            raise InputError(f"{str(options.reference)!r} holds {len(keras)} results: two or more are needed")
        results = train_seeds(range(options.first_seed, options.first_seed + options.seeds), options.out)
    except (OSError, InputError) as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    print(report(results, keras))
    return int(len(results) >= ENOUGH_SEEDS and bool(misses(compare(results, keras))))


if __name__ == "__main__":
    sys.exit(main())
