"""A look at the data before training: its shapes, its ranges, its counts, and pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.results import figures

DIGITS = 10


def describe(datamodule: MNISTDataModule) -> str:
    """The shapes, ranges and counts of all splits, as in the tutorial.

    Args:
        datamodule: After ``setup("fit")`` and ``setup("test")``.

    Returns:
        Lines of plain ASCII, at most 60 columns wide.
    """
    splits = _splits(datamodule)
    lines = []
    for name, dataset in splits.items():
        images, labels = dataset.images.squeeze(1), dataset.targets
        for what, tensor, values in (
            ("images", images, f"{int(images.min())} ... {int(images.max())}"),
            ("labels", labels, np.array2string(labels.numpy(force=True), threshold=6, separator=", ")),
        ):
            dtype = str(tensor.dtype).removeprefix("torch.")
            lines.append(f"{f'{_short(name)}_{what}':<12} {tuple(tensor.shape)!s:<15} {dtype:<5} {values}")
    counts = digit_counts(datamodule)
    lines += ["", f"{'digit':>5}" + "".join(f"{_short(name):>16}" for name in counts)]
    for digit in range(DIGITS):
        row = [(int(count[digit]), int(count.sum())) for count in counts.values()]
        lines.append(f"{digit:>5}" + "".join(f"{count:>8,}{count / total:>8.1%}" for count, total in row))
    lines.append(f"{'all':>5}" + "".join(f"{int(count.sum()):>8,}{1:>8.1%}" for count in counts.values()))
    return "\n".join(lines)


def digit_counts(datamodule: MNISTDataModule) -> dict[str, Tensor]:
    """How often each digit occurs in the training, the validation (if there is one) and the test, ``(10,)`` int64."""
    return {
        name: torch.bincount(dataset.targets.cpu(), minlength=DIGITS) for name, dataset in _splits(datamodule).items()
    }


def mean_images(datamodule: MNISTDataModule) -> Tensor:
    """The mean training image of each digit, ``(10, 28, 28)`` float in 0 ... 255, or NaN for a digit without images."""
    dataset = _splits(datamodule)["training"]
    images, targets = dataset.images.squeeze(1).cpu(), dataset.targets.cpu()
    return torch.stack([images[targets == digit].float().mean(0) for digit in range(DIGITS)])


def draw(datamodule: MNISTDataModule, folder: Path) -> list[Path]:
    """Write ``samples.png``, ``class_counts.png`` and ``mean_images.png`` into a folder, and return their paths."""
    counts, train = digit_counts(datamodule), _splits(datamodule)["training"]
    pictures = {
        "samples.png": figures.samples_figure(train.images.squeeze(1).cpu(), train.targets.cpu()),
        "class_counts.png": figures.counts_figure(counts),
        "mean_images.png": figures.means_figure(mean_images(datamodule), counts["training"]),
    }
    return [figures.save(picture, folder / name) for name, picture in pictures.items()]


def _splits(datamodule: MNISTDataModule) -> dict[str, MNISTDataset]:
    train, val, test = datamodule.train_dataset, datamodule.val_dataset, datamodule.test_dataset
    if train is None or test is None:
        raise RuntimeError('the data is not loaded: call setup("fit") and setup("test") first')
    return {"training": train, **({} if val is None else {"validation": val}), "test": test}


def _short(split: str) -> str:
    return {"training": "train", "validation": "val"}.get(split, split)
