"""The report of a test: which classes the network takes for which others, and how sure it is."""

import json
import os
from collections.abc import Iterable, Sequence
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
from mnist_lightning.results.figures import DIGITS, class_word, short
from mnist_lightning.results.predictions import are_probabilities, form

MOST_ROWS, WORST = 30, 10  # of more classes than these, the table shows the worst
CALIBRATION_BINS = 15  # C. Guo et al., On Calibration of Modern Neural Networks (2017)
GALLERY, UNITS = 25, 64


@dataclass(frozen=True)
class Mistake:
    """An image that the network took for another class."""

    index: int  # of the image in the data
    said: int  # the class with the largest probability
    target: int  # the right class
    confidence: float  # the probability of ``said``, in [0, 1]


@dataclass(frozen=True)
class Report:
    """The figures of one test, and its pictures. :meth:`of` evaluates a network; ``test`` makes one, too.

    Attributes:
        confusion: ``(10, 10)`` int64: a row for each class, a column for each prediction. All shapes are those of
            ten classes.
        precision: ``(10,)`` float: of the images that were predicted to be of a class, the share that is. NaN for a
            class that was never predicted.
        recall: ``(10,)`` float: of the images of a class, the share that was predicted to be. NaN for a class without
            images.
        f1: ``(10,)`` float: the harmonic mean of precision and recall. NaN for a class that neither occurs nor was
            predicted.
        calibration_error: Expected calibration error, in [0, 1]: the mean distance (l1) between confidence and
            accuracy over 15 bins of confidence of equal width, weighted by their number of images.
        mean_confidence: Mean probability of the predicted class, in [0, 1].
        mistakes: All mistakes, the most confident first.
        images: ``(25, 28, 28)`` uint8 or fewer: the images of the first mistakes; ``(25, 3, H, W)`` in colour.
        weights: ``(64, 28, 28)`` float or fewer: the weights of the hidden units whose weights to the output are the
            largest (Euclidean norm), in that order; the mean over three colours. ``None`` for another kind of network.
        hidden_size: The number of hidden units, or 0 for another kind of network.
        name: What the images are called in the pictures.
        classes: The names of the classes.
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
    classes: tuple[str, ...] = DIGITS

    @classmethod
    def of(
        cls, model: nn.Module, loader: Iterable[Any], name: str = "MNIST", classes: Sequence[str] = DIGITS
    ) -> "Report":
        """Evaluate a network, whose weights and modes stay as they are, on its own device.

        Args:
            model: Any module, of Lightning or not, that returns logits, ``(B, 10)``.
            loader: Any loader of batches ``(images, targets)``, such as ``data.test_dataloader()`` after
                ``data.setup("test")``. The images are what the model takes: ``(B, 784)``, ``(B, H, W)`` or
                ``(B, C, H, W)``; in the pictures, those of three channels have colours, and others are grey, 28 x 28.
                The targets are ``(B,)`` integers in 0 ... 9. The index of a mistake is its place in this order.
            name: What the images are called in the pictures.
            classes: The names of the classes, as many as the model has logits.

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
                    batches.append(_predicted(model, place, batch, len(classes)))
        finally:
            for module, training in modes:
                module.training = training
        if not batches:
            raise InputError("a report needs at least one image, but the loader has none")
        logits, targets, images = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if are_probabilities(logits):
            raise InputError("the model returns probabilities, and a report needs logits: leave its softmax out")
        probabilities = logits.softmax(dim=1)
        return cls.from_predictions(probabilities, targets, images, *layer_weights(model), name=name, classes=classes)

    @classmethod
    def from_predictions(
        cls,
        probabilities: Tensor,
        targets: Tensor,
        images: Tensor,
        weights: Tensor | None = None,
        hidden_size: int = 0,
        indices: Tensor | None = None,
        name: str = "MNIST",
        classes: Sequence[str] = DIGITS,
    ) -> "Report":
        """Compute a report.

        Args:
            probabilities: ``(N, 10)`` float in [0, 1].
            targets: ``(N,)`` int64 in 0 ... 9.
            images: ``(N, H, W)``, ``(N, 1, H, W)`` or ``(N, 3, H, W)`` uint8, the same images in the same order.
            weights: ``(64, 28, 28)`` float or fewer: the attribute of this name; see :func:`layer_weights`.
            hidden_size: The number of hidden units.
            indices: ``(N,)`` int64: the indices of the images in the data, by default 0 ... N-1.
            name: What the images are called in the pictures.
            classes: The names of the classes.

        Raises:
            InputError: If there is no image, if the shapes do not fit, or if a probability is infinite or NaN.
        """
        n, count = len(targets), len(classes)
        if n == 0:
            raise InputError("a report needs at least one prediction, got none")
        for what, tensor, shape in (("probabilities", probabilities, (n, count)), ("targets", targets, (n,))):
            if tensor.shape != shape:
                raise InputError(f"{what} must have shape {shape}, got {tuple(tensor.shape)}")
        if len(images) != n:
            raise InputError(f"images must be as many as targets, {n}, got {len(images)}")
        refuse_not_finite(int((~probabilities.isfinite().all(1)).sum()), n)
        indices = torch.arange(n) if indices is None else indices
        said = probabilities.argmax(dim=1)  # before the next line: two probabilities may be equal in float32
        probabilities = probabilities.float()
        confidences = probabilities.gather(1, said.unsqueeze(1)).squeeze(1)
        confusion = multiclass_confusion_matrix(said, targets, count)
        # Not by torchmetrics, which returns 0 where it would divide by zero: NaN says that nothing was measured.
        right, called, there = confusion.diag(), confusion.sum(0), confusion.sum(1)
        precision, recall, f1 = right / called, right / there, 2 * right / (called + there)
        # torchmetrics puts confidences of exactly 1 into a sixteenth bin. The next smaller float belongs to the last of
        # the fifteen.
        below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
        calibration_error = multiclass_calibration_error(
            probabilities.clamp(max=below_one), targets, count, n_bins=CALIBRATION_BINS, norm="l1"
        )
        wrong = (said != targets).nonzero().flatten()
        wrong = wrong[confidences[wrong].argsort(descending=True, stable=True)]
        mistakes = zip(*(t[wrong].tolist() for t in (indices, said, targets, confidences)), strict=True)
        return cls(
            confusion,
            precision,
            recall,
            f1,
            float(calibration_error),
            float(confidences.mean()),
            tuple(Mistake(*mistake) for mistake in mistakes),
            images[wrong[:GALLERY]].squeeze(1),  # of one channel; three stay
            weights,
            hidden_size,
            name,
            (*classes,),
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
        """The figures for a terminal: plain ASCII with ``-`` for NaN, of digits at most 60 columns.

        Of more than 30 classes, it shows the ten with the lowest recall.
        """
        rows, word = [*range(len(self.classes))], class_word(self.classes)
        called = [*map(short, self.classes)]
        if len(rows) > MOST_ROWS:
            rows = self.recall.nan_to_num(2).argsort(stable=True)[:WORST].tolist()
        names = [called[row] for row in rows]
        width = max(map(len, [word, *names]))
        lines = [f"{word:>{width}}  images  precision  recall      F1  taken for"]
        for number, name in zip(rows, names, strict=True):
            row = self.confusion[number].clone()
            images = int(row.sum())
            wrong = images - int(row[number])
            row[number] = 0
            most = f"{called[int(row.argmax())]} ({int(row.max())} of {wrong})" if wrong else "-"
            columns = (self.precision, self.recall, self.f1)
            shares = [f"{float(figure[number]):.4f}".replace("nan", "-") for figure in columns]
            lines.append(f"{name:>{width}}  {images:>6,}  {shares[0]:>9}  {shares[1]:>6}  {shares[2]:>6}  {most}")
        if len(rows) < len(self.classes):
            lines.append(f"These are the {WORST} of {len(self.classes)} classes with the lowest recall.")
        lines.append(
            f"accuracy           {self.accuracy:.4f}  {len(self.mistakes):,} mistakes in {self.total:,} images"
        )
        lines.append(f"calibration error  {self.calibration_error:.4f}  expected, {CALIBRATION_BINS} equal bins, l1")
        return "\n".join(lines)

    def numbers(self) -> dict[str, Any]:
        """All figures as plain values for JSON: shares in [0, 1], with ``None`` for NaN. Digits are numbers."""
        word = class_word(self.classes)
        labels: Sequence[Any] = range(len(DIGITS)) if word == "digit" else self.classes
        per_class = zip(labels, self.confusion.sum(1).tolist(), self.precision, self.recall, self.f1, strict=True)
        return {
            "images": self.total,
            "mistakes": len(self.mistakes),
            "accuracy": self.accuracy,
            "mean_confidence": self.mean_confidence,
            "expected_calibration_error": {"value": self.calibration_error, "bins": CALIBRATION_BINS, "norm": "l1"},
            "digits" if word == "digit" else "classes": [
                {word: label, "images": images, "precision": _share(p), "recall": _share(r), "f1": _share(f)}
                for label, images, p, r, f in per_class
            ],
            "confusion_matrix": {"rows": word, "columns": "prediction", "counts": self.confusion.tolist()},
            "most_confident_mistakes": [
                {"index": m.index, "prediction": labels[m.said], word: labels[m.target], "confidence": m.confidence}
                for m in self.mistakes[:GALLERY]
            ],
        }

    def draw(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures into a folder.

        Returns:
            ``confusion_matrix.png``, ``mistakes.png`` and, if the weights are known, ``first_layer.png``.
        """
        called = [*map(short, self.classes)]
        space = " " if max(map(len, called)) < 3 else "\n"
        captions = [
            (f"said {called[m.said]},{space}is {called[m.target]}, {_percent(m.confidence)}", f"image {m.index:,}")
            for m in self.mistakes[:GALLERY]
        ]
        pictures = {
            "confusion_matrix.png": figures.confusion_figure(self.confusion, self.name, self.classes),
            "mistakes.png": figures.mistakes_figure(self.images, captions, len(self.mistakes), self.total, self.name),
        }
        if self.weights is not None:
            colours = self.images.ndim == 4
            pictures["first_layer.png"] = figures.weights_figure(self.weights, self.hidden_size, colours)
        return [figures.save(picture, Path(folder) / name) for name, picture in pictures.items()]

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write :meth:`numbers` into ``report.json``, :meth:`draw` the pictures, and return all paths."""
        text, path = json.dumps(self.numbers(), indent=2, allow_nan=False), Path(folder) / "report.json"
        write_atomically(path, f"{text}\n".encode())
        return [path, *self.draw(folder)]


def _predicted(model: nn.Module, place: Tensor, batch: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and images for the pictures of a batch, on the CPU.

    The model has ``count`` logits, and its parameters are where ``place`` is.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise InputError(f"a report needs batches (images, targets), two tensors, got {shown(batch)}")
    images, targets = (part.to(place.device) for part in batch)
    if not images.numel():
        raise InputError(f"a report needs batches with images, got {tuple(images.shape)}")
    logits: Any = model(images.to(place.dtype) if images.is_floating_point() else images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), count):
        raise InputError(f"the model must return logits, {(len(images), count)}, got {form(logits)}")
    if targets.shape != (len(images),) or not set(targets.tolist()) <= set(range(count)):
        raise InputError(f"targets must be integers in 0 ... {count - 1}, {(len(images),)}, got {shown(targets)}")
    return at_least_float32(logits).cpu(), targets.long().cpu(), _pixels(images).cpu()


def _pixels(images: Tensor) -> Tensor:
    """Images as the pictures have them, uint8: three channels as ``(B, 3, H, W)``, all others ``(B, 28, 28)``."""
    if images.shape[1:] == (28 * 28,):
        images = images.reshape(-1, 28, 28)
    if images.ndim not in (3, 4):
        raise InputError(f"images must be (B, 784), (B, H, W) or (B, C, H, W), got {tuple(images.shape)}")
    images = images.float()
    if images.ndim == 3 or images.shape[1] != 3:
        images = images.reshape(len(images), -1, *images.shape[-2:]).mean(1, keepdim=True)
    low, high = images.amin().clamp(max=0), images.amax().clamp(min=1)  # other than 0 and 1 if they are normalised
    scaled = (images - low) / (high - low) * 255
    if images.shape[1] == 1:
        scaled = F.interpolate(scaled, (28, 28), mode="area")
    return scaled.round().byte().squeeze(1)


def layer_weights(model: nn.Module) -> tuple[Tensor | None, int]:
    """``weights`` and ``hidden_size`` of a network, as a :class:`Report` has them."""
    layers = two_layers(model)
    if layers is None:
        return None, 0
    hidden, output = (layer.weight.detach().float().cpu() for layer in layers)
    strongest = output.norm(dim=0).argsort(descending=True, stable=True)[:UNITS]
    image_shape: Any = model.image_shape
    return hidden[strongest].reshape(-1, *image_shape).mean(1), len(hidden)


def _share(figure: Tensor) -> float | None:
    return None if figure.isnan() else float(figure)


def _percent(confidence: float) -> str:
    return ">99.9 %" if confidence >= 0.9995 else f"{confidence:.1%}".replace("%", " %")
