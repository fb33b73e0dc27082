"""A data set in memory: bytes, from which samples or whole batches of floats are made."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mnist_lightning.errors import InputError

Batch = tuple[Tensor, Tensor]
"""``(images, targets)``: of MNIST, ``(B, 1, 28, 28)`` float in [0, 1], and ``(B,)`` int64 in 0 ... 9."""

Sample = tuple[Tensor, int]
"""``(image, target)``: of MNIST, ``(1, 28, 28)`` float in [0, 1], and a number in 0 ... 9."""


class MNISTDataset(Dataset[Sample]):
    """Images in memory as uint8. ``dataset[i]`` is ``(image, target)``, as in torchvision, with an image of floats.

    Args:
        images: ``(N, 28, 28)`` or ``(N, C, H, W)`` uint8.
        targets: ``(N,)`` int64 from 0.
        transform: A function that changes each batch of images, ``(B, 1, 28, 28)`` float in [0, 1], to
            ``(B, ...)`` float.
        train_transform: A function that changes what ``transform`` returns, and keeps its shape.

    Attributes:
        dtype: The dtype of the images in a batch; ``None`` means torch's default dtype.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        transform: Callable[[Tensor], Any] | None = None,
        train_transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.images = images if images.ndim == 4 else images.unsqueeze(1)
        self.targets = targets
        self.transform = transform
        self.train_transform = train_transform
        self.dtype: torch.dtype | None = None
        self._rows = np.arange(len(images))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = tuple(self.images.shape[1:])
        return f"{type(self).__name__}({len(self):,} images of shape {shape}, transform={self.transform})"

    def __getitem__(self, index: int) -> Sample:
        images, targets = self.batch([range(len(self))[index]])  # the range knows negative numbers, and where it ends
        return images[0], int(targets[0])

    def __getitems__(self, indices: Sequence[int]) -> "Samples":
        """The samples of a batch. A DataLoader calls this where a dataset has it, and so does torch's ``Subset``."""
        return Samples(*self.batch(indices))

    def batch(self, indices: Any) -> Batch:
        """The images and targets at some indices: a list, an array, a slice, whatever numpy takes for rows.

        Returns:
            ``(B, 1, 28, 28)`` float in [0, 1], or what the transforms make of that, and ``(B,)`` int64.

        Raises:
            InputError: If a transform returns anything but a float tensor with a row for each image.
        """
        # CUDA reads the indices before this returns, without waiting for its earlier work. MPS may read them later.
        rows = torch.from_numpy(np.ascontiguousarray(self._rows[indices]))
        rows = rows.to(self.images.device, non_blocking=self.images.is_cuda)
        # To copy 128 images, index_select takes 5 µs and self.images[rows] takes 94.
        images = self._scaled(self.images.index_select(0, rows))
        if self.transform is not None:
            images = _transformed("transform", self.transform, images)
        if self.train_transform is not None:
            images = _transformed("train_transform", self.train_transform, images, tuple(images.shape))
        return images, self.targets.index_select(0, rows)

    def to(self, device: torch.device, dtype: torch.dtype | None) -> "MNISTDataset":
        """A copy that makes batches on a device, in a dtype; pixels that are there already are not copied."""
        moved = copy.copy(self)
        moved.images, moved.targets, moved.dtype = self.images.to(device), self.targets.to(device), dtype
        return moved

    def _scaled(self, pixels: Tensor) -> Tensor:
        # Divide in the dtype of the result, so that no value is rounded twice. And divide by a tensor: for a
        # number, CUDA multiplies by its reciprocal, and half of all pixels differ in the last bit.
        floats = pixels.to(self.dtype or torch.get_default_dtype())
        return floats.div_(torch.full((), 255, dtype=floats.dtype, device=floats.device))


class Samples(Sequence[Sample]):
    """The samples of a batch, ``(image, target)`` each. To stack 128 of them again would take 1.2 ms."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.batch = images, targets  # ``(B, ...)`` float, and ``(B,)`` int64

    def __len__(self) -> int:
        return len(self.batch[1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [*self][index]
        images, targets = self.batch
        return images[index], int(targets[index])

    def __iter__(self) -> Iterator[Sample]:
        images, targets = self.batch
        return iter(zip(images.unbind(), targets.tolist(), strict=True))


def collate(samples: Sequence[Sample]) -> Batch:
    """The ``collate_fn`` of this package's loaders: torch's own, unless the samples are a batch already."""
    if isinstance(samples, Samples):
        return samples.batch
    images, targets = default_collate([*samples])
    return images, targets


def _transformed(
    name: str, transform: Callable[[Tensor], Any], images: Tensor, shape: tuple[int, ...] | None = None
) -> Tensor:
    """What a user's function makes of a batch of images, on their device, in their dtype and, if given, of a shape."""
    try:
        transformed = transform(images)
    except TypeError as error:
        if "pic should be PIL Image" not in str(error):
            raise
        raise InputError(
            f"{name}: the images are float tensors in [0, 1] already, (B, C, H, W): leave ToTensor() out"
        ) from error
    if isinstance(transformed, Tensor):
        got = f"{transformed.dtype} of shape {tuple(transformed.shape)}"
        alike = transformed.shape == shape if shape else transformed.shape[:1] == images.shape[:1]
        if alike and transformed.is_floating_point():
            return transformed.to(images.device, images.dtype)
    else:
        got = type(transformed).__name__
    wanted = f"{shape}, like its input" if shape else f"({len(images)}, ...), a row for each image"
    raise InputError(f"{name} must return a float tensor of shape {wanted}, got {got}")
