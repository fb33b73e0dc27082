"""A test's report, against scikit-learn and a calibration error of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.data import MNISTDataset
from mnist_lightning.errors import InputError
from mnist_lightning.model import two_layers
from mnist_lightning.results.report import Mistake, Report, layer_weights
from mnist_lightning.results.report_callback import ReportCallback

N = 500


KINDS = ["good", "random", "certain", "certain or nearly so", "perfect", "undecided"]
KINDS += ["never 4, and no 7", "a single image"]


def predictions(kind: str) -> tuple[Tensor, Tensor]:
    """Probabilities and targets."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(10, (N,), generator=generator)
    noise = torch.randn((N, 10), generator=generator)
    right = one_hot(targets, 10)
    if kind == "never 4, and no 7":
        noise[:, 4] = -100
        targets[targets == 7] = 8
    made = {
        "good": (noise + 4 * right).softmax(1),
        "certain": one_hot((noise + 3 * right).argmax(1), 10).float(),  # confidences of exactly 1, some of them wrong
        # All of it in the last bin.
        "certain or nearly so": torch.cat([right[:200].roll(1, 1) * 1000.0, right[200:] * 5.0]).softmax(1),
        "perfect": right.float(),
        "undecided": torch.full((N, 10), 0.1),
    }
    probabilities = made.get(kind, noise.softmax(1))
    return (probabilities[:1], targets[:1]) if kind == "a single image" else (probabilities, targets)


def report(probabilities: Tensor, targets: Tensor, **kwargs: Any) -> Report:
    images = torch.arange(len(targets) * 784).reshape(-1, 1, 28, 28).to(torch.uint8)
    return Report.from_predictions(probabilities, targets, images, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_confusion_precision_recall_and_f1_are_scikit_learn_s(kind: str) -> None:
    probabilities, targets = predictions(kind)
    found = report(probabilities, targets)
    said, is_ = probabilities.numpy().argmax(1), targets.numpy()
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(is_, said, labels=np.arange(10)))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(is_, said), abs=1e-12)
    expected = metrics.precision_recall_fscore_support(is_, said, labels=np.arange(10), zero_division=np.nan)
    for figure, name, values in zip((found.precision, found.recall, found.f1), "prf", expected, strict=False):
        np.testing.assert_allclose(figure, values, rtol=1e-6, err_msg=name)  # NaN where there is nothing to divide by
    table = found.table()
    assert table.isascii()
    assert max(map(len, table.splitlines())) <= 60
    for digit, row in enumerate(zip(*expected, strict=True)):
        cells = ["-" if np.isnan(value) else f"{value:.4f}" for value in row[:3]]
        assert table.splitlines()[1 + digit].split()[:5] == [str(digit), str(int(row[3])), *cells]
    numbers = found.numbers()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["confusion_matrix"]["counts"] == found.confusion.tolist()
    assert numbers["expected_calibration_error"] == {"value": found.calibration_error, "bins": 15, "norm": "l1"}


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_error_is_that_of_15_equal_bins_and_mistakes_are_all_there_the_most_confident_first(
    kind: str,
) -> None:
    probabilities, targets = predictions(kind)
    confidences = probabilities.double().numpy().max(1)
    right = probabilities.numpy().argmax(1) == targets.numpy()
    bins = np.minimum((confidences * 15).astype(int), 14)  # 1 is in the last
    error = sum(
        (bins == b).mean() * abs(confidences[bins == b].mean() - right[bins == b].mean()) for b in np.unique(bins)
    )
    found = report(probabilities, targets, indices=torch.arange(len(targets)) + 1000)
    assert found.calibration_error == pytest.approx(error, abs=2e-5)  # float32 sums
    assert sorted(mistake.index for mistake in found.mistakes) == [1000 + i for i in np.flatnonzero(~right)]
    order = [mistake.confidence for mistake in found.mistakes]
    assert order == sorted(order, reverse=True)
    for mistake, image in zip(found.mistakes, found.images, strict=False):
        i = mistake.index - 1000
        assert (mistake.said, mistake.target) == (int(probabilities[i].argmax()), int(targets[i]))
        assert mistake.confidence == pytest.approx(confidences[i])
        assert torch.equal(image, (torch.arange(784) + 784 * i).reshape(28, 28).to(torch.uint8))
    assert len(found.images) == min(25, sum(~right))


def test_probabilities_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    for value in (torch.nan, torch.inf):
        probabilities, targets = predictions("good")
        probabilities[:7, 3] = value
        with pytest.raises(InputError, match="infinite or NaN for 7 of 500 images"):
            report(probabilities, targets)
    for rows, columns, first in ((3, 9, 0), (4, 10, 0), (3, 10, 8), (3, 10, -1)):
        with pytest.raises((ValueError, RuntimeError)):
            report(torch.full((rows, columns), 1 / columns), torch.arange(first, first + 3))


