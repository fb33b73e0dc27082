"""Whatever a checkpoint holds, it is data: nothing of it runs or is imported, on every way in."""

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError, shown
from mnist_lightning.runs import Run
from mnist_lightning.safe_checkpoints import load_checkpoint, safe_hyper_parameters

ODD = "there/odd.ckpt"
FROM = ["--ckpt_path", ODD]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "8"]
COMMANDS = ("fit", "validate", "test", "predict")


class Activated(MNISTClassifier):
    """A user's own network, whose parameters could name code."""

    def __init__(self, activation: Callable = torch.relu, head: nn.Module | None = None, width: Any = 8, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation, self.head, self.width = activation, head, width


class Read(MNISTDataModule):
    """Data of a user's own, with such a parameter."""

    def __init__(self, reader: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a second."""
    root = tmp_path_factory.mktemp("run")
    main(["fit", *QUICK, "--data.val_size", "100", "--trainer.default_root_dir", str(root)])
    return root / "lightning_logs" / "version_0"


@pytest.fixture(autouse=True)
def real(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The run's checkpoint; the working directory is another one, with a folder for an odd checkpoint."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    Path("there").mkdir()
    return load_checkpoint(run / "checkpoints" / "last.ckpt")


class Payload:
    """Code in a checkpoint: unpickled with full pickle, it leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("the payload ran",)


@pytest.fixture
def _hostile(real: dict[str, Any]) -> Iterator[None]:
    """A checkpoint that would train on, with a payload in it."""
    torch.save({**real, "more": Payload()}, ODD)
    yield
    assert not Path("the payload ran").exists()
    torch.load(ODD if Path(ODD).exists() else LAST, weights_only=False)
    assert Path("the payload ran").exists()  # where it is unpickled


@pytest.mark.usefixtures("_hostile")
def test_no_command_runs_what_is_in_a_checkpoint(server: str, fails: Callable[..., str]) -> None:
    for command in COMMANDS:
        assert "could be code that runs" in fails(command, *FROM)
        assert "no checkpoint at" in fails(command, "--ckpt_path", f"{server}/{ODD}")
    LAST.parent.mkdir(parents=True)
    Path("lightning_logs/version_0/config.yaml").write_text("")
    Path(ODD).rename(LAST)
    for command in COMMANDS:
        assert "could be code that runs" in fails(command, "--ckpt_path", "last")


@pytest.mark.usefixtures("_hostile")
@pytest.mark.parametrize("cls", [MNISTClassifier, MNISTDataModule])
def test_load_from_checkpoint_and_run_run_nothing(server: str, cls: Any) -> None:
    for path, more in product((Path(ODD), ODD, f"{server}/{ODD}"), ({}, {"weights_only": False})):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            cls.load_from_checkpoint(path, **more)
    with pytest.raises(InputError, match="could be code that runs"):
        Run.open(ODD)


@pytest.mark.usefixtures("_hostile")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("what", ["fit", "test", "predict"])
def test_a_trainer_runs_nothing(what: str, trainer: Callable[..., Any]) -> None:
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        getattr(trainer(), what)(MNISTClassifier(hidden_size=8), datamodule=MNISTDataModule(), ckpt_path=ODD)


def test_a_good_one_is_loaded_from_a_path_an_address_and_a_file(real: dict[str, Any], server: str) -> None:
    torch.save(real, ODD)
    with Path(ODD).open("rb") as file:
        for path in (ODD, f"{server}/{ODD}", file):
            model = Activated.load_from_checkpoint(path, dropout=0.25)
            assert (model.hparams["hidden_size"], model.hparams["dropout"]) == (8, 0.25)
            assert torch.equal(model.network[1].weight, real["state_dict"]["network.1.weight"])
    assert MNISTDataModule.load_from_checkpoint(ODD).val_size == 100
    Path("hparams.yaml").write_text("hidden_size: 8\nloss: keras\n")
    assert MNISTClassifier.load_from_checkpoint(ODD, hparams_file="hparams.yaml").hparams["loss"] == "keras"


CODE = {"class_path": "evil.Evil"}
PARTS = ("hyper_parameters", "datamodule_hyper_parameters")


@pytest.fixture
def _evil(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the working directory, which nobody may import."""
    Path("evil.py").write_text("class Evil: pass\ndef f(*args, **kwargs): return args\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    yield
    assert "evil" not in sys.modules


@pytest.mark.parametrize("value", ["evil.f", CODE, [CODE], "{class_path: evil.Evil}"], ids=str)
@pytest.mark.parametrize("name", ["reader", "activation", "head", "width"])
@pytest.mark.usefixtures("_evil")
def test_no_command_takes_a_hyper_parameter_that_could_name_code(
    real: dict[str, Any], name: str, value: Any, fails: Callable[..., str]
) -> None:
    of_data = name == "reader"
    real[PARTS[of_data]] |= {name: value}
    torch.save(real, ODD)
    for command in COMMANDS:
        said = fails(command, *FROM, model_class=Activated, data_class=Read)
        assert f"the checkpoint's {name} is {shown(value)}, which could name code" in said
    cls: type = Read if of_data else Activated
    with pytest.raises(InputError, match="could name code"):
        Run.open(ODD).hyper_parameters(cls)
    assert name not in Run.open(ODD).hyper_parameters(cls, given=[name])


@pytest.mark.parametrize("instantiator", ["lightning.pytorch.cli.instantiate_module", "evil.f"])
@pytest.mark.parametrize("more", [{}, {"_class_path": "evil.Evil"}, {"evil": CODE, 5: CODE}], ids=str)
@pytest.mark.usefixtures("_evil")
def test_what_a_checkpoint_wants_to_be_made_by_is_left_out(
    real: dict[str, Any], instantiator: str, more: dict[Any, Any]
) -> None:
    kept = {part: dict(real[part]) for part in PARTS}
    theirs = {"_instantiator": instantiator, **more}
    for part in PARTS:
        real[part] |= theirs
    torch.save({**real, "hparams": theirs, "hparams_name": "loss", "hparams_type": torch.float16}, "lightning.ckpt")
    torch.save(real, ODD)
    for cls in (MNISTClassifier, MNISTDataModule):
        for made in (cls.load_from_checkpoint(ODD), Run.open(ODD).load(cls)):
            assert dict(made.hparams) == kept[cls.CHECKPOINT_HYPER_PARAMS_KEY]
    with pytest.raises(TypeError, match=r"torch\.dtype"):  # Lightning's own
        MNISTClassifier.load_from_checkpoint("lightning.ckpt")
    main(["predict", *FROM])


def test_what_is_never_taken_from_a_checkpoint_has_its_default(real: dict[str, Any]) -> None:
    real["datamodule_hyper_parameters"] |= {"download": True, "data_dir": "there"}
    torch.save(real, ODD)
    assert MNISTDataModule.load_from_checkpoint(ODD).download is False
    assert MNISTDataModule.load_from_checkpoint(ODD, download=True).download is True
    assert "download" not in Run.open(ODD).hyper_parameters(MNISTDataModule)


def test_numbers_and_text_for_text_are_taken() -> None:
    class Own:
        def __init__(self, loss: Literal["a", "b"] = "a", name: str | None = None, how: Any = None, size: int = 0):
            pass

    saved = {"loss": "b", "name": "x", "how": [1, 0.5], "size": 3, "other": CODE}
    assert safe_hyper_parameters(Own, saved) == {"loss": "b", "name": "x", "how": [1, 0.5], "size": 3}
    with pytest.raises(InputError, match="how is 'x', which could name code: give how of Own"):
        safe_hyper_parameters(Own, {"how": "x"})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cut short"),
        (b"no checkpoint", "cut short"),
        ({"weights": torch.ones(3)}, 'torch.save({"state_dict": model.state_dict()}, path)'),
        ([1, 2], "is no Lightning checkpoint"),
    ],
    ids=["empty", "text", "bare weights", "list"],
)
def test_a_foreign_file_is_one_line(content: Any, says: str, fails: Callable[..., str]) -> None:
    torch.save(content, ODD)
    if isinstance(content, bytes):
        Path(ODD).write_bytes(content)
    for command in ("fit", "test"):
        assert says in fails(command, *FROM)


def test_weights_alone_are_evaluated(run: Path, real: dict[str, Any], fails: Callable[..., str]) -> None:
    torch.save({"state_dict": real["state_dict"]}, ODD)
    main(["test", *FROM, "--model.hidden_size", "8"])
    assert Path("there/test.json").read_text() == (run / "test.json").read_text()
    assert "holds weights only" in fails("fit", *FROM, "--model.hidden_size", "8")
