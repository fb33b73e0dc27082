"""The report of a test: which digits the network takes for which others, and how sure it is."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import write_atomically
from mnist_lightning.model import two_layers
from mnist_lightning.model.metrics import at_least_float32, refuse_not_finite
from mnist_lightning.results import figures
from mnist_lightning.results.predictions import are_probabilities, form

DIGITS = 10
CALIBRATION_BINS = 15  # C. Guo et al., On Calibration of Modern Neural Networks (2017)
GALLERY, UNITS = 25, 64


@dataclass(frozen=True)
class Mistake:
    """An image that the network took for another digit."""

    index: int  # of the image in the data
    said: int  # the digit with the largest probability
    target: int  # the right digit
    confidence: float  # the probability of ``said``, in [0, 1]


@dataclass(frozen=True)
class Report:
    """The figures of one test, and its pictures. :meth:`of` evaluates a network; ``test`` makes one, too.

    Attributes:
        confusion: ``(10, 10)`` int64: a row for each digit, a column for each prediction.
        precision: ``(10,)`` float: of the images that were predicted to be a digit, the share that is this digit. NaN
            for a digit that was never predicted.
        recall: ``(10,)`` float: of the images of a digit, the share that was predicted to be this digit. NaN for a
            digit without images.
        f1: ``(10,)`` float: the harmonic mean of precision and recall. NaN for a digit that neither occurs nor was
            predicted.
        calibration_error: Expected calibration error, in [0, 1]: the mean distance (l1) between confidence and
            accuracy over 15 bins of confidence of equal width, weighted by their number of images.
        mean_confidence: Mean probability of the predicted digit, in [0, 1].
        mistakes: All mistakes, the most confident first.
        images: ``(25, 28, 28)`` uint8 or fewer: the images of the first mistakes.
        weights: ``(64, 28, 28)`` float or fewer: the weights of the hidden units whose weights to the output are the
            largest (Euclidean norm), in that order. ``None`` for another kind of network.
        hidden_size: The number of hidden units, or 0 for another kind of network.
        name: What the images are called in the pictures.
    """

    confusion: Tensor
    precision: Tensor
    recall: Tensor
    f1: Tensor
    calibration_error: float
    mean_confidence: float
    mistakes: tuple[Mistake, ...]
    images: Tensor
    weights: Tensor | None
    hidden_size: int
    name: str = "MNIST"

    @classmethod
    def of(cls, model: nn.Module, loader: Iterable[Any], name: str = "MNIST") -> "Report":
        """Evaluate a network, whose weights and modes stay as they are, on its own device.

        Args:
            model: Any module, of Lightning or not, that returns logits, ``(B, 10)``.
            loader: Any loader of batches ``(images, targets)``, such as ``data.test_dataloader()`` after
                ``data.setup("test")``. The images are what the model takes: ``(B, 784)``, ``(B, H, W)`` or
                ``(B, C, H, W)``; for the pictures, they become grey, 28 x 28. The targets are ``(B,)`` integers in
                0 ... 9. The index of a mistake is its place in this order.
            name: What the images are called in the pictures.

        Raises:
            InputError: If the loader or the model gives anything else, a batch without images, or outputs that are
                infinite or NaN.
        """
        if not isinstance(model, nn.Module):
            raise InputError(f"a report needs a torch.nn.Module, got {shown(model)}")
        tensors = chain(model.parameters(), model.buffers())
        place = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
        modes = [(module, module.training) for module in model.modules()]
        batches = []
        try:
            model.eval()
            with torch.inference_mode():
                for batch in loader:
                    batches.append(_predicted(model, place, batch))
        finally:
            for module, training in modes:
                module.training = training
        if not batches:
            raise InputError("a report needs at least one image, but the loader has none")
        logits, targets, images = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if are_probabilities(logits):
            raise InputError("the model returns probabilities, and a report needs logits: leave its softmax out")
        return cls.from_predictions(logits.softmax(dim=1), targets, images, *layer_weights(model), name=name)

    @classmethod
    def from_predictions(
        cls,
        probabilities: Tensor,
        targets: Tensor,
        images: Tensor,
        hidden_weights: Tensor | None = None,
        output_weights: Tensor | None = None,
        indices: Tensor | None = None,
        name: str = "MNIST",
    ) -> "Report":
        """Compute a report.

        Args:
            probabilities: ``(N, 10)`` float in [0, 1].
            targets: ``(N,)`` int64 in 0 ... 9.
            images: ``(N, 28, 28)`` or ``(N, 1, 28, 28)`` uint8, the same images in the same order.
            hidden_weights: ``(H, 784)`` float: the weights of the hidden layer.
            output_weights: ``(10, H)`` float: the weights of the output layer.
            indices: ``(N,)`` int64: the indices of the images in the data, by default 0 ... N-1.
            name: What the images are called in the pictures.

        Raises:
            InputError: If there is no image, if the shapes do not fit, or if a probability is infinite or NaN.
        """
        n = len(targets)
        if n == 0:
            raise InputError("a report needs at least one prediction, got none")
        for what, tensor, shape in (("probabilities", probabilities, (n, DIGITS)), ("targets", targets, (n,))):
            if tensor.shape != shape:
                raise InputError(f"{what} must have shape {shape}, got {tuple(tensor.shape)}")
        if len(images) != n:
            raise InputError(f"images must be as many as targets, {n}, got {len(images)}")
        refuse_not_finite(int((~probabilities.isfinite().all(1)).sum()), n)
        indices = torch.arange(n) if indices is None else indices
        said = probabilities.argmax(dim=1)  # before the next line: two probabilities may be equal in float32
        probabilities = probabilities.float()
        confidences = probabilities.gather(1, said.unsqueeze(1)).squeeze(1)
        confusion = multiclass_confusion_matrix(said, targets, DIGITS)
        # Not by torchmetrics, which returns 0 where it would divide by zero: NaN says that nothing was measured.
        right, called, there = confusion.diag(), confusion.sum(0), confusion.sum(1)
        precision, recall, f1 = right / called, right / there, 2 * right / (called + there)
        # torchmetrics puts confidences of exactly 1 into a sixteenth bin. The next smaller float belongs to the last of
        # the fifteen.
        below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
        calibration_error = multiclass_calibration_error(
            probabilities.clamp(max=below_one), targets, DIGITS, n_bins=CALIBRATION_BINS, norm="l1"
        )
        wrong = (said != targets).nonzero().flatten()
        wrong = wrong[confidences[wrong].argsort(descending=True, stable=True)]
        mistakes = zip(*(t[wrong].tolist() for t in (indices, said, targets, confidences)), strict=True)
        weights, hidden_size = None, 0
        if hidden_weights is not None and output_weights is not None:
            hidden_size = len(hidden_weights)
            strongest = output_weights.norm(dim=0).argsort(descending=True, stable=True)[:UNITS]
            weights = hidden_weights[strongest].reshape(-1, 28, 28)
        return cls(
            confusion,
            precision,
            recall,
            f1,
            float(calibration_error),
            float(confidences.mean()),
            tuple(Mistake(*mistake) for mistake in mistakes),
            images[wrong[:GALLERY]].reshape(-1, 28, 28),
            weights,
            hidden_size,
            name,
        )

    @property
    def total(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of the images whose prediction is right, in [0, 1]."""
        return int(self.confusion.trace()) / self.total

    def table(self) -> str:
        """The figures for a terminal: plain ASCII, at most 60 columns, with ``-`` for NaN."""
        lines = ["digit  images  precision  recall      F1  taken for"]
        for digit in range(DIGITS):
            row = self.confusion[digit].clone()
            images = int(row.sum())
            wrong = images - int(row[digit])
            row[digit] = 0
            most = f"{int(row.argmax())} ({int(row.max())} of {wrong})" if wrong else "-"
            columns = (self.precision, self.recall, self.f1)
            shares = [f"{float(figure[digit]):.4f}".replace("nan", "-") for figure in columns]
            lines.append(f"{digit:>5}  {images:>6,}  {shares[0]:>9}  {shares[1]:>6}  {shares[2]:>6}  {most}")
        lines.append(
            f"accuracy           {self.accuracy:.4f}  {len(self.mistakes):,} mistakes in {self.total:,} images"
        )
        lines.append(f"calibration error  {self.calibration_error:.4f}  expected, {CALIBRATION_BINS} equal bins, l1")
        return "\n".join(lines)

    def numbers(self) -> dict[str, Any]:
        """All figures as plain values for JSON: shares in [0, 1], with ``None`` for NaN."""
        per_digit = zip(self.confusion.sum(1).tolist(), self.precision, self.recall, self.f1, strict=True)
        return {
            "images": self.total,
            "mistakes": len(self.mistakes),
            "accuracy": self.accuracy,
            "mean_confidence": self.mean_confidence,
            "expected_calibration_error": {"value": self.calibration_error, "bins": CALIBRATION_BINS, "norm": "l1"},
            "digits": [
                {"digit": digit, "images": images, "precision": _share(p), "recall": _share(r), "f1": _share(f)}
                for digit, (images, p, r, f) in enumerate(per_digit)
            ],
            "confusion_matrix": {"rows": "digit", "columns": "prediction", "counts": self.confusion.tolist()},
            "most_confident_mistakes": [
                {"index": m.index, "prediction": m.said, "digit": m.target, "confidence": m.confidence}
                for m in self.mistakes[:GALLERY]
            ],
        }

    def draw(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures into a folder.

        Returns:
            ``confusion_matrix.png``, ``mistakes.png`` and, if the weights are known, ``first_layer.png``.
        """
        captions = [
            (f"said {m.said}, is {m.target}, {_percent(m.confidence)}", f"image {m.index:,}")
            for m in self.mistakes[:GALLERY]
        ]
        pictures = {
            "confusion_matrix.png": figures.confusion_figure(self.confusion, self.name),
            "mistakes.png": figures.mistakes_figure(self.images, captions, len(self.mistakes), self.total, self.name),
        }
        if self.weights is not None:
            pictures["first_layer.png"] = figures.weights_figure(self.weights, self.hidden_size)
        return [figures.save(picture, Path(folder) / name) for name, picture in pictures.items()]

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write :meth:`numbers` into ``report.json``, :meth:`draw` the pictures, and return all paths."""
        text, path = json.dumps(self.numbers(), indent=2, allow_nan=False), Path(folder) / "report.json"
        write_atomically(path, f"{text}\n".encode())
        return [path, *self.draw(folder)]


def _predicted(model: nn.Module, place: Tensor, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and grey images of a batch, on the CPU; the model's parameters are where ``place`` is."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise InputError(f"a report needs batches (images, targets), two tensors, got {shown(batch)}")
    images, targets = (part.to(place.device) for part in batch)
    if not images.numel():
        raise InputError(f"a report needs batches with images, got {tuple(images.shape)}")
    logits: Any = model(images.to(place.dtype) if images.is_floating_point() else images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), DIGITS):
        raise InputError(f"the model must return logits, {(len(images), DIGITS)}, got {form(logits)}")
    if targets.shape != (len(images),) or not set(targets.tolist()) <= set(range(DIGITS)):
        raise InputError(f"targets must be integers in 0 ... 9, {(len(images),)}, got {shown(targets)}")
    return at_least_float32(logits).cpu(), targets.long().cpu(), _grey(images).cpu()


def _grey(images: Tensor) -> Tensor:
    """Images of any size, colours and range as the pictures have them: ``(B, 28, 28)`` uint8."""
    if images.shape[1:] == (28 * 28,):
        images = images.reshape(-1, 28, 28)
    if images.ndim not in (3, 4):
        raise InputError(f"images must be (B, 784), (B, H, W) or (B, C, H, W), got {tuple(images.shape)}")
    grey = images.float().reshape(len(images), -1, *images.shape[-2:]).mean(1, keepdim=True)
    low, high = grey.amin().clamp(max=0), grey.amax().clamp(min=1)  # other than 0 and 1 if they are normalised
    return F.interpolate((grey - low) / (high - low) * 255, (28, 28), mode="area").round().byte().squeeze(1)


def layer_weights(model: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The weights of the tutorial's hidden layer and output layer; of another kind of network, nothing."""
    layers = two_layers(model) or (None, None)
    hidden, output = (None if layer is None else layer.weight.detach().float().cpu() for layer in layers)
    return hidden, output


def _share(figure: Tensor) -> float | None:
    return None if figure.isnan() else float(figure)


def _percent(confidence: float) -> str:
    return ">99.9 %" if confidence >= 0.9995 else f"{confidence:.1%}".replace("%", " %")
