"""Whatever a checkpoint holds, it is data: nothing of it is imported, and what is odd is said in one line."""

import copy
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import load_checkpoint

ODD = "there/odd.ckpt"
FROM = ["--ckpt_path", ODD]
QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a second."""
    root = tmp_path_factory.mktemp("run")
    main(["fit", *QUICK, "--trainer.default_root_dir", str(root)])
    return root / "lightning_logs" / "version_0"


@pytest.fixture(autouse=True)
def real(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The run's checkpoint; the working directory is another one, with a folder for an odd checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    return load_checkpoint(run / "checkpoints" / "last.ckpt")


def refused(capsys: pytest.CaptureFixture[str], *args: str, **kwargs: Any) -> str:
    """The one line of a command that cannot use its input, and makes nothing."""
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    with pytest.raises(SystemExit) as stop:
        main([*args], **kwargs)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("mnist_lightning: error: ")
    assert said.count("\n") == 1
    assert said[:-1].isprintable()
    assert len(said) < 1000
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    return said


# ------------------------------------------------------------------- hyper-parameters

CODE = {"class_path": "evil.Evil"}
INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}


class Activated(MNISTClassifier):
    """A user's own network, whose parameters could name code."""

    def __init__(self, activation: Callable = torch.relu, head: nn.Module | None = None, width: Any = 8, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation, self.head, self.width = activation, head, width


@pytest.fixture
def _evil() -> Iterator[None]:
    """A module in the working directory, which nobody may import."""
    Path("evil.py").write_text("class Evil: pass\ndef f(images): return images\n")
    with mock.patch.object(sys, "path", ["", *sys.path]):
        yield
    assert "evil" not in sys.modules


@pytest.mark.parametrize("value", ["evil.f", CODE, [CODE], "{class_path: evil.Evil}"], ids=str)
@pytest.mark.parametrize("name", ["train_transform", "transform", "activation", "head", "width"])
@pytest.mark.usefixtures("_evil")
def test_a_hyper_parameter_that_could_name_code_is_not_taken(
    real: dict[str, Any], name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    del real["MNISTDataModule"]  # which says that there was no transform
    real["datamodule_hyper_parameters" if name.endswith("transform") else "hyper_parameters"] |= {name: value}
    for more in ({}, INSTANTIATOR):
        real["hyper_parameters"] |= more
        real["datamodule_hyper_parameters"] |= more
        torch.save(real, ODD)
        for command in ("fit", "validate", "test", "predict"):
            said = refused(capsys, command, *FROM, model_class=Activated)
            assert f"{name} is {shown(value)}, which could name code" in said
        with pytest.raises(InputError, match="could name code"):
            (MNISTDataModule if name.endswith("transform") else Activated).load_from_checkpoint(ODD)


@pytest.mark.usefixtures("_evil")
def test_what_is_no_parameter_of_the_class_is_left_out(real: dict[str, Any]) -> None:
    theirs: dict[Any, Any] = {
        **INSTANTIATOR,
        "_class_path": "evil.Evil",
        "evil": CODE,
        5: CODE,
    }  # as a LightningCLI saves them
    kept = {part: real[part] for part in ("hyper_parameters", "datamodule_hyper_parameters")}
    more = {"hparams": theirs, "hparams_name": "loss", "hparams_type": torch.float16}
    torch.save({**real, **more, **{part: {**values, **theirs} for part, values in kept.items()}}, ODD)
    for cls in (MNISTClassifier, MNISTDataModule):
        assert dict(cls.load_from_checkpoint(ODD).hparams) == kept[cls.CHECKPOINT_HYPER_PARAMS_KEY]
    main(["predict", *FROM])


def test_what_could_name_code_can_be_given(real: dict[str, Any]) -> None:
    real["hyper_parameters"] |= {"activation": "evil.f", "width": 4, "head": None, "dropout": 0.25}
    real["datamodule_hyper_parameters"] |= {"train_transform": "evil.f", "val_size": 100}
    torch.save(real, ODD)
    model = Activated.load_from_checkpoint(ODD, "cpu", activation=torch.tanh, learning_rate=0.125)
    assert model.activation is torch.tanh
    assert model.width == 4
    assert (model.hparams["learning_rate"], model.hparams["dropout"]) == (0.125, 0.25)
    data = MNISTDataModule.load_from_checkpoint(ODD, train_transform=torch.sqrt)
    assert (data.train_transform, data.val_size) == (torch.sqrt, 100)
    given = ["--model.activation", "torch.tanh", "--data.train_transform", "torch.sqrt"]
    main(["test", *FROM, "--trainer.limit_test_batches", "1", *given], Activated)


def test_load_from_checkpoint_reads_what_lightnings_reads(real: dict[str, Any]) -> None:
    torch.save(real, ODD)
    with Path(ODD).open("rb") as file:
        assert MNISTClassifier.load_from_checkpoint(file).hparams["hidden_size"] == 8
    Path("hparams.yaml").write_text("hidden_size: 8\nloss: keras\n")
    assert MNISTClassifier.load_from_checkpoint(ODD, hparams_file="hparams.yaml").hparams["loss"] == "keras"
    with pytest.raises(FileNotFoundError):
        MNISTClassifier.load_from_checkpoint("nowhere.ckpt")
    real["hyper_parameters"]["hidden_size"] = 10**9
    torch.save(real, ODD)
    with pytest.raises(InputError, match="hidden_size must be"):
        MNISTClassifier.load_from_checkpoint(ODD)


# ------------------------------------------------------------------- odd checkpoints


def test_weights_alone_are_evaluated(run: Path, real: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": real["state_dict"]}, ODD)
    for command in ("test", "predict"):
        main([command, *FROM, "--model.hidden_size", "8"])
    assert Path("there/test.json").read_text() == (run / "test.json").read_text()
    main(["predict", "--trainer.default_root_dir", str(run.parents[1])])
    assert Path("there/predictions.csv").read_text() == (run / "predictions.csv").read_text()
    model = MNISTClassifier.load_from_checkpoint(ODD, hidden_size=8)
    assert torch.equal(model.network[1].weight, real["state_dict"]["network.1.weight"])
    assert "holds weights only" in refused(capsys, "fit", *FROM, "--model.hidden_size", "8")


ODD_WEIGHTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "list": lambda weight: weight.tolist(),
    "sparse": lambda weight: weight.to_sparse(),
    "meta": lambda weight: weight.to("meta"),
    "complex": lambda weight: weight.to(torch.complex64),
    "int": lambda weight: weight.to(torch.int64),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "nested": lambda weight: torch.nested.nested_tensor([*weight]),
    "huge": lambda weight: weight[0, 0].expand(10**12),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of what is made here
@pytest.mark.parametrize("kind", ODD_WEIGHTS)
def test_odd_weights_are_refused_in_one_line(
    real: dict[str, Any], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    real["state_dict"]["network.1.weight"] = ODD_WEIGHTS[kind](real["state_dict"]["network.1.weight"])
    torch.save(real, ODD)
    for command in ("fit", "test"):
        refused(capsys, command, *FROM)


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("state_dict", []),
        ("hyper_parameters", []),
        ("datamodule_hyper_parameters", "x"),
        ("callbacks", 5),
        ("callbacks", {"EpochSeed": {"seed": "0"}}),
        ("epoch", -1),
        ("global_step", 0.5),
        ("loops", {"fit_loop": {"epoch_progress": torch.ones(3)}}),
        ("optimizer_states", [{"state": torch.ones(3).to_sparse()}]),
        ("lr_schedulers", {}),
        ("metrics_csv", [{"epoch": 0}]),
        ("pytorch-lightning_version", "\x1b[31m"),
    ],
)
def test_odd_parts_are_refused_in_one_line(
    real: dict[str, Any], command: str, part: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**real, part: value}, ODD)
    refused(capsys, command, *FROM)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (["MNISTDataModule"], 5),
        (["loops", "fit_loop"], {}),
        (["loops", "fit_loop", "epoch_progress", "total", "increment_ready"], 5),
        (["loops", "fit_loop", "epoch_loop.batch_progress", "current", "ready"], -1),
        (["callbacks", "EpochCheckpoint", "best_model_path"], 5),
        (["callbacks", "EpochCheckpoint"], 5),
    ],
    ids=str,
)
def test_a_state_that_is_not_this_runs_is_refused_in_one_line(
    real: dict[str, Any], way: list[str], value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    part = real
    for key in way[:-1]:
        part = part[next(name for name in part if name.startswith(key))]
    part[next((name for name in part if name.startswith(way[-1])), way[-1])] = value
    torch.save(real, ODD)
    refused(capsys, "fit", *FROM, "--trainer.max_epochs", "2")


def test_without_the_states_of_callbacks_the_optimizer_is_compared(
    real: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    del real["callbacks"]
    real["optimizer_states"][0]["param_groups"][0]["alpha"] = 0.5
    torch.save(real, ODD)
    assert "alpha is 0.5" in refused(capsys, "fit", *FROM, "--trainer.max_epochs", "2")


def test_a_checkpoint_of_a_newer_lightning_is_refused_for_what_it_holds_alone(
    real: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    real["pytorch-lightning_version"] = "99.0"
    real["optimizer_states"][0]["param_groups"][0]["alpha"] = 0.5
    torch.save(real, ODD)
    assert "alpha is 0.5" in refused(capsys, "fit", *FROM, "--trainer.max_epochs", "2")


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\nb", "y" * 10_000_000], ids=["escape", "line", "long"])
def test_text_of_a_checkpoint_reaches_the_terminal_harmless(
    real: dict[str, Any], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, value in (
        ("state_dict", {text: torch.ones(1)}),
        ("hyper_parameters", {"loss": text}),
        ("hyper_parameters", {"loss": {text: text}}),
        ("MNISTDataModule", {"train_transform": text}),
    ):
        torch.save({**real, part: value}, ODD)
        refused(capsys, "fit", *FROM)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\tx", "a\nb", ""])
def test_a_metric_whose_name_a_spreadsheet_would_run_is_refused(
    real: dict[str, Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    real["metrics_csv"][0][name] = 0.5
    torch.save(real, ODD)
    assert "metrics_csv" in refused(capsys, "fit", *FROM)


def test_compressed_checkpoints_are_refused_unread(real: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({**real, "more": torch.zeros(25_000_000)}, "large.ckpt")
    with zipfile.ZipFile("large.ckpt") as plain, zipfile.ZipFile(ODD, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert Path(ODD).stat().st_size < 1_000_000
    assert "is compressed" in refused(capsys, "test", *FROM)
    with pytest.raises(InputError, match="is compressed"):
        MNISTClassifier.load_from_checkpoint(ODD)


def test_a_checkpoint_that_holds_a_part_many_times_is_refused_unread(
    real: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(real, ODD)
    with zipfile.ZipFile(ODD, "a") as archive:
        entry = max(archive.filelist, key=lambda entry: entry.file_size)
        for number in range(1000):  # all of them are the same bytes of the file
            archive.filelist.append(copy.copy(entry))
            archive.filelist[-1].filename += str(number)
        archive.comment = b"written anew"
    assert "is compressed" in refused(capsys, "test", *FROM)


def test_what_was_checked_is_what_is_evaluated(run: Path, real: dict[str, Any]) -> None:
    torch.save(real, ODD)

    class Swapped(MNISTClassifier):
        """The file changes while the command runs."""

        def setup(self, stage: str) -> None:
            torch.save({**real, "state_dict": {name: 0 * weight for name, weight in real["state_dict"].items()}}, ODD)

    main(["test", *FROM], Swapped)
    assert Path("there/test.json").read_text() == (run / "test.json").read_text()


def test_bare_weights_are_refused_and_work_when_they_are_wrapped_as_the_message_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = MNISTClassifier()
    torch.save(model.state_dict(), ODD)
    assert 'torch.save({"state_dict": model.state_dict()}, path)' in refused(capsys, "test", *FROM)
    torch.save({"state_dict": model.state_dict()}, ODD)
    main(["test", *FROM])


def test_what_describes_no_transform_is_said_to_be_none(
    real: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for state, what in (
        ({"train_transform": 5}, "train_transform is 5, which describes no function"),
        ([0.5], "state of the data must be a dict, got [0.5]"),
        (None, "state of the data must be a dict, got None"),
    ):
        torch.save({**real, "MNISTDataModule": state}, ODD)
        assert f"the checkpoint's {what}" in refused(capsys, "fit", *FROM, "--trainer.max_epochs", "2")
        if not isinstance(state, dict):
            with pytest.raises(InputError, match="state of the data"):
                MNISTDataModule.load_from_checkpoint(ODD)
