"""``draw.html``: one file with a page to draw on, and with a network that reads what is drawn."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from mnist_lightning.errors import InputError
from mnist_lightning.results.figures import class_word
from mnist_lightning.results.report import GALLERY, Report

TOLERANCE = 1e-3
"""The most by which a probability of the page may differ from torch's."""

MOST_WEIGHTS = 10_000_000  # a page of 27 MB

Layer: TypeAlias = tuple[Tensor, Tensor, bool]
"""Of a linear layer the weight, ``(outputs, inputs)``, the bias, ``(outputs,)``, and whether a ReLU follows."""


def draw_page(network: nn.Module, report: Report, images: Tensor, probabilities: Tensor) -> str:
    """The page as HTML: it needs no server, and asks nothing of any network.

    Args:
        network: In evaluation mode, on the CPU. Its layers are ``Linear``, ``ReLU``, ``Dropout`` and ``Flatten``.
        report: Of the test images. The page has its classes, and shows the first mistakes.
        images: The test images, ``(N, 1, 28, 28)`` float in [0, 1].
        probabilities: What the network says of them, ``(N, C)`` float.

    Raises:
        InputError: If the page would not say what the network says, to within 1e-3.
    """
    layers = _dense_layers(network)
    rounded = [(*_rounded(weight), bias, relu) for weight, bias, relu in layers]
    if odd := _differs(rounded, images, probabilities):
        raise InputError(
            f"draw needs a network of Linear, ReLU, Dropout and Flatten, one after the other, and "
            f"{type(network).__name__} is another ({odd}): use 'export'"
        )
    units = "".join(f", {len(bias):,} hidden units" for *_, bias, _ in rounded[:-1])
    text = f"The network lies in this page: 784 pixels{units}, {len(report.classes)} answers. What you draw stays here."
    data = {
        "about": f"{text} It reads {100 * report.accuracy:.2f} % of {report.total:,} test images.",
        "classes": report.classes,
        "layers": [
            {
                "inputs": whole.shape[1],
                "outputs": len(whole),
                "relu": relu,
                "weights": _base64(whole, "<i2"),
                "scales": _base64(scale, "<f4"),
                "biases": _base64(bias, "<f4"),
            }
            for whole, scale, bias, relu in rounded
        ],
        "limit": float(np.quantile(layers[0][0].abs().numpy(), 0.995)) or 1.0,  # as in first_layer.png
        "mistakes": [{"index": mistake.index, "target": mistake.target} for mistake in report.mistakes[:GALLERY]],
        "images": _base64(report.images, "u1"),
    }
    template = files(__package__).joinpath("draw.template.html").read_text("utf-8")
    policy = "default-src 'none'; img-src data:"
    for tag in ("script", "style"):  # by their hashes: no other code can run, whatever a class is called
        own = template.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        policy += f"; {tag}-src 'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"
    title = "Draw a digit" if class_word(report.classes) == "digit" else "Draw, and the network reads"
    texts = {"TITLE": html.escape(title), "POLICY": policy, "DATA": json.dumps(data).replace("<", "\\u003c")}
    return re.sub("@(TITLE|POLICY|DATA)@", lambda found: texts[found[1]], template)


def _dense_layers(network: nn.Module) -> list[Layer]:
    """The linear layers of a network, in their order; none if it has layers of another kind."""
    layers: list[Layer] = []
    for module in network.modules():
        if isinstance(module, Metric) or any(True for _ in module.children()):
            continue
        if type(module) is nn.Linear:
            bias = torch.zeros(module.out_features) if module.bias is None else module.bias.detach()
            layers.append((module.weight.detach(), bias, False))
        elif type(module) is nn.ReLU and layers:
            layers[-1] = (*layers[-1][:2], True)
        elif type(module) not in (nn.Dropout, nn.Flatten):
            return []
    return layers


def _differs(rounded: Sequence[tuple[Tensor, Tensor, Tensor, bool]], images: Tensor, probabilities: Tensor) -> str:
    """Why no page can do what the network does on the test images; nothing if one can."""
    if not rounded:
        return "it has other layers"
    weights = sum(whole.numel() for whole, *_ in rounded)
    if weights > MOST_WEIGHTS:
        return f"it has {weights:,} weights, more than {MOST_WEIGHTS:,}"
    values = images.flatten(1)
    for whole, scale, bias, relu in rounded:
        if values.shape[1] != whole.shape[1]:
            return "its layers do not fit one after the other"
        values = F.linear(values, whole * scale, bias)
        values = values.relu() if relu else values
    if values.shape != probabilities.shape:
        return "it computes something else from its last layer"
    difference = float((values.softmax(1) - probabilities).abs().max())
    return "" if difference <= TOLERANCE else f"a probability would differ by {difference:.1g}"


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight, ``(outputs, inputs)``, as whole numbers of 16 bits and a scale for each row, ``(outputs, 1)``.

    They take the space of float16, and no probability of the 10,000 test images is off by more than 8e-5, not by 6e-4.
    """
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 32767
    return (weight / scale).round(), scale


def _base64(tensor: Tensor, dtype: str) -> str:
    array: Any = np.ascontiguousarray(tensor.numpy(), dtype)
    return base64.b64encode(array.tobytes()).decode()
