"""``predict photo.jpg scans/``: what a run reads in pictures of handwriting."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mnist_lightning.data import MNISTDataModule
from mnist_lightning.data.same_data import check_same_data
from mnist_lightning.errors import InputError
from mnist_lightning.results.predictions import check_outputs, check_probabilities
from mnist_lightning.results.readings import SURE, Reading, cut, write
from mnist_lightning.runs import Run
from mnist_lightning.runs.progress import say, unbroken

HELP = "Words behind these options are pictures, or folders of pictures: predict photo.jpg scans/"
NO_VALUE = ("-h", "--help", "--print_config")  # every other flag has one


def predict_pictures(
    names: Sequence[str], run: Run, model: LightningModule, data: MNISTDataModule, trainer: Trainer
) -> None:
    """Print what the run reads in each picture or folder of pictures; write ``pictures.csv`` and ``pictures.png``."""
    from mnist_lightning.data.digit_images import DigitImages  # only here: it imports scipy and Pillow

    check_same_data(run.checkpoint, data, resume=False)
    if tuple(data.image_shape) != (1, 28, 28):
        raise InputError(f"pictures are read as images of shape (1, 28, 28), and this run's have {data.image_shape}")
    if trainer.world_size > 1:
        raise InputError("pictures are read by one process: leave out --trainer.devices and --trainer.num_nodes")
    readings, bad = _read(list(dict.fromkeys(_files(names))))
    if readings:
        say("From", unbroken(run.path))
        dtype: Any = model.dtype
        digits = DigitImages([reading.image for reading in readings], data.transform)
        loader = DataLoader(digits.to(trainer.strategy.root_device, dtype), data.batch_size)
        outputs: list[Any] = trainer.predict(model, loader, ckpt_path=str(run.path)) or []
        check_outputs(outputs, len(readings))
        probabilities = torch.cat(outputs).cpu()
        check_probabilities(probabilities)
        classes = [str(name) for name in data.classes]
        if len(classes) != probabilities.shape[1]:
            classes = [str(number) for number in range(probabilities.shape[1])]
        _say(readings, probabilities, classes)
        write(readings, probabilities, classes, run.folder)
        say("Written", f"pictures.csv and pictures.png in {unbroken(run.folder)}")
    if bad:
        raise SystemExit(2)  # after all others were read


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of ``predict`` without pictures, and the pictures: what is neither a flag nor a flag's value."""
    own: list[str] = []
    words: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            words += rest  # behind it, every word is a picture
        elif arg.startswith("-"):
            own.append(arg)
            if "=" not in arg and arg not in NO_VALUE:
                own += itertools.islice(rest, 1)
        else:
            if not words:
                own.append(arg)  # the command
            words.append(arg)
    return (own, words[1:]) if words[:1] == ["predict"] else (list(args), [])


def _files(names: Sequence[str]) -> Iterator[str | InputError]:
    """The files that were named, and in folders, all that may be pictures."""
    from PIL import Image

    from mnist_lightning.data.picture import formats

    kinds = formats()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112  # Path.is_dir raises an error if a name is too long
            yield name
            continue
        files = sorted(file for file in Path(name).glob("[!.]*") if file.suffix.lower() in suffixes and file.is_file())
        yield from map(str, files)
        if not files:
            yield InputError(f"no pictures in the folder {name!r}")


def _read(files: Sequence[str | InputError]) -> tuple[list[Reading], int]:
    """The digits in all pictures, and how many pictures could not be read, each of which is named."""
    from mnist_lightning.data.digit_images import read_digits
    from mnist_lightning.data.picture import open_picture

    readings: list[Reading] = []
    bad = 0
    for name in tqdm(files, "Reading", leave=False, file=sys.stdout, disable=not sys.stdout.isatty(), ascii=" #"):
        try:
            if isinstance(name, InputError):
                raise name
            picture = open_picture(name)
            found = read_digits(picture)
            if not found:
                raise InputError(f"{name!r} is empty: no ink was found on the page")
            readings += [Reading(name, box, image, cut(picture, box)) for box, image in found]
        except InputError as error:
            bad += 1
            tqdm.write(f"mnist_lightning: error: {error}", file=sys.stderr)
    return readings, bad


def _say(readings: Sequence[Reading], probabilities: Tensor, classes: Sequence[str]) -> None:
    lines: dict[str, list[str]] = {}
    for reading, row in zip(readings, probabilities, strict=True):
        word = _printable(classes[int(row.argmax())])
        if row.max() < SURE:
            word += "?"
        lines.setdefault(reading.file, []).append(word)
    for file, words in lines.items():
        print(f"{_printable(file)}  {' '.join(words)}", flush=True)


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
