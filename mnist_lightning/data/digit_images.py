"""From a picture of handwriting to a dataset of images like MNIST's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.data.dataset import MNISTDataset
from mnist_lightning.data.digits import Box, find_digits
from mnist_lightning.data.ink import ink_of
from mnist_lightning.data.normal_form import normal_form, widened
from mnist_lightning.data.picture import as_picture, resized


def read_digits(image: Any) -> list[tuple[Box, np.ndarray]]:
    """Find the digits in a picture, and bring each into the form of MNIST's images.

    The picture may be dark on light or light on dark, in uneven light, or on ruled paper. Digits must not touch.

    Args:
        image: A path, a Pillow image of any mode, or an array: ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)`` uint8. It is
            turned as its EXIF data say. Transparent pixels are white.

    Returns:
        A pair for each digit, in reading order: its box, and its image, ``(28, 28)`` uint8 from 0 (paper) to 255 (ink).

    Raises:
        InputError: If the file has not one picture that can be read.
    """
    picture = as_picture(image)
    grey, scale, added = resized(picture)
    found = []
    for box, ink in find_digits(ink_of(grey)):
        places = [round(place / scale) - added for place in box]
        left, right = np.clip(places[::2], 0, picture.width).tolist()
        top, bottom = np.clip(places[1::2], 0, picture.height).tolist()
        found.append((Box(left, top, right, bottom), normal_form(widened(ink))))
    return found


class DigitImages(MNISTDataset):
    """Images of :func:`read_digits` for ``Trainer.predict``. Their target is -1: it is not known.

    ``transform`` is that of the data that the network was trained on.
    """

    def __init__(self, digits: Sequence[np.ndarray], transform: Callable[[Tensor], Any] | None = None) -> None:
        images = torch.from_numpy(np.array(digits, np.uint8).reshape(-1, 28, 28))
        super().__init__(images, torch.full((len(images),), -1), transform)
