"""Reads a picture: a photograph, a scan, an array."""

import contextlib
import os
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_lightning.errors import InputError

LONGEST, SHORTEST = 1600, 200  # pixels: a longer side is made smaller, or larger, before digits are looked for


def as_picture(image: Any) -> Image.Image:
    """An upright picture of a path, an image or an array."""
    if isinstance(image, (str, os.PathLike)):
        return open_picture(image)
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        image = Image.fromarray(array if array.dtype == np.uint8 else array.astype(np.float32))
    return _upright(image)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """A picture from a file: upright, of 8 bits, without transparency.

    Raises:
        InputError: If the file has not one picture that can be read.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):  # noqa: PTH113  # Path.is_file raises an error if a name is too long
        raise InputError(f"no picture at {name!r}: give a picture, or a folder of pictures")
    with contextlib.suppress(ImportError):
        import pillow_heif  # photographs of some phones; it need not be there

        pillow_heif.register_heif_opener()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of very large pictures
            with Image.open(path, formats=formats()) as picture:
                # A phone's JPEG may be an MPO. Its first picture is the photograph.
                if picture.format == "MPO" or not getattr(picture, "is_animated", False):
                    return _upright(picture)
    except UnidentifiedImageError as error:
        raise InputError(f"{name!r} is no picture: give a PNG, a JPEG or another file that Pillow opens") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name!r} has too many pixels: make it smaller than 178 million") from error
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{name!r} cannot be read as a picture, or was cut short ({error})") from error
    raise InputError(f"{name!r} has several pictures: save the one to read by itself")


def formats() -> list[str]:
    """The kinds of files that are read: not EPS, which is a program, and none that Pillow only recognises."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")]


def _upright(picture: Image.Image) -> Image.Image:
    """In mode ``L`` or ``RGB``."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):  # 16 bits, of which a scanner may use 12
        values = np.nan_to_num(np.asarray(picture, np.float32))
        values -= min(float(values.min()), 0)
        return Image.fromarray((255 * values / float(values.max() or 1)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def resized(picture: Image.Image) -> tuple[np.ndarray, float, int]:
    """A picture's brightness, ``(H, W)`` in [0, 1], resized; its scale, and the pixels added on each side."""
    picture, longest = picture.convert("L"), max(picture.size)
    smaller = -(-longest // LONGEST)
    grey = np.asarray(picture.reduce(smaller), np.float32) / 255
    if longest > SHORTEST:
        return grey, 1 / smaller, 0
    added = longest // 4 + 1
    # A small picture may be cut close to its digit: add paper like its border.
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    image = Image.fromarray(np.pad(grey, added, constant_values=np.median(border)))
    factor = -(-SHORTEST // longest)
    larger = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    return np.asarray(larger).clip(0, 1), factor, added
