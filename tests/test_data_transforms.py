"""What a checkpoint records of a transform tells it from others, and is the same in every process."""

import enum
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from mnist_lightning import MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.data.transforms import describe, digest
from mnist_lightning.errors import InputError


def scaled_by(factor: Any) -> Callable[[Tensor], Tensor]:
    return lambda images: images * factor


def scaled(images: Tensor, factor: float = 1.0) -> Tensor:
    return images * factor


class Scale:
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def by(self, images: Tensor) -> Tensor:
        return images * self.factor

    def __repr__(self) -> str:
        return "Scale()"

    __call__ = by


class ScaleModule(nn.Module):
    def __init__(self, factor: Any) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor


class Private(nn.Module):
    def __init__(self, factor: Any) -> None:
        super().__init__()
        self._factor = factor


class Factor(enum.Enum):
    ONE = 1
    TWO = 2


PAIRS = {
    "closures": lambda factor: scaled_by(float(factor)),
    "closures over tensors": lambda factor: scaled_by(torch.full((2, 2), factor)),
    "closures over arrays": lambda factor: scaled_by(np.full((2, 2), factor)),
    "closures over sets": lambda factor: scaled_by({"a", "b", str(factor)}),
    "closures over bfloat16": lambda factor: scaled_by(torch.full((2, 2), factor, dtype=torch.bfloat16)),
    "closures over functions": lambda factor: scaled_by(scaled_by(factor)),
    "bound methods": lambda factor: Scale(factor).by,
    "objects": Scale,
    "objects of objects": lambda factor: Scale([{"inner": Scale(factor)}]),
    "objects of enums": lambda factor: Scale(Factor(factor)),
    "modules": ScaleModule,
    "private attributes of modules": Private,
    "modules of modules": lambda factor: nn.Sequential(nn.ReLU(), ScaleModule(factor)),
    "torchvision's": lambda factor: v2.RandomApply([v2.RandomHorizontalFlip(1.0)], p=factor / 2),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_transforms_that_look_alike_are_told_apart_by_their_parameters(make: Callable[[int], Any]) -> None:
    assert describe(make(1)) == describe(make(2))  # or there would be nothing to test
    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))
    saved = MNISTDataModule(transform=make(1)).state_dict()
    MNISTDataModule(transform=make(1)).load_state_dict(saved)
    with pytest.raises(InputError, match="here it has other parameters: give"):
        MNISTDataModule(transform=make(2)).load_state_dict(saved)


def test_a_checkpoint_without_digests_is_compared_by_description() -> None:
    saved = MNISTDataModule(transform=Scale(1)).state_dict()
    old = {name: value for name, value in saved.items() if not name.endswith("_digest")}
    MNISTDataModule(transform=Scale(2)).load_state_dict(old)
    with pytest.raises(InputError, match=r"'Scale\(\)', here it is None"):
        MNISTDataModule().load_state_dict(old)


def test_an_object_that_holds_itself_has_a_digest() -> None:
    first, second = Scale(None), Scale(None)
    first.factor, second.factor = first, [second]
    assert digest(first) != digest(second)


def test_equal_parameters_have_the_same_digest() -> None:
    part = [1]
    assert digest(Scale([part, part])) == digest(Scale([[1], [1]]))
    assert digest(Scale({1: "a", 3: "c"})) == digest(Scale({3: "c", 1: "a"}))


def test_what_cannot_be_read_is_compared_by_description_alone() -> None:
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    assert digest(Scale(deep)) is None
    here = MNISTDataModule(transform=Scale(deep))
    here.load_state_dict(MNISTDataModule(transform=Scale(1)).state_dict())


@pytest.mark.slow  # two processes that import torch
def test_every_process_has_the_same_digest() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "from test_data_transforms import PAIRS, digest\nprint([digest(make(1)) for make in PAIRS.values()])"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout) > 64 * len(PAIRS)


def test_a_call_that_draws_numbers_changes_no_digest() -> None:
    generator = torch.Generator()
    transform = scaled_by(generator)
    before = digest(transform)
    torch.rand(1, generator=generator)
    assert digest(transform) == before


@pytest.mark.parametrize("name", ["transform", "train_transform"])
@pytest.mark.parametrize("cls", ["RandomHorizontalFlip", "Identity"])
def test_a_transform_that_makes_each_evaluation_a_draw_is_named(
    name: str, cls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--trainer.limit_train_batches=1", "--trainer.limit_test_batches=1", "--trainer.max_epochs=1"]
    main(
        [
            "fit",
            *quick,
            f"--data.{name}={'torch.nn.Identity' if cls == 'Identity' else 'torchvision.transforms.v2.' + cls}",
        ]
    )
    said = [capsys.readouterr().out]
    main(["test", quick[1]])
    said.append(capsys.readouterr().out)
    for out in said:
        named = "Random   transform draws anew each time, for test images too" in out
        assert named == ((name, cls) == ("transform", "RandomHorizontalFlip"))
