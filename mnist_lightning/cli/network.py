"""The network of a run with its test images, for the commands that hand a network on: ``draw`` and ``export``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from mnist_lightning.cli import checks
from mnist_lightning.cli.bad_input import STRICT, in_one_line, parse, try_int_before_float
from mnist_lightning.cli.front_door import COMMANDS
from mnist_lightning.cli.parser import LINKS, link_shapes, option_names
from mnist_lightning.cli.start import checkpoint_defaults, find_start
from mnist_lightning.data import MNISTDataModule, MNISTDataset
from mnist_lightning.data.dataset import Batch
from mnist_lightning.data.transforms import TRANSFORMS, data_states
from mnist_lightning.errors import InputError
from mnist_lightning.files import is_dict
from mnist_lightning.model import OneDNNLinear
from mnist_lightning.model.metrics import at_least_float32, refuse_not_finite
from mnist_lightning.results.export import TOLERANCE
from mnist_lightning.results.predictions import are_probabilities, form
from mnist_lightning.runs.progress import say, unbroken
from mnist_lightning.runs.resume import check_class, check_weights


class Probabilities(nn.Module):
    """A run's network in evaluation mode, on the CPU, from pixels to probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The probabilities, ``(N, C)`` float, of images, ``(N, 1, 28, 28)`` float in [0, 1]."""
        return at_least_float32(self.network(pixels)).softmax(dim=1)


@dataclass(frozen=True)
class TrainedNetwork:
    """A run's network, and what it says of the test images."""

    network: Probabilities
    images: Tensor  # (N, 1, 28, 28) float in [0, 1]
    targets: Tensor  # (N,) int64
    probabilities: Tensor  # (N, C) float, of the images
    classes: tuple[str, ...]
    path: Path  # of the checkpoint
    folder: Path  # of the run


def new_parser(command: str) -> ArgumentParser:
    """The parser of a command, without the options of the model and the data."""
    parser = ArgumentParser(prog=f"python -m mnist_lightning {command}", description=COMMANDS[command], **STRICT)
    parser.add_argument("-c", "--config", action="config", help="A YAML file with these options.")
    return parser


def load_network(
    command: str,
    parser: ArgumentParser,
    args: Sequence[str],
    model_class: type[LightningModule],
    data_class: type[MNISTDataModule],
) -> tuple[Namespace, TrainedNetwork]:
    """Parse the arguments, and load the network that they ask for.

    Raises:
        InputError: If an argument is wrong, or if there is no such network.
    """
    parser.add_argument("--ckpt_path", type=str | None, help="A checkpoint; by default, that of the newest run.")
    parser.add_argument("--trainer.default_root_dir", type=str | None, help="The folder that holds lightning_logs.")
    classes: dict[str, Any] = {"model": model_class, "data": data_class}
    for name, cls in classes.items():
        parser.add_class_arguments(cls, name, fail_untyped=False, skip=set(TRANSFORMS))
    link_shapes(parser)
    try_int_before_float(parser)
    given = parse(parser, args, defaults=False)
    with in_one_line():  # a name may be too long
        start = find_start(command, given)
    assert start.checkpoint is not None
    assert start.path is not None
    assert start.folder is not None
    known = option_names(parser) - {f"model.{name}" for name in LINKS}
    parser.set_defaults(checkpoint_defaults(start, command, given, classes, known))
    options = parse(parser, args)
    checks.check_folder_name("data.data_dir", options.data.get("data_dir"))
    checks.check_writable(start.folder, command)
    with in_one_line(), torch.random.fork_rng(devices=[]):  # the first weights, which are replaced, are random
        made = parser.instantiate_classes(options)
    model, data = made.model, made.data
    check_class(start.checkpoint, type(model), str(start.path))
    check_weights(start.checkpoint["state_dict"], model.state_dict(), str(start.path))
    model.load_state_dict(start.checkpoint["state_dict"])
    states = data_states(start.checkpoint, type(data).__qualname__)
    saved = [state.get("transform") for state in states if is_dict(state) and "train_transform" in state]
    if any(transform is not None for transform in (data.transform, start.transform(), *saved)):
        raise InputError(
            f"{str(start.path)!r} was trained with a transform, which {command} cannot carry along: the network would "
            "see other pixels than in its training; give a run without --data.transform"
        )
    say("From", unbroken(start.path))
    data.prepare_data()
    for layer in model.modules():
        if type(layer) is OneDNNLinear:  # no other program has it
            layer.__class__ = nn.Linear  # type: ignore[assignment]  # what it is in all else
    data.setup("test")
    if not isinstance(data.test_dataset, MNISTDataset):
        raise InputError(f"{command} needs an MNISTDataset of test images, got {type(data.test_dataset).__name__}")
    images, targets = data.test_dataset[:]
    network = Probabilities(model)
    probabilities = _evaluate(network, images, command)
    _check_predictions(model, data, (images, targets), probabilities, command)
    names = tuple(getattr(data, "classes", ()))
    if len(names) != probabilities.shape[1]:
        names = tuple(map(str, range(probabilities.shape[1])))
    return options, TrainedNetwork(network, images, targets, probabilities, names, start.path, start.folder)


def _check_predictions(model: Any, data: Any, batch: Batch, probabilities: Tensor, command: str) -> None:
    """Refuse a class of which ``predict`` gets anything but the softmax of ``forward``, which alone is handed on."""
    predicted = []
    with torch.inference_mode(), in_one_line(f"{type(model).__name__} cannot read the test images: "):
        for images, targets in zip(*(torch.split(part, 1000) for part in batch), strict=True):
            seen: Any = images.clone(), targets.clone()
            for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
                owner = data if is_overridden(hook, data) else model  # as Lightning chooses
                seen = getattr(owner, hook)(seen, 0)
            step = is_overridden("predict_step", model)
            predicted.append(model.predict_step(seen, 0) if step else model(seen[0]).softmax(1))
        difference = float((torch.cat(predicted) - probabilities).abs().max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"{command} hands on the softmax of forward, and the predict_step or a batch hook of "
            f"{type(model).__name__}, or a random number, gives other probabilities, by up to {difference:.2g}: "
            "have forward compute what predict_step does"
        )


def _evaluate(network: Probabilities, images: Tensor, command: str) -> Tensor:
    with torch.inference_mode(), in_one_line(f"{type(network.network).__name__} cannot read the test images: "):
        outputs = torch.cat([network.network(batch) for batch in torch.split(images, 1000)])
    if outputs.ndim != 2:
        raise InputError(f"the model must return logits, (N, C), got {form(outputs)}")
    refuse_not_finite(int((~outputs.isfinite().all(1)).sum()), len(outputs))
    if are_probabilities(outputs):
        raise InputError(f"the model returns probabilities, and {command} needs logits: leave its softmax out")
    return at_least_float32(outputs).softmax(dim=1)
