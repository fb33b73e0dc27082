"""The commands that need no Trainer: ``inspect``, ``draw`` and ``export``."""

import json
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mnist_lightning import __version__
from mnist_lightning.cli.arguments import in_one_line, new_parser, parse, try_int_before_float
from mnist_lightning.cli.checks import check_writable
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.data.same_data import TRANSFORMS, check_same_data
from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import write_atomically
from mnist_lightning.model.metrics import at_least_float32
from mnist_lightning.results.draw_page import draw_page
from mnist_lightning.results.export import FORMATS, INPUT, NAME, OUTPUT, TOLERANCE
from mnist_lightning.results.inspection import describe_data, draw_data
from mnist_lightning.results.predictions import are_probabilities, refuse_not_finite
from mnist_lightning.results.report import Report
from mnist_lightning.runs import Run
from mnist_lightning.runs.progress import say, unbroken


def inspect(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Print the data's shapes and counts, and write pictures of it. No model is needed."""
    parser = new_parser("inspect")
    # The pictures show the images as they lie in the files, without a transform.
    parser.add_class_arguments(data_class, "data", fail_untyped=False, skip=set(TRANSFORMS))
    try_int_before_float(parser)
    parser.add_argument("--out", type=str, default="inspection", help="The folder for the pictures.")
    options = parse(parser, args[1:])
    with in_one_line():
        data: MNISTDataModule = parser.instantiate_classes(options).data
    data.prepare_data()
    data.setup()
    print(describe_data(data), flush=True)
    for path in draw_data(data, Path(options.out)):
        say("Written", unbroken(path))


class Probabilities(nn.Module):
    """A network in evaluation mode, from pixels to probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The probabilities, ``(N, C)`` float, of images, ``(N, 1, 28, 28)`` float in [0, 1]."""
        return at_least_float32(self.network(pixels)).softmax(dim=1)


@dataclass(frozen=True)
class _TrainedNetwork:
    """A run's network, on the CPU, and what it says of the test images."""

    run: Run
    network: Probabilities
    images: Tensor  # (N, 1, 28, 28) float in [0, 1]
    targets: Tensor  # (N,) int64
    probabilities: Tensor  # (N, C) float, of the images
    classes: tuple[str, ...]


def _load_network(
    parser: ArgumentParser, args: Sequence[str], model_class: Any, data_class: Any
) -> tuple[Namespace, _TrainedNetwork]:
    """Parse the arguments, and load the network that they ask for."""
    parser.add_argument("--ckpt_path", type=str | None, help="A checkpoint; by default, that of the newest run.")
    parser.add_argument("--trainer.default_root_dir", type=str | None, help="The folder that holds lightning_logs.")
    parser.add_argument("--data.data_dir", type=str | None, help="The folder of the images; by default, the run's.")
    command, options = args[0], parse(parser, args[1:])
    run = Run.open(options.ckpt_path, options.trainer.default_root_dir or ".")
    check_writable(run.folder, command)
    given = {} if options.data.data_dir is None else {"data_dir": options.data.data_dir}
    with in_one_line(f"{str(run.path)!r} does not fit: "):
        model = run.load(model_class, map_location="cpu")
        _check_no_transform(command, run, *run.checkpoint.values())
        data = run.load(data_class, **given)
        _check_no_transform(command, run, vars(data))
    check_same_data(run.checkpoint, data, resume=False)
    say("From", unbroken(run.path))
    data.prepare_data()
    data.setup("test")
    images, targets = data.test_dataset.batch(slice(None))
    with torch.inference_mode(), in_one_line(f"{type(model).__name__} cannot read the test images: "):
        outputs = torch.cat([model.eval()(batch) for batch in torch.split(images, 1000)])
    refuse_not_finite(outputs)
    if are_probabilities(outputs):
        raise InputError(f"the model returns probabilities, and {command} needs logits: leave its softmax out")
    probabilities, classes = at_least_float32(outputs).softmax(dim=1), tuple(data.classes)
    if len(classes) != probabilities.shape[1]:
        classes = tuple(map(str, range(probabilities.shape[1])))
    return options, _TrainedNetwork(run, Probabilities(model), images, targets, probabilities, classes)


def _check_no_transform(command: str, run: Run, *states: object) -> None:
    for state in states:
        if isinstance(state, dict) and {*TRANSFORMS} <= state.keys() and state["transform"] is not None:
            raise InputError(
                f"{str(run.path)!r} was trained with a transform, which {command} cannot carry along: the network "
                "would see other pixels than in its training; give a run without --data.transform"
            )


def draw(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Write ``draw.html`` into the run's folder, and open it where there is a graphical display."""
    parser = new_parser("draw")
    parser.add_argument("--no_open", action="store_true", help="Only write the page.")
    options, trained = _load_network(parser, args, model_class, data_class)
    if trained.images.shape[1:] != (1, 28, 28):
        raise InputError(
            f"a page to draw on makes images of (1, 28, 28), this network's are {tuple(trained.images.shape[1:])}"
        )
    pixels = (255 * trained.images).round().byte()
    report = Report.from_predictions(trained.probabilities, trained.targets, pixels, classes=trained.classes)
    page = draw_page(trained.network.network, report, trained.images, trained.probabilities)
    path = trained.run.folder / "draw.html"
    write_atomically(path, page.encode())
    say("Written", f"{unbroken(path)} ({len(page) / 1e6:.2f} MB): open it in a browser, here or on a phone")
    # Without a screen with windows, webbrowser would start a text browser in the terminal.
    has_display = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if has_display and not options.no_open:
        webbrowser.open(path.resolve().as_uri())


def export(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Write a run's network as ONNX or ``.pt2``, once it has read the test images as torch's does."""
    parser = new_parser("export")
    parser.add_argument("--format", type=Literal["onnx", "pt2"] | None, help="By default, as --out ends, or onnx.")
    parser.add_argument("--out", type=str | None, help="The file. By default, model.onnx in the run's folder.")
    options, trained = _load_network(parser, args, model_class, data_class)
    suffix = Path(options.out or "").suffix.removeprefix(".").lower()
    kind = options.format or (suffix if suffix in FORMATS else "onnx")
    if suffix in FORMATS and suffix != kind:
        raise InputError(f"--format {kind} contradicts --out {options.out!r}: leave one of them out")
    out = trained.run.folder / f"model.{kind}"
    if options.out is not None:
        out = Path(options.out)
        if os.path.lexists(out):
            raise InputError(f"{str(out)!r} is there already: move it away, or give another --out")
    content, exported = _exported(trained, kind)
    difference = float((exported - trained.probabilities).abs().max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"the exported network's probabilities differ from torch's by {difference:.1e}, more than {TOLERANCE:g}: "
            "nothing was written; does the network draw random numbers, or depend on the size of a batch?"
        )
    say("Checked", f"{len(exported):,} test images: no probability differs from torch's by more than {difference:.1e}")
    write_atomically(out, content)
    say("Written", f"{unbroken(out)} ({len(content) / 1e6:.2f} MB)")


def _exported(trained: _TrainedNetwork, kind: str) -> tuple[bytes, Tensor]:
    """The network as a file, and the probabilities that this file gives for the test images."""
    name = type(trained.network.network).__name__
    shape = ", ".join(map(str, trained.images.shape[1:]))
    facts = {
        NAME: __version__,
        "source": str(trained.run.path.resolve()),
        "network": name,
        "classes": json.dumps(trained.classes),
        "input": f"{INPUT}: float32 (N, {shape}), from 0 (paper) to 1 (ink)",
        "output": f"{OUTPUT}: float32 (N, {len(trained.classes)}), one for each of the classes",
    }
    make, load = FORMATS[kind]
    try:
        with torch.inference_mode():
            content = make(trained.network, trained.images[:2], facts)
            read: Callable[[Tensor], Any] = load(content)
            first, *rest = torch.split(trained.images, 1000)  # an image alone, too, as most users will give one
            return content, torch.cat([read(batch) for batch in (first[:1], first[1:], *rest)])
    except InputError:
        raise
    except Exception as error:  # of many kinds: the network may be the user's own, or torch too old for onnxscript
        why = f"{type(error).__name__}: {shown(str(error), 300)}"
        hint = ""
        if kind == "onnx":
            hint = "; try 'pip install --upgrade torch onnxscript', or give --format pt2"
        raise InputError(f"{name} cannot be exported as {kind} ({why}){hint}") from error
