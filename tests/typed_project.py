"""A stranger's typed project. ``mypy`` checks it in the typing environment, strictly: it has public names only."""

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from typing_extensions import assert_type

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.model import RMSprop, prefer_onednn
from mnist_lightning.results import Mistake, Report
from mnist_lightning.runs import Run


class Smoothed(MNISTClassifier):
    def __init__(self, hidden_size: int = 64, smoothing: float = 0.1) -> None:
        super().__init__(hidden_size)
        self.smoothing = smoothing

    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return super().test_step(batch, batch_idx)

    def configure_optimizers(self) -> RMSprop:
        return RMSprop(self.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)


class Reversed(MNISTDataModule):
    def train_order(self, epoch: int) -> Sequence[int]:
        return range(len(self.train_dataset))[::-1]


def train(folder: Path) -> Report:
    data = Reversed(data_dir=None, val_size=0.1, train_size=1_000, train_transform=lambda images: images)
    images, targets = data.sample(4)
    assert_type((images, targets), tuple[Tensor, Tensor])
    assert_type(data.train_dataset[0], tuple[Tensor, int])
    assert_type(data.classes[0], str)
    trainer = Trainer(max_epochs=1, default_root_dir=folder)
    trainer.fit(Smoothed(hidden_size=8), data)
    trainer.save_checkpoint(folder / "a.ckpt")
    linear = prefer_onednn(nn.Linear(784, 10))
    assert_type(linear, nn.Linear)
    assert_type(Smoothed.load_from_checkpoint(folder / "a.ckpt"), Smoothed)
    assert_type(Reversed.load_from_checkpoint(folder / "a.ckpt", batch_size=64), Reversed)
    data.setup("test")
    report = Report.of(linear, data.test_dataloader(), name="MNIST")
    assert_type(report.accuracy, float)
    assert_type(report.mistakes, tuple[Mistake, ...])
    assert_type(report.write(folder / "report"), list[Path])
    return report


def read() -> Smoothed:
    run = Run.open()
    assert_type(run, Run)
    assert_type(run.metrics, list[dict[str, float]])
    assert_type(run.path, Path)
    assert_type(run.load(Reversed), Reversed)
    model = run.load(Smoothed, smoothing=0.2)
    assert_type(model, Smoothed)
    return model


if __name__ == "__main__":
    main(["fit"], model_class=Smoothed, data_class=Reversed)
