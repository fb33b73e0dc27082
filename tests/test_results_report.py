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

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.results.report import Mistake, Report, layer_weights
from mnist_lightning.results.report_callback import ReportCallback

N = 500


def predictions(kind: str) -> tuple[Tensor, Tensor]:
    """Probabilities and targets."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(10, (N,), generator=generator)
    noise = torch.randn((N, 10), generator=generator)
    right = torch.nn.functional.one_hot(targets, 10)
    if kind == "good":
        return (noise + 4 * right).softmax(1), targets
    if kind == "random":
        return noise.softmax(1), targets
    if kind == "certain":  # confidences of exactly 1, some of them wrong
        return torch.nn.functional.one_hot((noise + 3 * right).argmax(1), 10).float(), targets
    if kind == "certain or nearly so":  # all of it in the last bin
        wrong = right.roll(1, dims=1)
        return torch.cat([wrong[:200] * 1000.0, right[200:] * 5.0]).softmax(1), targets
    if kind == "perfect":
        return right.float(), targets
    if kind == "undecided":
        return torch.full((N, 10), 0.1), targets
    if kind == "never 4, and no 7":
        noise[:, 4] = -100
        targets[targets == 7] = 8
        return noise.softmax(1), targets
    assert kind == "a single image"
    return noise[:1].softmax(1), targets[:1]


KINDS = [
    "good",
    "random",
    "certain",
    "certain or nearly so",
    "perfect",
    "undecided",
    "never 4, and no 7",
    "a single image",
]


def report(probabilities: Tensor, targets: Tensor, **kwargs: Any) -> Report:
    images = torch.arange(len(targets) * 784).reshape(-1, 1, 28, 28).to(torch.uint8)
    return Report.from_predictions(probabilities, targets, images, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_confusion_precision_recall_and_f1_are_scikit_learn_s(kind: str) -> None:
    probabilities, targets = predictions(kind)
    found = report(probabilities, targets)
    said, is_ = probabilities.numpy().argmax(1), targets.numpy()
    digits = np.arange(10)
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(is_, said, labels=digits))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(is_, said), abs=1e-12)
    expected = metrics.precision_recall_fscore_support(is_, said, labels=digits, zero_division=np.nan)
    for figure, name, values in zip((found.precision, found.recall, found.f1), "prf", expected, strict=False):
        np.testing.assert_allclose(figure, values, rtol=1e-6, err_msg=name)  # NaN where there is nothing to divide by
    table = found.table()
    for digit, row in enumerate(zip(*expected, strict=True)):
        cells = ["-" if np.isnan(value) else f"{value:.4f}" for value in row[:3]]
        assert table.splitlines()[1 + digit].split()[:5] == [str(digit), str(int(row[3])), *cells]


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_error_is_that_of_15_equal_bins_with_1_in_the_last(kind: str) -> None:
    probabilities, targets = predictions(kind)
    confidences = probabilities.double().numpy().max(1)
    right = probabilities.numpy().argmax(1) == targets.numpy()
    bins = np.minimum((confidences * 15).astype(int), 14)
    expected = sum(
        (bins == b).mean() * abs(confidences[bins == b].mean() - right[bins == b].mean()) for b in np.unique(bins)
    )
    assert report(probabilities, targets).calibration_error == pytest.approx(expected, abs=2e-5)  # float32 sums


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_all_there_the_most_confident_first(kind: str) -> None:
    probabilities, targets = predictions(kind)
    indices = torch.arange(len(targets)) + 1000
    found = report(probabilities, targets, indices=indices)
    wrong = (probabilities.argmax(1) != targets).nonzero().flatten()
    assert sorted(mistake.index for mistake in found.mistakes) == indices[wrong].tolist()
    confidences = [mistake.confidence for mistake in found.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    for mistake, image in zip(found.mistakes, found.images, strict=False):
        i = mistake.index - 1000
        assert (mistake.said, mistake.target) == (int(probabilities[i].argmax()), int(targets[i]))
        assert mistake.confidence == pytest.approx(float(probabilities[i].max()))
        assert torch.equal(image, (torch.arange(784) + 784 * i).reshape(28, 28).to(torch.uint8))
    assert len(found.images) == min(25, len(wrong))


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_fits_60_columns_and_the_numbers_are_json(kind: str) -> None:
    found = report(*predictions(kind))
    assert found.table().isascii()
    assert max(map(len, found.table().splitlines())) <= 60
    numbers = found.numbers()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["confusion_matrix"]["counts"] == found.confusion.tolist()
    assert numbers["expected_calibration_error"] == {"value": found.calibration_error, "bins": 15, "norm": "l1"}


def test_the_table_of_60000_mistakes_fits_60_columns() -> None:
    targets = torch.ones(60_000, dtype=torch.int64)
    probabilities = torch.eye(10)[0].expand(60_000, 10)
    found = Report.from_predictions(probabilities, targets, torch.zeros((60_000, 28, 28), dtype=torch.uint8))
    assert "0 (60000 of 60000)" in found.table()
    assert max(map(len, found.table().splitlines())) <= 60


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_probabilities_that_are_not_finite_are_refused(value: float) -> None:
    probabilities, targets = predictions("good")
    probabilities[:7, 3] = value
    with pytest.raises(InputError, match="infinite or NaN for 7 of 500 images"):
        report(probabilities, targets)


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


def test_a_caption_says_what_was_said_what_it_is_and_how_surely(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    captions = []
    probabilities = torch.full((3, 10), 0.0001)
    probabilities[0, 7], probabilities[1, 7], probabilities[2, 7] = 0.9979, 0.99994, 0.5
    monkeypatch.setattr(
        "mnist_lightning.results.figures.mistakes_figure", lambda images, lines, *rest: captions.extend(lines)
    )
    monkeypatch.setattr("mnist_lightning.results.figures.save", lambda figure, path: path)
    report(probabilities, torch.tensor([2, 2, 7])).draw(tmp_path)
    # Not 100.0 %: that would be certainty.
    assert captions == [("said 7, is 2, >99.9 %", "image 1"), ("said 7, is 2, 99.8 %", "image 0")]


def test_the_units_with_the_largest_weights_to_the_output_come_first() -> None:
    model = MNISTClassifier(hidden_size=100)
    found = Report.of(model, [(torch.rand(30, 784), torch.arange(30) % 10)])
    hidden, output = (layer.weight.detach().numpy() for layer in (model.hidden_layer, model.output_layer))
    order = np.argsort(-np.linalg.norm(output, axis=0))[:64]
    assert found.weights is not None
    np.testing.assert_array_equal(found.weights, hidden[order].reshape(64, 28, 28))
    assert found.hidden_size == 100


@pytest.mark.parametrize(
    ("probabilities", "targets", "images", "named"),
    [
        (torch.rand(0, 10), torch.zeros(0).long(), torch.zeros(0, 28, 28), "got none"),
        (torch.rand(3, 9), torch.zeros(3).long(), torch.zeros(3, 28, 28), "probabilities"),
        (torch.rand(3, 10), torch.zeros(3, 10), torch.zeros(3, 28, 28), "targets"),
        (torch.rand(3, 10), torch.zeros(3).long(), torch.zeros(4, 28, 28), "images"),
    ],
)
def test_tensors_that_do_not_fit_are_named(probabilities: Tensor, targets: Tensor, images: Tensor, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Report.from_predictions(probabilities, targets, images)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
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
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_two_processes_report_what_one_does(trainer: Callable, tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    command = [sys.executable, "several.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    torch.manual_seed(0)
    callback = ReportCallback()
    tester = trainer(callbacks=[callback], limit_test_batches=3)
    tester.test(MNISTClassifier(hidden_size=32), datamodule=MNISTDataModule(), verbose=False)
    assert callback.report is not None
    several = eval((tmp_path / "mistakes.txt").read_text(), {"Mistake": Mistake})
    assert [m.index for m in several] == [m.index for m in callback.report.mistakes]
    assert [m.confidence for m in several] == pytest.approx([m.confidence for m in callback.report.mistakes])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("returned", [None, torch.tensor(0.5), torch.zeros(128, 1)], ids=["nothing", "loss", "column"])
def test_without_logits_the_test_goes_on_and_says_why_there_is_no_report(trainer: Callable, returned: Any) -> None:
    class Other(MNISTClassifier):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            super().test_step(batch, batch_idx)
            return returned

    callback = ReportCallback()
    tester = trainer(callbacks=[callback], limit_test_batches=2)
    with pytest.warns(UserWarning, match=r"no report of this test: test_step must return the logits") as warned:
        tester.test(Other(8), datamodule=MNISTDataModule(), verbose=False)
    assert len([w for w in warned if "no report" in str(w.message)]) == 1
    assert callback.report is None
    assert "test_acc" in tester.callback_metrics


def test_without_the_package_s_dataset_the_test_goes_on_and_says_so(trainer: Callable) -> None:
    data = torch.utils.data.TensorDataset(torch.rand(8, 784), torch.arange(8))
    callback = ReportCallback()
    with pytest.warns(UserWarning, match="no report of this test: the test's loader must have an MNISTDataset"):
        trainer(callbacks=[callback]).test(MNISTClassifier(8), torch.utils.data.DataLoader(data, 4), verbose=False)
    assert callback.report is None


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)],  # two hidden layers
        [nn.Linear(784, 10)],  # none
        [nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 10, 28), nn.Flatten()],
    ],
    ids=["deep", "flat", "convolutional"],
)
def test_a_network_of_another_kind_has_a_report_without_a_picture_of_its_weights(
    trainer: Callable, layers: list[nn.Module], tmp_path: Path
) -> None:
    class Other(MNISTClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), *layers)

    callback = ReportCallback()
    trainer(callbacks=[callback], limit_test_batches=2).test(Other(), datamodule=MNISTDataModule(), verbose=False)
    assert callback.report is not None
    assert callback.report.weights is None
    callback.report.write(tmp_path)
    assert not (tmp_path / "first_layer.png").exists()


def test_of_a_hundred_classes_the_table_shows_the_ten_worst() -> None:
    classes = [f"class{i}" for i in range(100)]
    targets = torch.arange(1_000) % 100
    said = torch.where((targets % 5 == 0) & (torch.arange(1_000) < 10 * targets), (targets + 1) % 100, targets)
    images = torch.zeros((1_000, 3, 32, 32), dtype=torch.uint8)
    found = Report.from_predictions(torch.eye(100)[said], targets, images, name="Things", classes=classes)
    lines = found.table().splitlines()
    rows = [line.split() for line in lines[1:11]]
    recalls = [float(row[3]) for row in rows]
    assert recalls == sorted(recalls)
    others = {classes.index(row[0]) for row in rows} ^ set(range(100))
    assert max(recalls) <= min(float(found.recall[i]) for i in others)
    assert rows[0][0] == "class90"
    assert lines[0].split()[0] == "class"
    assert "taken for" in lines[0]
    assert "class91 (9 of 9)" in lines[1]
    assert lines[11] == "These are the 10 of 100 classes with the lowest recall."
    numbers = found.numbers()
    assert len(numbers["classes"]) == 100
    assert numbers["most_confident_mistakes"][0]["class"].startswith("class")
    assert numbers["confusion_matrix"]["rows"] == "class"


def test_mistakes_are_named_in_the_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("mnist_lightning.results.figures.mistakes_figure", lambda *args: drawn.append(args))
    monkeypatch.setattr("mnist_lightning.results.figures.save", lambda figure, path: path)
    images = torch.zeros((2, 28, 28), dtype=torch.uint8)
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    found = Report.from_predictions(probabilities, torch.tensor([0, 1]), images, classes=("Sandal", "Sneaker"))
    found.draw(tmp_path)
    assert drawn[0][1] == [("said Sandal,\nis Sneaker, 80.0 %", "image 1")]


def test_the_weights_of_colours_are_their_mean() -> None:
    torch.manual_seed(0)
    model = MNISTClassifier(8, image_shape=(3, 4, 5), num_classes=3)
    found = Report.of(model, [(torch.rand(30, 3, 4, 5), torch.arange(30) % 3)], "Things", "abc")
    strongest = int(model.output_layer.weight.norm(dim=0).argmax())
    expected = model.hidden_layer.weight[strongest].reshape(3, 4, 5).mean(0)
    assert torch.allclose(found.weights[0], expected)
