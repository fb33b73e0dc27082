"""Samples and batches of a data set: what is in them, for our loaders and for everybody else's."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate, random_split
from torchvision import transforms

from mnist_lightning.data import MNISTDataset
from mnist_lightning.data.dataset import Samples, collate
from mnist_lightning.errors import InputError


@pytest.fixture
def dataset(mnist: Callable) -> Callable[..., MNISTDataset]:
    """Makes a data set of the first test images."""

    def make(count: int = 10_000, **kwargs: Any) -> MNISTDataset:
        pixels, digits = mnist("t10k")
        return MNISTDataset(torch.from_numpy(pixels[:count]), torch.from_numpy(digits[:count]).long(), **kwargs)

    return make


def test_a_sample_is_an_image_and_an_int_as_in_torchvision(dataset: Callable, mnist: Callable) -> None:
    pixels, digits = mnist("t10k")
    samples = dataset()
    assert len(samples) == 10_000
    assert repr(samples) == "MNISTDataset(10,000 images of shape (1, 28, 28), transform=None)"
    for index in (0, 1, 9_999, -1, np.int64(5), torch.tensor(7)):
        image, target = samples[index]
        assert (image.shape, image.dtype) == ((1, 28, 28), torch.float32)
        assert np.array_equal(image[0], pixels[int(index)].astype("f4") / np.float32(255))
        assert type(target) is int
        assert target == digits[int(index)]
    assert Counter(target for _, target in samples) == Counter(digits.tolist())
    for take in (samples.__getitem__, lambda index: samples.batch([0, index])):
        for beyond in (10_000, -10_001):
            with pytest.raises(IndexError):
                take(beyond)


def test_several_samples_are_a_sequence_that_knows_its_batch(dataset: Callable) -> None:
    plain = dataset(50)
    samples = plain.__getitems__([3, 1, 4])
    assert isinstance(samples, Samples)
    assert len(samples) == 3
    for read in ([*samples], [samples[i] for i in range(3)], samples[:3], [samples[i] for i in (-3, -2, -1)]):
        for (image, target), index in zip(read, (3, 1, 4), strict=True):
            assert torch.equal(image, plain[index][0])
            assert (type(target), target) == (int, plain[index][1])
    images, targets = samples.batch
    for batch in (collate(samples), default_collate(samples), collate([plain[i] for i in (3, 1, 4)])):
        assert torch.equal(batch[0], images)
        assert torch.equal(batch[1], targets)
    assert collate(samples)[0] is images  # not stacked again


def parts(data: MNISTDataset) -> dict[str, tuple[Any, list[int]]]:
    """Ways to take images of a data set of 100, and which of them these are."""
    _, part = random_split(data, [60, 40], torch.Generator().manual_seed(0))
    return {
        "itself": (data, [*range(100)]),
        "Subset": (Subset(data, [7, 7, 3, *range(50)]), [7, 7, 3, *range(50)]),
        "Subset of a Subset": (Subset(Subset(data, range(50, 100)), [0, 9]), [50, 59]),
        "random_split": (part, [*part.indices]),
        "ConcatDataset": (ConcatDataset([data, Subset(data, [5])]), [*range(100), 5]),
    }


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12's, as pytest-xdist has threads
@pytest.mark.parametrize("collate_fn", [None, collate], ids=["torch's collate", "ours"])
@pytest.mark.parametrize("way", ["itself", "Subset", "Subset of a Subset", "random_split", "ConcatDataset"])
def test_a_users_own_loader_gives_the_same_images(way: str, collate_fn: Any, dataset: Callable) -> None:
    data = dataset(100)
    taken, rows = parts(data)[way]
    context = (
        {"num_workers": 1, "multiprocessing_context": "fork"} if (way, sys.platform) == ("Subset", "linux") else {}
    )
    loader = DataLoader(taken, batch_size=32, collate_fn=collate_fn, **context)
    images, targets = (torch.cat(part) for part in zip(*loader, strict=True))
    for ours, wanted in zip((images, targets), data.batch(rows), strict=True):
        assert ours.dtype == wanted.dtype
        assert torch.equal(ours, wanted)


ROWS = [slice(128), slice(None, None, -7), [3, 1, -1], [], np.array([5, 3, 5])[::-1], torch.tensor([2, 1])]


@pytest.mark.parametrize("index", [*ROWS, np.arange(10_000) < 9], ids=str)
def test_a_batch_takes_whatever_numpy_takes_for_rows(index: Any, dataset: Callable, mnist: Callable) -> None:
    rows, (pixels, digits) = np.arange(10_000)[index], mnist("t10k")
    for transform, wanted in ((None, pixels[rows]), (lambda images: images.flip(3), pixels[rows][:, :, ::-1])):
        images, targets = dataset(train_transform=transform).batch(index)
        assert (images.shape, images.dtype) == ((len(rows), 1, 28, 28), torch.float32)
        assert (targets.shape, targets.dtype) == ((len(rows),), torch.int64)
        assert np.array_equal(images[:, 0], wanted.astype("f4") / np.float32(255))
        assert np.array_equal(targets, digits[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_pixels_are_divided_in_the_dtype_of_the_batch(dtype: torch.dtype) -> None:
    plain = MNISTDataset(torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16), torch.zeros(1, dtype=torch.int64))
    moved = plain.to(torch.device("cpu"), dtype)
    images, _ = moved.batch([0])
    assert images.dtype == dtype
    assert torch.equal(images.flatten(), (torch.arange(256, dtype=torch.float64) / 255).to(dtype))  # rounded once
    assert moved.images.data_ptr() == plain.images.data_ptr()  # uint8 in memory, and no copy
    torch.set_default_dtype(torch.float64)
    try:
        assert plain[0][0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


OTHER_SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "flat": (lambda images: images.flatten(1), (784,)),
    "three channels": (lambda images: images.expand(-1, 3, -1, -1), (3, 28, 28)),
    "padded": (lambda images: F.pad(images, (2, 2, 2, 2)), (1, 32, 32)),
    "numbers": (lambda images: images.mean((1, 2, 3)), ()),
    "float64": (lambda images: images.double(), (1, 28, 28)),
    "in place": (lambda images: images.neg_(), (1, 28, 28)),
}


@pytest.mark.parametrize(("transform", "shape"), OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_transform_may_return_another_shape(transform: Any, shape: tuple[int, ...], dataset: Callable) -> None:
    plain, data = dataset(10), dataset(10, transform=transform)
    images, targets = data.batch(slice(None))
    assert (images.shape, images.dtype) == ((10, *shape), torch.float32)
    assert torch.equal(images, transform(plain.batch(slice(None))[0]).float())
    assert torch.equal(targets, plain.targets)
    assert torch.equal(data[3][0], images[3])  # a sample is transformed as a batch of one
    assert data.batch([])[0].shape == (0, *shape)
    assert torch.equal(data.images, plain.images)


ODD: list[tuple[Any, str]] = [
    (lambda images: images[:5], r"torch.float32 of shape \(5, 1, 28, 28\)"),
    (lambda images: images.sum(), r"torch.float32 of shape \(\)"),
    (lambda images: (images * 255).to(torch.uint8), r"torch.uint8 of shape \(10, 1, 28, 28\)"),
    (lambda images: images.numpy(), "ndarray"),
    (lambda images: None, "NoneType"),
]


@pytest.mark.parametrize(("transform", "got"), ODD)
def test_a_transform_that_returns_something_else_is_refused(transform: Any, got: str, dataset: Callable) -> None:
    shape = {"transform": r"\(10, ...\), a row for each image", "train_transform": r"\(10, 1, 28, 28\), like its input"}
    for name, wanted in shape.items():
        with pytest.raises(InputError, match=f"^{name} must return a float tensor of shape {wanted}, got {got}"):
            dataset(10, **{name: transform}).batch(slice(None))


def test_train_transform_keeps_the_shape_that_transform_gave(dataset: Callable) -> None:
    data = dataset(10, transform=lambda x: F.pad(x, (2, 2, 2, 2)), train_transform=lambda x: x[..., :28, :28])
    with pytest.raises(InputError, match=r"^train_transform .* \(10, 1, 32, 32\), like .*, got .*\(10, 1, 28, 28\)"):
        data.batch(slice(None))


def test_to_tensor_is_told_what_the_images_are_already_and_other_errors_are_their_own(dataset: Callable) -> None:
    message = r"^transform: the images are float tensors in \[0, 1\] already, \(B, C, H, W\): leave ToTensor\(\) out$"
    for transform in (transforms.ToTensor(), transforms.Compose([transforms.ToTensor()])):
        with pytest.raises(InputError, match=message):
            dataset(10, transform=transform)[0]

    def broken(images: Tensor) -> Tensor:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        dataset(10, transform=broken)[0]
