"""What ``inspect`` says of the data, against numpy on the files' own bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_lightning import MNISTDataModule
from mnist_lightning.results import inspection


@pytest.fixture(scope="module", params=[0, 1, 10_000, 59_998])
def datamodule(request: pytest.FixtureRequest) -> MNISTDataModule:
    data = MNISTDataModule(val_size=request.param)
    data.setup("fit")
    data.setup("test")
    return data


def test_the_splits_are_counted_as_numpy_counts_them(datamodule: MNISTDataModule, mnist: Callable) -> None:
    counts = inspection.class_counts(datamodule)
    train, val = datamodule.split()
    _, labels = mnist("train")
    _, test_labels = mnist("t10k")
    assert counts["training"].tolist() == np.bincount(labels[train], minlength=10).tolist()
    assert counts["test"].tolist() == np.bincount(test_labels, minlength=10).tolist()
    if len(val):
        assert counts["validation"].tolist() == np.bincount(labels[val], minlength=10).tolist()
    else:
        assert "validation" not in counts


def test_the_mean_images_are_numpy_s(datamodule: MNISTDataModule, mnist: Callable) -> None:
    images, labels = mnist("train")
    train, _ = datamodule.split()
    images, labels = images[train], labels[train]
    for digit, mean in enumerate(inspection.mean_images(datamodule)):
        if (labels == digit).any():
            np.testing.assert_allclose(mean, images[labels == digit].mean(0), rtol=1e-4, atol=1e-3)
        else:
            assert mean.isnan().all()


def test_the_description_fits_60_columns_of_plain_ascii(datamodule: MNISTDataModule) -> None:
    text = inspection.describe(datamodule)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 60


def test_the_description_looks_at_shapes_and_labels_as_the_tutorial_does() -> None:
    data = MNISTDataModule()
    data.setup("fit")
    data.setup("test")
    text = inspection.describe(data)
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert ["train_images", "(60000, 28, 28) uint8 0 ... 255"] in lines
    assert ["train_labels", "(60000,)        int64 [5, 0, 4, ..., 5, 6, 8]"] in lines
    assert ["test_images", "(10000, 28, 28) uint8 0 ... 255"] in lines
    assert ["test_labels", "(10000,)        int64 [7, 2, 1, ..., 4, 5, 6]"] in lines
    assert "    1   6,742   11.2%   1,135   11.3%" in text.splitlines()
    assert "  all  60,000  100.0%  10,000  100.0%" in text.splitlines()
    assert "val" not in text


def test_held_out_images_are_described() -> None:
    data = MNISTDataModule(val_size=0.25)
    data.setup("fit")
    data.setup("test")
    assert any(line.startswith("val_images   (15000, 28, 28) uint8") for line in inspection.describe(data).splitlines())


@pytest.mark.parametrize("datamodule", [10_000, 59_998], indirect=True)
def test_each_picture_is_written(datamodule: MNISTDataModule, tmp_path: Path) -> None:
    paths = inspection.draw(datamodule, tmp_path / "new")
    assert [path.name for path in paths] == ["samples.png", "class_counts.png", "mean_images.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == 1600
            assert 600 < picture.height < 1800


def test_data_that_is_not_loaded_is_named() -> None:
    data = MNISTDataModule()
    data.setup("fit")
    with pytest.raises(RuntimeError, match=r"setup\(\"test\"\)"):
        inspection.describe(data)
