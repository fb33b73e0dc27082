"""``export``: a run's network as a file that needs neither this package nor Lightning."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule

from mnist_lightning import __version__
from mnist_lightning.cli.bad_input import in_one_line
from mnist_lightning.cli.network import load_network, new_parser
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import write_atomically
from mnist_lightning.results.export import FORMATS, INPUT, NAME, OUTPUT, TOLERANCE, is_export
from mnist_lightning.runs.progress import say, unbroken


def export(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Write a run's network as ONNX or ``.pt2``, once it has read the test images as torch's does."""
    parser = new_parser("export")
    parser.add_argument("--format", type=Literal["onnx", "pt2"] | None, help="By default, as --out ends, or onnx.")
    parser.add_argument("--out", type=str | None, help="The file. By default, model.onnx in the run's folder.")
    options, trained = load_network("export", parser, args[1:], model_class, data_class)
    suffix = Path(options.out or "").suffix.removeprefix(".").lower()
    kind = options.format or (suffix if suffix in FORMATS else "onnx")
    if suffix in FORMATS and suffix != kind:
        raise InputError(f"--format {kind} contradicts --out {options.out!r}: leave one of them out")
    out = trained.folder / f"model.{kind}" if options.out is None else Path(options.out)
    _check_out(str(out) if options.out is None else options.out)
    shape = ", ".join(map(str, trained.images.shape[1:]))
    facts = {
        NAME: __version__,
        "source": str(trained.path.resolve()),
        "network": type(trained.network.network).__name__,
        "classes": json.dumps(trained.classes),
        "input": f"{INPUT}: float32 (N, {shape}), from 0 (paper) to 1 (ink)",
        "output": f"{OUTPUT}: float32 (N, {len(trained.classes)}), one for each of the classes",
    }
    make, load = FORMATS[kind]
    try:
        with torch.inference_mode():
            content = make(trained.network, trained.images[:2], facts)
            read = load(content)
            first, *rest = torch.split(trained.images, 1000)  # an image alone, too, as most users will give one
            exported = torch.cat([read(batch) for batch in (first[:1], first[1:], *rest)])
    except InputError:
        raise
    except Exception as error:  # of many kinds: the network may be the user's own, or torch too old for onnxscript
        why = f"{type(error).__name__}: {shown(str(error), 300)}"
        hint = "; try 'pip install --upgrade torch onnxscript', or give --format pt2" * (kind == "onnx")
        raise InputError(f"{facts['network']} cannot be exported as {kind} ({why}){hint}") from error
    difference = float((exported - trained.probabilities).abs().max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"the exported network's probabilities differ from torch's by {difference:.1e}, more than {TOLERANCE:g}: "
            "nothing was written; does the network draw random numbers, or depend on the size of a batch?"
        )
    say("Checked", f"{len(exported):,} test images: no probability differs from torch's by more than {difference:.1e}")
    write_atomically(out, content)
    say("Written", f"{unbroken(out)} ({len(content) / 1e6:.2f} MB)")


def _check_out(out: str) -> None:
    """Refuse to replace anything that no export has written."""
    with in_one_line(f"--out must be the path of a file, got {out!r}: "), contextlib.suppress(FileNotFoundError):
        if os.path.basename(out) in ("", ".", "..") or Path(out).is_dir():  # noqa: PTH119  # Path drops a slash at the end
            raise InputError(f"--out must be the path of a file, and {out!r} names a folder")
        os.lstat(out)
        if not Path(out).is_file() or not is_export(Path(out)):
            raise InputError(f"{out!r} is no file that export has written: move it away, or give another --out")
