"""A stranger's reports: any network, any loader, a notebook, and no command line."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.results import Report
from mnist_lightning.results.report_callback import ReportCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def network(*layers: nn.Module, pixels: int = 784, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes), *layers)


def test_any_network_and_any_loader_have_a_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images, targets = network(nn.Dropout(0.5), nn.BatchNorm1d(10)), torch.rand(100, 784), torch.arange(100) % 10
    model[0].eval()  # as a user has it who freezes a part
    before = copy.deepcopy(model.state_dict())
    loader = DataLoader(TensorDataset(images, targets.int()), batch_size=7)
    found = Report.of(model, loader, name="Noise of $1 and $\\")
    assert [module.training for module in model] == [False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    logits = model.eval()(images).detach()
    assert found.accuracy == (logits.argmax(1) == targets).float().mean()
    first = found.mistakes[0]
    assert first.confidence == pytest.approx(float(logits.softmax(1)[logits.argmax(1) != targets].max()))
    assert torch.equal(found.images[0], (images[first.index] * 255).round().byte().reshape(28, 28))
    assert {path.name for path in found.write(str(tmp_path))} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "mistakes.png").is_file()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_the_report_of_the_tutorials_network_is_that_of_its_test(precision: str, trainer: Callable) -> None:
    torch.manual_seed(0)
    model, data, callback = MNISTClassifier(8), MNISTDataModule(), ReportCallback()
    trainer(callbacks=[callback], precision=precision).test(model, data, verbose=False)
    found = Report.of(model, data.test_dataloader())
    assert callback.report is not None
    assert torch.equal(found.confusion, callback.report.confusion)
    if precision != "64-true":  # outside of a Trainer, the pixels are rounded to float32
        assert found.numbers() == callback.report.numbers()
    assert torch.equal(found.images, callback.report.images)
    assert torch.equal(found.weights, callback.report.weights)


@pytest.mark.parametrize(
    "images",
    [
        torch.linspace(-0.5, 3, 784).reshape(1, 28, 28),  # normalised
        torch.linspace(0, 255, 784).reshape(1, 1, 28, 28).round().byte(),
        torch.tensor([3, 3]).reshape(1, 2, 1, 1) * torch.linspace(-0.5, 3, 56 * 56).reshape(56, 56),
    ],
    ids=["normalised", "bytes", "of two channels"],
)
def test_the_pictures_are_of_whatever_images_there_are(images: Tensor) -> None:
    class SaysOne(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(10)[torch.ones(len(images), dtype=torch.long)] * 9

    (picture,) = Report.of(SaysOne(), [(images, torch.tensor([0]))]).images
    pixels = picture.flatten().tolist()
    assert pixels == sorted(pixels)
    assert pixels[0] <= 2
    assert pixels[-1] >= 253


def test_colours_stay_colours_in_the_pictures(tmp_path: Path) -> None:
    images, classes = torch.rand(20, 3, 32, 32), ["a", "bee", "sea", "deer"]
    found = Report.of(network(pixels=3 * 32 * 32, classes=4), [(images, torch.arange(20) % 4)], "Noise", classes)
    assert torch.equal(found.images[0], (images[found.mistakes[0].index] * 255).round().byte())
    assert found.numbers()["classes"][1]["class"] == "bee"
    found.write(tmp_path)
    with Image.open(tmp_path / "mistakes.png") as picture:
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
    assert (abs(red - green) + abs(green - blue) > 60).mean() > 0.05


NAN = network()
NAN[1].weight.data[3, 5] = torch.nan
BATCH = torch.rand(8, 784), torch.arange(8)


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        (network(), [], "at least one image, but the loader has none"),
        (NAN, [BATCH], "outputs are infinite or NaN for 8 of 8 images"),
        (network(nn.Softmax(1)), [BATCH], "the model returns probabilities, and a report needs logits"),
        (network(nn.Linear(10, 3)), [BATCH], r"must return logits, \(8, 10\), got shape \(8, 3\)"),
    ],
)
def test_a_report_of_anything_but_logits_is_refused_in_one_line(model: Any, loader: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Report.of(model, loader)
    assert "\n" not in str(refused.value)
    assert all(module.training for module in model.modules())


NOTEBOOK = [
    """
from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.results import Report
from mnist_lightning.runs import Run

class Own(MNISTClassifier):
    "A class that no other process can import."

main(["fit", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3"], model_class=Own)
""",
    'main(["fit", "--model.hidden_size", "0"], model_class=Own)',
    'main(["test"], model_class=Own)',
    """
run, data = Run.open(), MNISTDataModule()
data.setup("test")
report = Report.of(run.load(Own), data.test_dataloader())
print(abs(report.accuracy - run.metrics[-1]["test_acc"]) < 1e-6, [path.name for path in report.write("report")])
""",
]


@pytest.mark.slow
def test_a_notebook_trains_and_reads_its_run(tmp_path: Path) -> None:
    from nbclient import NotebookClient
    from nbformat import v4

    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in NOTEBOOK])
    notebook.cells[1].metadata["tags"] = ["raises-exception"]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [" ".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert "Epoch 2/2" in said[0]
    assert "hidden_size must be at least 1, got 0" in said[1]
    assert re.search(r"^accuracy +0\.\d{4}", said[2], re.MULTILINE)
    assert said[3].startswith("True ['report.json', 'confusion_matrix.png', 'mistakes.png', 'first_layer.png']")
