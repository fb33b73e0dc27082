"""What ``inspect`` says of the data, against numpy on the files' own bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_lightning import MNISTDataModule
from mnist_lightning.data.datasets import split_images
from mnist_lightning.results import style
from mnist_lightning.results.inspection import class_counts, describe_data, draw_data


@pytest.mark.parametrize("val_size", [0, 1, 10_000, 59_998])
def test_description_counts_and_means_are_numpy_s_and_each_picture_is_written(
    val_size: int, mnist: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datamodule = MNISTDataModule(val_size=val_size)
    datamodule.setup()
    train, val = split_images(60_000, val_size, None)
    (images, labels), (_, test_labels) = mnist("train"), mnist("t10k")
    expected = {"training": labels[train], "validation": labels[val], "test": test_labels}
    found = {split: count.tolist() for split, count in class_counts(datamodule).items()}
    assert found == {
        split: np.bincount(digits, minlength=10).tolist() for split, digits in expected.items() if len(digits)
    }

    text = describe_data(datamodule)
    lines = text.splitlines()
    assert text.isascii()
    assert max(map(len, lines)) <= 60
    assert "test_images  (10000, 28, 28) uint8 0 ... 255" in lines
    assert "test_labels  (10000,)        int64 [7, 2, 1, ..., 4, 5, 6]" in lines
    if val_size == 0:
        assert "train_labels (60000,)        int64 [5, 0, 4, ..., 5, 6, 8]" in lines
        assert "    1   6,742   11.2%   1,135   11.3%" in lines
        assert "  all  60,000  100.0%  10,000  100.0%" in lines
    assert ("val" in text) == (val_size > 0)

    drawn: dict[str, Any] = {}
    save = style.save
    monkeypatch.setattr(style, "save", lambda picture, path: save(drawn.setdefault(path.name, picture), path))
    paths = draw_data(datamodule, tmp_path / "new")
    assert [path.name for path in paths] == ["samples.png", "class_counts.png", "mean_images.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == 1600
            assert 600 < picture.height < 1800
    sheet = drawn["mean_images.png"].axes[0].images[0].get_array()
    images, labels = images[train], labels[train]
    for digit in range(10):
        y, x = 36 * (digit // 5), 36 * (digit % 5)
        mean = sheet[y : y + 28, x : x + 28]
        if (labels == digit).any():
            np.testing.assert_allclose(mean, images[labels == digit].mean(0), rtol=1e-4, atol=1e-3)
        else:
            assert mean.mask.all()  # white paper