def test_the_digit_is_that_of_the_probabilities_as_they_were_given() -> None:
    probabilities = torch.full((2, 10), 0.01, dtype=torch.float64)
    probabilities[:, 3], probabilities[:, 5] = 0.46 - 1e-12, 0.46 + 1e-12  # equal in float32
    found = report(probabilities, torch.tensor([5, 3]))
    assert found.confusion.nonzero().tolist() == [[3, 5], [5, 5]]
    assert [(mistake.said, mistake.target) for mistake in found.mistakes] == [(5, 3)]
    assert found.mistakes[0].confidence == pytest.approx(0.46)


@pytest.mark.parametrize("kind", ["good", "perfect"])
def test_each_picture_is_written_and_the_numbers_beside_them(kind: str, tmp_path: Path) -> None:
    found = report(*predictions(kind), weights=torch.randn(64, 28, 28), hidden_size=100)
    paths = found.write(tmp_path / "run")
    assert [p.name for p in paths] == ["report.json", "confusion_matrix.png", "mistakes.png", "first_layer.png"]
    assert json.loads(paths[0].read_text()) == found.numbers()
    for path in paths[1:]:
        with Image.open(path) as picture:
            assert picture.width == 1600
            assert 350 < picture.height < 1800


def captions(found: Report, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written below the mistakes."""
    pictures: dict[str, Any] = {}
    monkeypatch.setattr("mnist_lightning.results.report.save", lambda drawn, path: pictures.update({path.name: drawn}))
    found.draw("nowhere")
    return [text.get_text() for text in pictures["mistakes.png"].axes[0].texts]


def test_a_caption_says_what_was_said_what_it_is_and_how_surely(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = torch.full((3, 10), 0.0001)
    probabilities[0, 7], probabilities[1, 7], probabilities[2, 7] = 0.9979, 0.99994, 0.5
    # Not 100.0 %: that would be certainty.
    said = ["said 7, is 2, >99.9 %", "image 1", "said 7, is 2, 99.8 %", "image 0"]
    assert captions(report(probabilities, torch.tensor([2, 2, 7])), monkeypatch) == said
    probabilities, classes = torch.tensor([[0.9, 0.1], [0.8, 0.2]]), ("Sandal", "Sneaker")
    named = report(probabilities, torch.tensor([0, 1]), classes=classes)
    assert captions(named, monkeypatch) == ["said Sandal,\nis Sneaker, 80.0 %", "image 1"]


@pytest.mark.parametrize("limit", [None, 3, 0])
def test_the_callback_reports_what_predict_would(trainer: Callable, limit: int | None) -> None:
    torch.manual_seed(0)
    model, data, callback = MNISTClassifier(hidden_size=32), MNISTDataModule(), ReportCallback()
    tester = trainer(callbacks=[callback], limit_test_batches=limit, limit_predict_batches=limit)
    tester.test(model, datamodule=data, verbose=False)
    test_acc = tester.callback_metrics.get("test_acc")
    if limit == 0:
        assert callback.report is None
        return
    probabilities = torch.cat(tester.predict(model, datamodule=data))
    n = len(probabilities)
    assert n == (10_000 if limit is None else 3 * 128)
    assert data.test_dataset is not None
    images, targets = data.test_dataset.images[:n], data.test_dataset.targets[:n]
    expected = Report.from_predictions(probabilities, targets, images, *layer_weights(model))
    assert callback.report is not None
    assert callback.report.numbers() == expected.numbers()
    assert torch.equal(callback.report.images, expected.images)
    assert callback.report.weights is not None
    assert torch.equal(callback.report.weights, expected.weights)
    assert callback.report.accuracy == pytest.approx(float(test_acc))


SEVERAL = """
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.results.report_callback import ReportCallback

torch.manual_seed(0)
callback = ReportCallback()
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback])
trainer = Trainer(accelerator="cpu", strategy="ddp", devices=2, limit_test_batches=3, **quiet)
trainer.test(MNISTClassifier(hidden_size=32), datamodule=MNISTDataModule(), verbose=False)
assert (callback.report is not None) == trainer.is_global_zero
if callback.report:
    Path("mistakes.txt").write_text(repr(callback.report.mistakes))
