"""``export``: a run's network for other programs."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile
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
from mnist_lightning.results.export import is_export

RUN = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "16"]
MODELS = {kind: Path("lightning_logs/version_0") / f"model.{kind}" for kind in ("onnx", "pt2")}
HAS_ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))

pytestmark = [pytest.mark.filterwarnings("ignore")]  # remarks of torch, Lightning and onnx about each other
TOO_OLD = torch.__version__.startswith("2.6.")  # onnxscript for torch 2.6 is too old for today's protobuf
needs_onnx = pytest.mark.skipif(TOO_OLD or not HAS_ONNX, reason="needs the extra [onnx] and a torch for it")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predictions() -> np.ndarray:
    """The probabilities that ``predict`` writes for the test images, ``(10000, 10)``."""
    main(["predict"])
    return np.loadtxt("lightning_logs/version_0/predictions.csv", delimiter=",", skiprows=1)[:, 2:]


@needs_onnx
def test_onnx_gives_the_probabilities_of_predict_for_any_number_of_pixels(
    mnist: Callable[[str], tuple[np.ndarray, np.ndarray]], capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    main(["fit", *RUN])
    main(["export"])
    assert "Checked  10,000 test images" in capsys.readouterr().out
    pixels = mnist("t10k")[0].reshape(-1, 1, 28, 28).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(MODELS["onnx"], providers=["CPUExecutionProvider"])
    expected = predictions()
    for number in (1, 7, 10_000):
        (probabilities,) = session.run(["probabilities"], {"pixels": pixels[:number]})
        np.testing.assert_allclose(probabilities, expected[:number], rtol=0, atol=1e-5)
    model = onnx.load(MODELS["onnx"])
    facts = {fact.key: fact.value for fact in model.metadata_props}
    assert facts["mnist_lightning"] == __version__
    assert Path(facts["source"]) == Path("lightning_logs/version_0/checkpoints/last.ckpt").resolve()
    assert json.loads(facts["classes"]) == list("0123456789")
    assert "(N, 1, 28, 28)" in facts["input"]
    assert [path.name for path in MODELS["onnx"].parent.glob("*onnx*")] == ["model.onnx"]  # all in one file


def test_pt2_gives_the_probabilities_of_predict_and_takes_no_images_along(
    mnist: Callable[[str], tuple[np.ndarray, np.ndarray]],
) -> None:
    main(["fit", *RUN])
    main(["export", "--format", "pt2"])
    pixels = torch.from_numpy(mnist("t10k")[0].reshape(-1, 1, 28, 28)).float() / 255
    extra = {"mnist_lightning.json": ""}
    program = torch.export.load(MODELS["pt2"], extra_files=extra).module()
    expected = torch.from_numpy(predictions()).float()
    for number in (1, 7, 10_000):
        torch.testing.assert_close(program(pixels[:number]), expected[:number], rtol=0, atol=1e-5)
    assert json.loads(extra["mnist_lightning.json"])["mnist_lightning"] == __version__
    assert MODELS["pt2"].stat().st_size < 200_000  # 13 thousand weights


class Inverted(MNISTClassifier):
    """Sees black on white, has a layer of another kind, and multiplies by oneDNN."""

    def __init__(self, hidden_size: int = 512) -> None:
        super().__init__(hidden_size)
        self.network.insert(3, nn.LayerNorm(hidden_size))
        prefer_onednn(self)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(1 - images)


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=needs_onnx), "pt2"])
def test_a_subclass_of_ones_own_exports_whatever_it_computes(kind: str) -> None:
    main(["fit", *RUN[:4], "--model.hidden_size", "128"], model_class=Inverted)
    main(["export", "--out", f"mine.{kind}"], model_class=Inverted)
    assert is_export(Path(f"mine.{kind}"))


class Cooler(MNISTClassifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) / 5).softmax(1)


class Scaled(MNISTClassifier):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].mul_(2).sub_(1), batch[1]


class ScaledData(MNISTDataModule):
    on_after_batch_transfer = Scaled.on_after_batch_transfer


@pytest.mark.parametrize(
    "classes", [{"model_class": Cooler}, {"model_class": Scaled}, {"data_class": ScaledData}], ids=str
)
def test_a_class_whose_predictions_are_not_those_of_forward_is_refused(fails: Callable[..., str], classes: Any) -> None:
    main(["fit", *RUN], **classes)
    for command in (["export", "--format", "pt2"], ["draw", "--no_open"]):
        assert "batch hook of" in fails(*command, **classes)


class Noisy(MNISTClassifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.1 * torch.rand_like(images))


class Counts(MNISTClassifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * len(images.cpu().unique().tolist())


@pytest.mark.parametrize(
    ("model_class", "says"),
    [(Noisy, "or a random number, gives other probabilities"), (Counts, "Counts cannot be exported as pt2 (")],
)
def test_a_network_whose_export_says_something_else_or_that_has_none_is_refused(
    fails: Callable[..., str], model_class: type[MNISTClassifier], says: str
) -> None:
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
    for wrong, says in {
        "--format tflite": "--format cannot be tflite: it must be 'onnx', 'pt2' or null",
        "--format pt2 --out a.onnx": "contradicts --out 'a.onnx'",
        "--out .": "'.' names a folder",
        "--out models/": "'models/' names a folder",
        "--out models/..": "'models/..' names a folder",
        "--out a\0b": "--out must be the path of a file",
        "--ckpt_path missing.ckpt": "no checkpoint at 'missing.ckpt'",
        f"--ckpt_path {'x' * 300}": "too long",
        "--model.hidden_size 8": "contradicts the checkpoint's 16",
        "--trainer.max_epochs 3": "max_epochs",
        "--data.data_dir elsewhere": "elsewhere",
    }.items():
        assert says in fails("export", *wrong.split(" ")), wrong
    assert "is the checkpoint of another network" in fails("export", model_class=Inverted)
    blocked = Path("blocked")
    blocked.write_text("a file")
    assert "--out must be" in fails("export", "--format", "pt2", "--out", "blocked/model.pt2")


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow]), "pt2"])
def test_only_an_export_is_replaced(fails: Callable[..., str], kind: str) -> None:
    main(["fit", *RUN])
    stranger = io.BytesIO()
    with zipfile.ZipFile(stranger, "w") as file:
        file.writestr("archive/version", "mnist_lightning.json")
        file.writestr("project/mnist_lightning.json", '{"mnist_lightning": "a file of my own"}')
    link = Path("link")
    link.symlink_to("nowhere")
    assert "is no file that export has written" in fails("export", "--format", kind, "--out", str(link))
    for content in (b"", b"mnist_lightning 0.1.0", stranger.getvalue()):
        MODELS[kind].write_bytes(content)
        assert "is no file that export has written" in fails("export", "--format", kind)
    MODELS[kind].unlink()
    for _ in range(2):
        main(["export", "--format", kind])
    assert is_export(MODELS[kind])


def test_what_is_missing_for_onnx_is_one_line(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    main(["fit", *RUN])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "type 'pip install onnx onnxscript onnxruntime'" in fails("export")


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra [onnx]")
def test_a_torch_that_does_not_know_the_exporter_is_one_line(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(network: nn.Module, args: Any, f: Any = None) -> None:
        raise AssertionError

    main(["fit", *RUN])
    if not TOO_OLD:
        monkeypatch.setattr(torch.onnx, "export", export)
    assert "pip install --upgrade torch onnxscript" in fails("export")


@pytest.mark.slow
def test_a_training_does_not_import_what_only_an_export_needs() -> None:
    code = f"""
import sys
from mnist_lightning.cli import main
main(["fit", *{RUN}])
assert not {{"onnx", "onnxscript", "onnxruntime"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
