"""A data set in memory: bytes, from which images or batches of floats are made."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mnist_lightning.errors import InputError

Batch = tuple[Tensor, Tensor]
"""``(images, targets)``: of MNIST, ``(B, 1, 28, 28)`` float in [0, 1], and ``(B,)`` int64 in 0 ... 9."""


class MNISTDataset(Dataset[Batch]):
    """Images in memory as uint8. ``dataset[i]`` is an image, and ``dataset[indices]`` a batch, of floats.

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
        self._rows = np.arange(len(images))
        self.transform = transform
        self.train_transform = train_transform
        self.dtype: torch.dtype | None = None

    def to(self, device: torch.device, dtype: torch.dtype | None) -> "MNISTDataset":
        """A copy that makes batches on a device, in a dtype; pixels that are there already are not copied."""
        moved = copy.copy(self)
        moved.images, moved.targets, moved.dtype = self.images.to(device), self.targets.to(device), dtype
        return moved

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Batch:
        """One image and its digit, or a batch of them.

        Args:
            index: A number gives one image. A slice, or a list or an array of numbers, gives a batch.

        Returns:
            The image, ``(1, 28, 28)`` float in [0, 1], and its digit, ``()`` int64; or the images of
            the batch, ``(B, 1, 28, 28)``, and their digits, ``(B,)``. With ``transform``, the images are
            what it makes of them.

        Raises:
            InputError: If a transform returns anything but a float tensor of the shape that it may return.
        """
        rows = self._rows[index]  # numpy knows what an index of any kind means
        # On CUDA, the indices are read before this returns, and the program does not wait for the GPU's earlier work.
        # MPS may read them later.
        indices = torch.from_numpy(rows.ravel()).to(self.images.device, non_blocking=self.images.is_cuda)
        # To copy 128 images, index_select takes 5 µs and self.images[indices] takes 94.
        images = self._scaled(self.images.index_select(0, indices))
        if self.transform is not None:
            images = _transformed("transform", self.transform, images, keeps_shape=False)
        if self.train_transform is not None:
            images = _transformed("train_transform", self.train_transform, images, keeps_shape=True)
        targets = self.targets.index_select(0, indices)
        return images.reshape((*rows.shape, *images.shape[1:])), targets.reshape(rows.shape)

    def _scaled(self, pixels: Tensor) -> Tensor:
        # Divide in the dtype of the result, so that no value is rounded twice. And divide by a tensor: for a
        # number, CUDA multiplies by its reciprocal, and half of all pixels differ in the last bit.
        floats = pixels.to(self.dtype or torch.get_default_dtype())
        return floats.div_(torch.full((), 255, dtype=floats.dtype, device=floats.device))


def _transformed(name: str, transform: Callable[[Tensor], Any], images: Tensor, keeps_shape: bool) -> Tensor:
    """What a user's function makes of a batch of images, on their device and in their dtype."""
    shape, device, dtype = tuple(images.shape), images.device, images.dtype
    transformed = transform(images)  # may be anything
    if not isinstance(transformed, Tensor):
        got = type(transformed).__name__
    elif not transformed.is_floating_point() or (
        transformed.shape != shape if keeps_shape else transformed.shape[:1] != shape[:1]
    ):
        got = f"{transformed.dtype} of shape {tuple(transformed.shape)}"
    else:
        return transformed.to(device, dtype)
    wanted = f"{shape}, like its input" if keeps_shape else f"({shape[0]}, ...), a row for each image"
    raise InputError(f"{name} must return a float tensor of shape {wanted}, got {got}")