"""


@pytest.mark.slow
def test_two_processes_report_what_one_does(trainer: Callable, tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    command = [sys.executable, "several.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    torch.manual_seed(0)
    callback = ReportCallback()
    tester = trainer(callbacks=[callback], limit_test_batches=3)
    tester.test(MNISTClassifier(hidden_size=32), datamodule=MNISTDataModule(), verbose=False)
    assert callback.report is not None
    several = eval((tmp_path / "mistakes.txt").read_text(), {"Mistake": Mistake})
    assert [m.index for m in several] == [m.index for m in callback.report.mistakes]
    assert [m.confidence for m in several] == pytest.approx([m.confidence for m in callback.report.mistakes])


class Returns(MNISTClassifier):
    """Returns something else from its test."""

    returned: Any = None

    def test_step(self, *args: Any) -> Any:
        super().test_step(*args)
        return self.returned


IMAGES, DIGITS = torch.zeros((8, 28, 28), dtype=torch.uint8), torch.arange(8)
LOGITS, ORDER = "test_step must return the logits", "the test's loader must have an MNISTDataset, in its order"


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled")
@pytest.mark.parametrize(
    ("returned", "dataset", "shuffle", "why"),
    [
        (None, MNISTDataset(IMAGES, DIGITS), False, LOGITS),
        (torch.tensor(0.5), MNISTDataset(IMAGES, DIGITS), False, LOGITS),
        (torch.zeros(4, 1), MNISTDataset(IMAGES, DIGITS), False, LOGITS),
        (torch.zeros(4, 10), MNISTDataset(IMAGES, DIGITS), True, ORDER),
        (torch.zeros(4, 10), torch.utils.data.TensorDataset(IMAGES / 255, DIGITS), False, ORDER),
    ],
    ids=["nothing", "a loss", "a column", "shuffled", "another dataset"],
)
def test_without_logits_of_images_in_order_the_test_goes_on_and_says_why_there_is_no_report(
    trainer: Callable, returned: Any, dataset: Any, shuffle: bool, why: str
) -> None:
    model, callback = Returns(8), ReportCallback()
    model.returned = returned
    tester = trainer(callbacks=[callback])
    with pytest.warns(UserWarning, match=f"no report of this test: {why}") as warned:
        tester.test(model, torch.utils.data.DataLoader(dataset, 4, shuffle=shuffle), verbose=False)
    assert len([w for w in warned if "no report" in str(w.message)]) == 1
    assert callback.report is None
    assert "test_acc" in tester.callback_metrics


def test_a_network_of_another_kind_has_a_report_without_a_picture_of_its_weights(tmp_path: Path) -> None:
    for layers in (
        [nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)],  # two hidden layers
        [nn.Linear(784, 10)],  # none
        [nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 10, 28), nn.Flatten()],
    ):
        model = MNISTClassifier()
        model.network = nn.Sequential(nn.Flatten(), *layers)
        found = Report.of(model, [(torch.rand(30, 784), torch.arange(30) % 10)])
        assert found.weights is None
    assert [path.name for path in found.draw(tmp_path)] == ["confusion_matrix.png", "mistakes.png"]


def test_of_a_hundred_classes_the_table_shows_the_ten_worst() -> None:
    classes = [f"class{i}" for i in range(100)]
    targets = torch.arange(1_000) % 100
    said = torch.where((targets % 5 == 0) & (torch.arange(1_000) < 10 * targets), (targets + 1) % 100, targets)
    images = torch.zeros((1_000, 3, 32, 32), dtype=torch.uint8)
    found = Report.from_predictions(torch.eye(100)[said], targets, images, name="Things", classes=classes)
    lines = found.table().splitlines()
    rows = [line.split() for line in lines[1:11]]
    recalls = [float(row[3]) for row in rows]
    assert recalls == pytest.approx(found.recall.sort().values[:10].tolist(), abs=1e-4)
    assert lines[0].split()[0] == "class"
    assert lines[1].split()[0] == "class90"
    assert "class91 (9 of 9)" in lines[1]
    assert lines[11] == "These are the 10 of 100 classes with the lowest recall."
    numbers = found.numbers()
    assert len(numbers["classes"]) == 100
    assert numbers["most_confident_mistakes"][0]["class"].startswith("class")
    assert numbers["confusion_matrix"]["rows"] == "class"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 4, 5)])
def test_the_units_with_the_largest_weights_to_the_output_come_first(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = MNISTClassifier(100, image_shape=shape, num_classes=3)
    found = Report.of(model, [(torch.rand(30, *shape), torch.arange(30) % 3)], "Things", "abc")
    layers = two_layers(model)
    assert layers is not None
    hidden, output = (layer.weight.detach() for layer in layers)
    order = output.norm(dim=0).argsort(descending=True)[:64]
    assert torch.allclose(found.weights, hidden[order].reshape(64, *shape).mean(1))  # the mean of three colours
    assert found.hidden_size == 100
