"""``draw.html``: a page to draw on, with the network that reads what is drawn."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from mnist_lightning.errors import InputError
from mnist_lightning.results.report import GALLERY, Report
from mnist_lightning.results.style import class_word

TOLERANCE = 1e-3  # of a probability of the page


class Layer(NamedTuple):
    """A linear layer. Its weight is rounded to 16 bits: a probability is off by 8e-5; with float16, by 6e-4."""

    whole: Tensor  # the weight as whole numbers, (outputs, inputs)
    scale: Tensor  # to multiply each row by, (outputs, 1)
    bias: Tensor  # (outputs,)
    relu: bool  # whether a ReLU follows


def draw_page(network: nn.Module, report: Report, images: Tensor, probabilities: Tensor) -> str:
    """The page as HTML, for a network on the CPU, with the first mistakes of its report.

    ``images`` are ``(N, 1, 28, 28)`` float in [0, 1], and its ``probabilities`` ``(N, C)`` float.

    Raises:
        InputError: If the page would not say so, to within 1e-3.
    """
    layers, odd = _layers(network), "it has other layers"
    if layers:
        difference = float((_computed(layers, images) - probabilities).abs().max())
        odd = f"a probability would differ by {difference:.1g}"
    if not layers or not difference <= TOLERANCE:
        raise InputError(
            f"draw needs a network of Linear, ReLU, Dropout and Flatten, one after the other, and "
            f"{type(network).__name__} is another ({odd}): use 'export'"
        )
    first = next(module for module in network.modules() if isinstance(module, nn.Linear)).weight.detach()
    units = "".join(f", {len(layer.bias):,} hidden units" for layer in layers[:-1])
    text = f"The network lies in this page: 784 pixels{units}, {len(report.classes)} answers. What you draw stays here."
    data = {
        "about": f"{text} It reads {100 * report.accuracy:.2f} % of {report.total:,} test images.",
        "classes": report.classes,
        "layers": [_encoded(layer) for layer in layers],
        "limit": float(np.quantile(first.abs().numpy(), 0.995)) or 1.0,  # as in first_layer.png
        "mistakes": [{"index": mistake.index, "target": mistake.target} for mistake in report.mistakes[:GALLERY]],
        "images": _base64(report.images, "u1"),
    }
    template = files(__package__).joinpath("draw.template.html").read_text("utf-8")
    policy = "default-src 'none'; img-src data:"
    for tag in ("script", "style"):  # whatever a class is called, no other code can run
        own = template.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        policy += f"; {tag}-src 'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"
    title = "Draw a digit" if class_word(report.classes) == "digit" else "Draw, and the network reads"
    page = template.replace("@TITLE@", title).replace("@POLICY@", policy)
    return page.replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))  # a name cannot end the script


def _layers(network: nn.Module) -> list[Layer]:
    """All layers; none if there are others, or if they do not follow each other."""
    layers: list[Layer] = []
    inputs = 784
    for module in network.modules():
        if isinstance(module, Metric) or [*module.children()]:
            continue
        if type(module) is nn.Linear and module.in_features == inputs:
            inputs, weight = module.out_features, module.weight.detach()
            bias = torch.zeros(inputs) if module.bias is None else module.bias.detach()
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 32767
            layers.append(Layer((weight / scale).round(), scale, bias, relu=False))
        elif type(module) is nn.ReLU and layers:
            layers[-1] = layers[-1]._replace(relu=True)
        elif type(module) not in (nn.Dropout, nn.Flatten):
            return []
    return layers


def _computed(layers: Sequence[Layer], images: Tensor) -> Tensor:
    """The page's probabilities."""
    values = images.flatten(1)
    for layer in layers:
        values = F.linear(values, layer.whole * layer.scale, layer.bias)
        if layer.relu:
            values = values.relu()
    return values.softmax(1)


def _encoded(layer: Layer) -> dict[str, Any]:
    return {
        "inputs": layer.whole.shape[1],
        "outputs": len(layer.whole),
        "relu": layer.relu,
        "weights": _base64(layer.whole, "<i2"),
        "scales": _base64(layer.scale, "<f4"),
        "biases": _base64(layer.bias, "<f4"),
    }


def _base64(tensor: Tensor, dtype: str) -> str:
    return base64.b64encode(tensor.numpy().astype(dtype).tobytes()).decode()
