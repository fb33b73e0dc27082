"""``export``: a run's network for other programs."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnist_lightning import MNISTClassifier, MNISTDataModule, __version__
from mnist_lightning.cli import main
from mnist_lightning.model import prefer_onednn

RUN = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "16"]
MODELS = {kind: Path("lightning_logs/version_0") / f"model.{kind}" for kind in ("onnx", "pt2")}
HAS_ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))

pytestmark = [pytest.mark.filterwarnings("ignore")]  # remarks of torch, Lightning and onnx about each other
TOO_OLD = torch.__version__.startswith("2.6.")  # onnxscript for torch 2.6 is too old for today's protobuf
needs_onnx = pytest.mark.skipif(TOO_OLD or not HAS_ONNX, reason="needs the extra [onnx] and a torch for it")
KINDS = [pytest.param("onnx", marks=needs_onnx), "pt2"]
Mnist = Callable[[str], tuple[np.ndarray, np.ndarray]]


def exported(kind: str) -> tuple[Callable[[Tensor], Any], dict[str, str]]:
    """The network as another program runs it, and what the file says of itself."""
    if kind == "pt2":
        extra = {"mnist_lightning.json": ""}
        program = torch.export.load(MODELS[kind], extra_files=extra).module()
        return program, json.loads(extra["mnist_lightning.json"])
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(MODELS[kind], providers=["CPUExecutionProvider"])
    facts = {fact.key: fact.value for fact in onnx.load(MODELS[kind]).metadata_props}
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels.numpy()})[0], facts


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_gives_the_probabilities_of_predict_for_any_number_of_pixels(
    kind: str, mnist: Mnist, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *RUN])
    main(["export", "--format", kind])
    assert "Checked  10,000 test images" in capsys.readouterr().out
    main(["predict"])
    expected = np.loadtxt("lightning_logs/version_0/predictions.csv", delimiter=",", skiprows=1)[:, 2:]
    pixels = torch.from_numpy(mnist("t10k")[0].reshape(-1, 1, 28, 28)).float() / 255
    program, facts = exported(kind)
    for number in (1, 7, 10_000):
        np.testing.assert_allclose(program(pixels[:number]), expected[:number], rtol=0, atol=1e-5)
    assert facts["mnist_lightning"] == __version__
    assert Path(facts["source"]) == Path("lightning_logs/version_0/checkpoints/last.ckpt").resolve()
    assert json.loads(facts["classes"]) == list("0123456789")
    assert "(N, 1, 28, 28)" in facts["input"]
    assert [path.name for path in MODELS[kind].parent.glob("*model*")] == [f"model.{kind}"]  # all in one file
    assert MODELS[kind].stat().st_size < 200_000  # 13 thousand weights, and no images


class Inverted(MNISTClassifier):
    """Sees black on white, has a layer of another kind, and multiplies by oneDNN."""

    def __init__(self, hidden_size: int = 512) -> None:
        super().__init__(hidden_size)
        self.network.insert(3, nn.LayerNorm(hidden_size))
        prefer_onednn(self)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(1 - images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_of_ones_own_exports_whatever_it_computes(kind: str) -> None:
    main(["fit", *RUN[:4], "--model.hidden_size", "128"], model_class=Inverted)
    main(["export", "--out", f"mine.{kind}"], model_class=Inverted)
    assert Path(f"mine.{kind}").stat().st_size > 300_000


class Noisy(MNISTClassifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.1 * torch.rand_like(images))


class Counts(MNISTClassifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * len(images.cpu().unique().tolist())


def test_a_network_whose_export_says_something_else_or_that_has_none_is_refused(fails: Callable[..., str]) -> None:
    for model_class, says in (
        (Noisy, "does the network draw random numbers"),
        (Counts, "Counts cannot be exported as pt2 ("),
    ):
        main(["fit", *RUN], model_class=model_class)
        assert says in fails("export", "--format", "pt2", model_class=model_class)


class Padded(MNISTDataModule):
    """Its images are transformed, and no configuration says so."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(transform=torch.sqrt, **kwargs)


def test_what_cannot_be_exported_is_one_line(fails: Callable[..., str]) -> None:
    assert "no fit run with a checkpoint" in fails("export")
    root = ["--trainer.default_root_dir", "normalised"]
    normalised = ["--data.transform", "torchvision.transforms.v2.Normalize"]
    normalised += ["--data.transform.mean", "[0.1]", "--data.transform.std", "[0.3]"]
    main(["fit", *RUN, *root, *normalised])
    assert "was trained with a transform" in fails("export", *root)
    (checkpoint,) = Path().rglob("last.ckpt")
    assert "was trained with a transform" in fails("export", "--ckpt_path", str(checkpoint))
    main(["fit", *RUN, "--trainer.default_root_dir", "padded"], data_class=Padded)
    assert "a transform" in fails("export", "--trainer.default_root_dir", "padded", data_class=Padded)
    main(["fit", *RUN])
    Path("blocked.pt2").write_text("a file of the user's own")
    for wrong, says in {
        "--format tflite": "--format cannot be tflite: it must be 'onnx', 'pt2' or null",
        "--format pt2 --out a.onnx": "contradicts --out 'a.onnx'",
        "--out .": "'.' is there already",
        "--out blocked.pt2": "'blocked.pt2' is there already: move it away",
        "--format pt2 --out blocked.pt2/model.pt2": "blocked.pt2",
        "--ckpt_path missing.ckpt": "no checkpoint at 'missing.ckpt'",
        "--model.hidden_size 8": "--model.hidden_size",
        "--trainer.max_epochs 3": "max_epochs",
        "--data.data_dir elsewhere": "elsewhere",
    }.items():
        assert says in fails("export", *wrong.split(" ")), wrong
    assert "does not fit" in fails("export", model_class=Inverted)
    for _ in range(2):
        main(["export", "--format", "pt2"])  # replaces the run's own export


def test_a_package_that_is_missing_or_too_old_is_one_line(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(network: nn.Module, args: Any, f: Any = None) -> None:
        raise AssertionError

    main(["fit", *RUN])
    if HAS_ONNX:
        with monkeypatch.context() as patch:
            if not TOO_OLD:
                patch.setattr(torch.onnx, "export", export)
            assert "pip install --upgrade torch onnxscript" in fails("export")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "type 'pip install onnx onnxscript onnxruntime'" in fails("export")
