"""``predict photo.jpg scans/``: what a run reads in pictures of handwriting."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mnist_lightning.cli.bad_input import in_one_line
from mnist_lightning.cli.checks import WRITES
from mnist_lightning.data import MNISTDataset
from mnist_lightning.errors import InputError
from mnist_lightning.results.pictures import SURE, Reading, cut, write
from mnist_lightning.results.predictions import check_outputs, check_probabilities
from mnist_lightning.runs.progress import say, unbroken

if TYPE_CHECKING:
    from mnist_lightning.cli.parser import MNISTCLI

HELP = "Words behind these options are pictures, or folders of pictures: predict photo.jpg scans/"
NO_VALUE = ("-h", "--help", "--print_config")  # every other flag has one


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
            own += [arg] * (not words)  # the command
            words.append(arg)
    return (own, words[1:]) if words[:1] == ["predict"] else (list(args), [])


def predict_pictures(cli: "MNISTCLI", folder: Path) -> None:
    """Print what the run reads in each picture, and write ``pictures.csv`` and ``pictures.png``.

    Raises:
        SystemExit: With code 2 if there was a picture that could not be read, after all others were.
    """
    from mnist_lightning.data.handwriting import DigitImages  # only here: it imports scipy and Pillow

    data, trainer = cli.datamodule, cli.trainer
    shape = tuple(getattr(data, "image_shape", (1, 28, 28)))
    if shape != (1, 28, 28):
        raise InputError(f"pictures are read as images of shape (1, 28, 28), and this run's have {shape}")
    if trainer.world_size > 1:
        raise InputError("pictures are read by one process: leave out --trainer.devices and --trainer.num_nodes")
    own = {(folder / name).resolve() for name in WRITES["pictures"]}
    readings, bad = _read(list(dict.fromkeys(_files(cli.pictures))), own)
    if readings:
        say("From", unbroken(cli.start.path))
        dtype = cli.model.dtype if isinstance(cli.model.dtype, torch.dtype) else None
        digits: MNISTDataset = DigitImages([reading.image for reading in readings], data.transform)
        digits = digits.to(trainer.strategy.root_device, dtype)
        with in_one_line("--data.transform: "):
            _ = digits[0]
        outputs: list[Any] = (
            trainer.predict(cli.model, DataLoader(digits, data.batch_size), ckpt_path=cli.ckpt_path) or []
        )
        check_outputs(outputs, len(readings))
        probabilities = torch.cat(outputs).cpu()
        check_probabilities(probabilities)
        names = data.classes if len(data.classes) == probabilities.shape[1] else range(probabilities.shape[1])
        _say(readings, probabilities, [str(name) for name in names])
        write(readings, probabilities, [str(name) for name in names], folder)
        say("Written", f"pictures.csv and pictures.png in {unbroken(folder)}")
    if bad:
        raise SystemExit(2)


def _files(names: Sequence[str]) -> Iterator[str | InputError]:
    """The files that were named, and in folders, all that may be pictures."""
    from PIL import Image

    from mnist_lightning.data.handwriting import formats

    kinds = formats()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112  # Path.is_dir raises an error if a name is too long
            yield name
            continue
        files = sorted(
            file
            for file in Path(name).iterdir()
            if file.suffix.lower() in suffixes and file.name[0] != "." and not file.is_dir()
        )
        yield from map(str, files)
        if not files:
            yield InputError(f"no pictures in the folder {name!r}")


def _read(files: Sequence[str | InputError], own: set[Path]) -> tuple[list[Reading], int]:
    """The digits in all pictures, and how many pictures could not be read, each of which is named.

    ``own`` are the files that this command will write.
    """
    from mnist_lightning.data.handwriting import open_picture, read_digits

    readings: list[Reading] = []
    bad = 0
    for name in tqdm(files, "Reading", leave=False, file=sys.stdout, disable=not sys.stdout.isatty(), ascii=" #"):
        try:
            if isinstance(name, InputError):
                raise name
            if Path(name).resolve() in own:
                raise InputError(f"{name!r} would be replaced by what predict writes: give a copy of it elsewhere")
            picture = open_picture(name)
            found = read_digits(picture)
            if not found:
                raise InputError(f"{name!r} is empty: no ink was found on the page")
            readings += [Reading(name, box, image, cut(picture, box)) for box, image in found]
        except InputError as error:
            bad += 1
            tqdm.write(f"mnist_lightning: error: {error}", file=sys.stderr)
    return readings, bad


def _say(readings: Sequence[Reading], probabilities: Tensor, names: Sequence[str]) -> None:
    """A line for each picture."""
    lines: dict[str, list[str]] = {}
    for reading, row in zip(readings, probabilities, strict=True):
        unsure = "?" * bool(row.max() < SURE)
        name = names[int(row.argmax())]
        lines.setdefault(reading.file, []).append(f"{name if name.isprintable() else repr(name)}{unsure}")
    for file, words in lines.items():
        print(f"{file if file.isprintable() else repr(file)}  {' '.join(words)}", flush=True)
