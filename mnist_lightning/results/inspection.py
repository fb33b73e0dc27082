"""A look at the data before training: its shapes, its ranges, its counts, and pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.results import figures


def describe(datamodule: MNISTDataModule) -> str:
    """The shapes, ranges and counts of all splits, as in the tutorial.

    Args:
        datamodule: After ``setup("fit")`` and ``setup("test")``.

    Returns:
        Lines of plain ASCII; of MNIST, at most 60 columns wide.
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
    counts, word = class_counts(datamodule), figures.class_word(datamodule.classes)
    width = max(map(len, [word, *datamodule.classes]))
    lines += ["", f"{word:>{width}}" + "".join(f"{_short(name):>16}" for name in counts)]
    for number, name in enumerate(datamodule.classes):
        row = [(int(count[number]), int(count.sum())) for count in counts.values()]
        lines.append(f"{name:>{width}}" + "".join(f"{count:>8,}{count / total:>8.1%}" for count, total in row))
    lines.append(f"{'all':>{width}}" + "".join(f"{int(count.sum()):>8,}{1:>8.1%}" for count in counts.values()))
    return "\n".join(lines)


def class_counts(datamodule: MNISTDataModule) -> dict[str, Tensor]:
    """How often each class occurs in the training, the validation (if there is one) and the test, ``(C,)`` int64."""
    return {
        name: torch.bincount(dataset.targets.cpu(), minlength=datamodule.num_classes)
        for name, dataset in _splits(datamodule).items()
    }


def mean_images(datamodule: MNISTDataModule) -> Tensor:
    """The mean training image of each class, as float in 0 ... 255, or NaN for a class without images.

    Returns:
        ``(C, H, W)``, or ``(C, 3, H, W)`` in colour.
    """
    dataset = _splits(datamodule)["training"]
    images, targets = dataset.images.squeeze(1).cpu(), dataset.targets.cpu()
    return torch.stack([images[targets == number].float().mean(0) for number in range(datamodule.num_classes)])


def draw(datamodule: MNISTDataModule, folder: Path) -> list[Path]:
    """Write ``samples.png``, ``class_counts.png`` and ``mean_images.png`` into a folder, and return their paths."""
    counts, train = class_counts(datamodule), _splits(datamodule)["training"]
    called = datamodule.classes, datamodule.name
    pictures = {
        "samples.png": figures.samples_figure(train.images.squeeze(1).cpu(), train.targets.cpu(), *called),
        "class_counts.png": figures.counts_figure(counts, *called),
        "mean_images.png": figures.means_figure(mean_images(datamodule), counts["training"], *called),
    }
    return [figures.save(picture, folder / name) for name, picture in pictures.items()]


def _splits(datamodule: MNISTDataModule) -> dict[str, MNISTDataset]:
    train, val, test = datamodule.train_dataset, datamodule.val_dataset, datamodule.test_dataset
    if train is None or test is None:
        raise RuntimeError('the data is not loaded: call setup("fit") and setup("test") first')
    return {"training": train, **({} if val is None else {"validation": val}), "test": test}


def _short(split: str) -> str:
    return {"training": "train", "validation": "val"}.get(split, split)
