"""The report of a test: what the network takes for what, and how surely."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomically
from mnist_lightning.model import two_layers
from mnist_lightning.model.metrics import at_least_float32
from mnist_lightning.results.predictions import are_probabilities, form, refuse_not_finite
from mnist_lightning.results.report_pictures import confusion_picture, mistakes_picture, weights_picture
from mnist_lightning.results.style import DIGITS, class_word, percent, save, short

CALIBRATION_BINS = 15  # C. Guo et al., On Calibration of Modern Neural Networks (2017)
GALLERY, UNITS = 25, 64  # mistakes and hidden units that are shown
MOST_ROWS, WORST = 30, 10  # of more classes than these, the table shows the worst


@dataclass(frozen=True)
class Mistake:
    """An image that the network took for another class."""

    index: int  # of the image in the data
    said: int  # the class with the largest probability
    target: int
    confidence: float  # the probability of ``said``, in [0, 1]


@dataclass(frozen=True)
class Report:
    """What one test shows, in numbers and in pictures."""

    confusion: Tensor  # (C, C) int64: a row for each class, a column for each prediction
    precision: Tensor  # (C,) float: the share of the predictions of a class that is right; NaN without any
    recall: Tensor  # (C,) float: the share of the images of a class that is predicted right; NaN without any
    f1: Tensor  # (C,) float: the harmonic mean of both
    calibration_error: float  # expected, in [0, 1]: the mean distance of confidence and accuracy in 15 equal bins
    mean_confidence: float  # in [0, 1]
    mistakes: tuple[Mistake, ...]  # all of them, the most confident first
    images: Tensor  # of the first 25 mistakes, (25, 28, 28) uint8, or (25, 3, H, W) in colour
    # Of the 64 hidden units with the largest weights to the output, (64, 28, 28) float, the mean of the colours.
    weights: Tensor | None  # None if the network has not one hidden layer
    hidden_size: int  # the number of all hidden units, or 0
    name: str = "MNIST"  # what the images are called in the pictures
    classes: tuple[str, ...] = DIGITS

    @classmethod
    def of(
        cls, model: nn.Module, loader: Iterable[Any], name: str = "MNIST", classes: Sequence[str] = DIGITS
    ) -> "Report":
        """Evaluate a network on its own device, and leave it as it is.

        Args:
            model: Any module that returns logits, ``(B, 10)``.
            loader: Any loader of images as the model takes them, ``(B, 784)``, ``(B, H, W)`` or ``(B, C, H, W)``, and
                targets, ``(B,)`` integers from 0. The index of a mistake is its place in this order.
            name: What the images are called.
            classes: The names of the classes, one for each logit.

        Raises:
            InputError: If there is no image, or no finite logit for each class.
        """
        logits, targets, images = _evaluated(model, loader, len(classes))
        weights = layer_weights(model)
        return cls.from_predictions(logits.softmax(dim=1), targets, images, *weights, None, name, classes)

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
        """Compute a report of finite probabilities. What is not named here becomes an attribute.

        ``probabilities`` are ``(N, 10)`` float, ``targets`` ``(N,)`` int64 from 0, and ``images`` ``(N, H, W)``,
        ``(N, 1, H, W)`` or ``(N, 3, H, W)`` uint8. ``indices``, ``(N,)`` int64, are those of the images in the data.
        """
        refuse_not_finite(probabilities)
        indices = torch.arange(len(targets)) if indices is None else indices
        said = probabilities.argmax(dim=1)  # before the next line: two may be equal in float32
        probabilities = probabilities.float()
        confidences = probabilities.gather(1, said.unsqueeze(1)).squeeze(1)
        confusion = multiclass_confusion_matrix(said, targets, len(classes))
        # torchmetrics would return 0 for 0 / 0. NaN says that nothing was measured.
        right, called, there = confusion.diag(), confusion.sum(0), confusion.sum(1)
        precision, recall, f1 = right / called, right / there, 2 * right / (called + there)
        # torchmetrics puts confidences of exactly 1 into a sixteenth bin.
        below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
        calibration_error = multiclass_calibration_error(
            probabilities.clamp(max=below_one), targets, len(classes), n_bins=CALIBRATION_BINS, norm="l1"
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
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of the images that are predicted right, in [0, 1]."""
        return int(self.confusion.trace()) / self.total

    def table(self) -> str:
        """The numbers for a terminal, in ASCII. Of more than 30 classes, it has the ten worst."""
        numbers, called, word = [*range(len(self.classes))], [*map(short, self.classes)], class_word(self.classes)
        if len(numbers) > MOST_ROWS:
            numbers = self.recall.nan_to_num(2).argsort(stable=True)[:WORST].tolist()
        width = max(len(word), *(len(called[number]) for number in numbers))
        lines = [f"{word:>{width}}  images  precision  recall      F1  taken for"]
        for number in numbers:
            row, taken_for = self.confusion[number].clone(), "-"
            images = int(row.sum())
            row[number] = 0
            if row.any():
                taken_for = f"{called[int(row.argmax())]} ({int(row.max())} of {int(row.sum())})"
            shares = (float(share[number]) for share in (self.precision, self.recall, self.f1))
            p, r, f = (f"{share:.4f}".replace("nan", "-") for share in shares)
            lines.append(f"{called[number]:>{width}}  {images:>6,}  {p:>9}  {r:>6}  {f:>6}  {taken_for}")
        if len(numbers) < len(called):
            lines.append(f"These are the {WORST} of {len(called)} classes with the lowest recall.")
        lines += [
            f"accuracy           {self.accuracy:.4f}  {len(self.mistakes):,} mistakes in {self.total:,} images",
            f"calibration error  {self.calibration_error:.4f}  expected, {CALIBRATION_BINS} equal bins, l1",
        ]
        return "\n".join(lines)

    def numbers(self) -> dict[str, Any]:
        """All numbers for JSON, with ``None`` for NaN."""
        word, plural, labels = "class", "classes", [*self.classes]
        if class_word(self.classes) == "digit":
            word, plural, labels = "digit", "digits", [*range(10)]
        images = self.confusion.sum(1).tolist()
        shares = [[None if math.isnan(p) else p for p in t.tolist()] for t in (self.precision, self.recall, self.f1)]
        return {
            "images": self.total,
            "mistakes": len(self.mistakes),
            "accuracy": self.accuracy,
            "mean_confidence": self.mean_confidence,
            "expected_calibration_error": {"value": self.calibration_error, "bins": CALIBRATION_BINS, "norm": "l1"},
            plural: [
                {word: label, "images": number, "precision": p, "recall": r, "f1": f}
                for label, number, p, r, f in zip(labels, images, *shares, strict=True)
            ],
            "confusion_matrix": {"rows": word, "columns": "prediction", "counts": self.confusion.tolist()},
            "most_confident_mistakes": [
                {"index": m.index, "prediction": labels[m.said], word: labels[m.target], "confidence": m.confidence}
                for m in self.mistakes[:GALLERY]
            ],
        }

    def draw(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write two pictures or, if the weights are known, three, and return their paths."""
        captions = [(self._caption(mistake), f"image {mistake.index:,}") for mistake in self.mistakes[:GALLERY]]
        pictures = {
            "confusion_matrix.png": confusion_picture(self.confusion, self.name, self.classes),
            "mistakes.png": mistakes_picture(self.images, captions, len(self.mistakes), self.total, self.name),
        }
        if self.weights is not None:
            pictures["first_layer.png"] = weights_picture(self.weights, self.hidden_size, self.images.ndim == 4)
        return [save(picture, Path(folder) / name) for name, picture in pictures.items()]

    def _caption(self, mistake: Mistake) -> str:
        called = [*map(short, self.classes)]
        space = " " if max(map(len, called)) < 3 else "\n"
        sure = percent(mistake.confidence) if mistake.confidence < 0.9995 else ">99.9 %"
        return f"said {called[mistake.said]},{space}is {called[mistake.target]}, {sure}"

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``report.json`` and the pictures, and return all paths."""
        text, path = json.dumps(self.numbers(), indent=2, allow_nan=False), Path(folder) / "report.json"
        write_atomically(path, f"{text}\n".encode())
        return [path, *self.draw(folder)]


def _evaluated(model: nn.Module, loader: Iterable[Any], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets, and images in uint8."""
    place = next(model.parameters(), torch.empty(0))
    modes = [(module, module.training) for module in model.modules()]
    batches = []
    try:
        model.eval()
        with torch.inference_mode():
            for images, targets in loader:
                seen = images.to(place.device)
                logits: Any = model(seen.to(place.dtype) if seen.is_floating_point() else seen)
                if not isinstance(logits, Tensor) or logits.shape != (len(images), count):
                    raise InputError(f"the model must return logits, {(len(images), count)}, got {form(logits)}")
                batches.append((at_least_float32(logits).cpu(), targets.long().cpu(), _pixels(images.cpu())))
    finally:
        for module, training in modes:
            module.training = training
    if not batches:
        raise InputError("a report needs at least one image, but the loader has none")
    logits, targets, images = (torch.cat(parts) for parts in zip(*batches, strict=True))
    if are_probabilities(logits):
        raise InputError("the model returns probabilities, and a report needs logits: leave its softmax out")
    return logits, targets, images


def _pixels(images: Tensor) -> Tensor:
    """As uint8: three channels as ``(B, 3, H, W)``, all others as ``(B, H, W)``."""
    images = images.float()
    if images.shape[1:] == (28 * 28,):
        images = images.reshape(-1, 28, 28)
    elif images.ndim == 4 and images.shape[1] != 3:
        images = images.mean(1)
    low, high = images.amin().clamp(max=0), images.amax().clamp(min=1)  # images may be normalised
    return ((images - low) / (high - low) * 255).round().byte()


def layer_weights(model: nn.Module) -> tuple[Tensor | None, int]:
    """``weights`` and ``hidden_size`` of a ``Report``."""
    layers = two_layers(model)
    if layers is None:
        return None, 0
    hidden, output = (layer.weight.detach().float().cpu() for layer in layers)
    strongest = output.norm(dim=0).argsort(descending=True, stable=True)[:UNITS]
    image_shape: Any = model.image_shape
    return hidden[strongest].reshape(-1, *image_shape).mean(1), len(hidden)
