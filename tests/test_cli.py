"""The command line: what a person types, and what they get."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_lightning import __version__
from mnist_lightning.cli import COMMANDS, main

# A run of a second: 20 batches an epoch of a small network.
QUICK = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "20", "--model.hidden_size", "16"]

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.cuda.*", "ignore:.*does not have many workers")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The message of a command that must end with one line on stderr and exit code 2, and make nothing."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(args)
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured
    assert captured.err.startswith("mnist_lightning: error: ")
    assert captured.err.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before
    return captured.err


def run_folder(number: int = 0) -> Path:
    return Path("lightning_logs") / f"version_{number}"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ the process


def test_output_that_nobody_reads_is_not_said() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        command = [sys.executable, "-m", "mnist_lightning", "--version"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=env)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert done.stderr == ""


# ------------------------------------------------------------------ without torch


@pytest.mark.parametrize("args", [["--help"], ["-h"], []])
def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    main(args)
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"mnist-lightning {__version__}\n"


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'fit'?" in fails(capsys, "fti")


def test_answers_that_need_no_torch_do_not_import_it() -> None:
    code = "import sys; from mnist_lightning.cli import main; main(['--version']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------- runs


def test_fit_says_what_it_does_and_keeps_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    captured = capsys.readouterr()
    assert captured.err == ""
    words = captured.out.split()
    for word in ("60,000", "10,000", "CPU,", "12,730", "train_loss", "train_acc", "test_loss", "test_acc"):
        assert word in words
    assert [line.split()[:2] for line in captured.out.splitlines() if line.startswith("Epoch")] == [
        ["Epoch", "1/2"],
        ["Epoch", "2/2"],
    ]
    assert "--ckpt_path last" in captured.out
    assert {path.name for path in Path.cwd().iterdir()} == {"lightning_logs"}
    names = {"config.yaml", "hparams.yaml", "metrics.csv", "checkpoints", "test.json", "curves.png"}
    assert {path.name for path in run_folder().iterdir()} >= names
    assert [path.name for path in (run_folder() / "checkpoints").iterdir()] == ["last.ckpt"]
    first, second, test = rows(run_folder())
    assert (first["epoch"], second["epoch"]) == ("0", "1")
    assert float(second["train_loss"]) < float(first["train_loss"])
    assert float(test["test_acc"]) == json.loads((run_folder() / "test.json").read_text())["test_acc"]
    assert yaml.safe_load((run_folder() / "hparams.yaml").read_text())["hidden_size"] == 16


def test_fit_says_what_is_unlike_the_tutorial(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    transform = ["torchvision.transforms.v2.RandomAffine", "--data.train_transform.degrees", "10"]
    main(["fit", *QUICK, "--data.train_size", "1000", "--model.dropout", "0.5", "--data.train_transform", *transform])
    lines = capsys.readouterr().out.splitlines()
    images = "1,000 training images (transformed by RandomAffine), 10,000 test images"
    assert lines[0] == f"Data     MNIST in the package: {images}"
    assert lines[2] == "Network  784 -> 16 ReLU, dropout 0.5 -> 10, 12,730 parameters"
    main(["fit", *QUICK])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Data     MNIST in the package: 60,000 training images, 10,000 test images"
    assert lines[2] == "Network  784 -> 16 ReLU -> 10, 12,730 parameters"


def test_a_transform_may_be_a_plain_function_and_may_take_a_number_or_a_list(monkeypatch: Any) -> None:
    Path("mine.py").write_text("def darker(images):\n    return images / 2\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    main(["fit", *QUICK, "--data.train_transform", "mine.darker"])
    assert yaml.safe_load((run_folder() / "config.yaml").read_text())["data"]["train_transform"] == "mine.darker"
    main(["fit", "--config", str(run_folder() / "config.yaml")])
    assert rows(run_folder(0)) == rows(run_folder(1))
    rotation = ["--data.train_transform", "torchvision.transforms.v2.RandomRotation", "--data.train_transform.degrees"]
    main(["fit", *QUICK, *rotation, "7.5"])
    main(["fit", *QUICK, *rotation, "[-7.5, 7.5]"])
    assert rows(run_folder(2)) == rows(run_folder(3)) != rows(run_folder(1))


def test_every_flag_against_overfitting_changes_the_run() -> None:
    main(["fit", *QUICK])
    transform = "--data.train_transform torchvision.transforms.v2.RandomRotation --data.train_transform.degrees 5"
    for number, flags in enumerate(
        ["--model.dropout 0.2", "--model.weight_decay 0.01", "--data.train_size 2000", transform], 1
    ):
        main(["fit", *QUICK, *flags.split()])
        assert rows(run_folder(number))[0] != rows(run_folder())[0], flags


def test_the_same_command_gives_the_same_numbers_and_another_seed_others() -> None:
    for seed in ("0", "0", "1"):
        main(["fit", *QUICK, "--seed_everything", seed])
    first, again, other = (rows(run_folder(number)) for number in range(3))
    assert first == again
    assert first[0]["train_loss"] != other[0]["train_loss"]


def test_seed_everything_also_sets_the_datas_seed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--seed_everything", "7", "--print_config"])
    config = capsys.readouterr().out
    assert (yaml.safe_load(config)["seed_everything"], yaml.safe_load(config)["data"]["seed"]) == (7, 7)
    Path("config.yaml").write_text(config)
    main(["fit", "--config", "config.yaml", *QUICK, "--data.seed", "3"])
    assert yaml.safe_load((run_folder() / "config.yaml").read_text())["data"]["seed"] == 3


def test_a_printed_config_can_be_given_back() -> None:
    main(["fit", *QUICK, "--data.val_size", "500", "--optimizer", "Adam", "--optimizer.lr", "0.01"])
    main(["fit", "--config", str(run_folder() / "config.yaml")])
    assert rows(run_folder(0)) == rows(run_folder(1))


def test_evaluation_starts_from_the_runs_own_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK, "--data.val_size", "500"])
    fitted = rows(run_folder())
    capsys.readouterr()
    main(["validate"])
    assert str(run_folder() / "checkpoints" / "last.ckpt") in capsys.readouterr().out.replace("\n         ", "")
    assert json.loads((run_folder() / "validate.json").read_text())["val_loss"] == pytest.approx(
        float(fitted[1]["val_loss"]), abs=1e-6
    )
    tested = (run_folder() / "test.json").read_text()
    main(["test", "--data.batch_size", "1000"])
    assert json.loads((run_folder() / "test.json").read_text()) == pytest.approx(json.loads(tested), abs=1e-6)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert "hidden_size 32 contradicts the checkpoint's 16" in fails(capsys, "test", "--model.hidden_size", "32")
    assert "val_size 7 contradicts the checkpoint's 500" in fails(capsys, "validate", "--data.val_size", "7")


def test_every_test_leaves_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    capsys.readouterr()
    main(["test"])
    assert "digit  images  precision" in capsys.readouterr().out
    report = json.loads((run_folder() / "report.json").read_text())
    assert report["accuracy"] == pytest.approx(json.loads((run_folder() / "test.json").read_text())["test_acc"])
    pictures = {"confusion_matrix.png", "mistakes.png", "first_layer.png"}
    assert {path.name for path in run_folder().iterdir()} >= pictures


def test_inspect_shows_the_data_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "--data.val_size", "10000", "--out", "pictures"])
    printed = capsys.readouterr().out
    for shape in ("(50000, 28, 28)", "(10000, 28, 28)"):
        assert shape in printed
    assert {path.name for path in Path("pictures").iterdir()} == {"samples.png", "class_counts.png", "mean_images.png"}
    assert [path.name for path in Path.cwd().iterdir()] == ["pictures"]


def test_inspect_shows_the_images_that_are_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    for train_size, pixels in ((1_000, "0 ... 255"), (1, "0 ... ")):
        main(["inspect", "--data.train_size", str(train_size), "--data.val_size", "10000"])
        printed = " ".join(capsys.readouterr().out.split())
        assert f"train_images ({train_size}, 28, 28) uint8 {pixels}" in printed
        assert f"all {train_size:,} 100.0% 10,000 100.0% 10,000 100.0%" in printed


def test_predict_writes_one_row_per_image_in_order() -> None:
    main(["fit", *QUICK])
    main(["predict"])
    with (run_folder() / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert [int(row["index"]) for row in predictions] == list(range(10_000))
    probabilities = [[float(row[f"p{digit}"]) for digit in range(10)] for row in predictions]
    assert all(abs(sum(row) - 1) < 1e-5 for row in probabilities)
    assert [int(row["prediction"]) for row in predictions] == [row.index(max(row)) for row in probabilities]
    from mnist_lightning.data import PACKAGED, load_mnist

    targets = load_mnist(PACKAGED, train=False)[1].tolist()
    right = sum(int(row["prediction"]) == target for row, target in zip(predictions, targets, strict=True))
    assert right / 10_000 == pytest.approx(float(rows(run_folder())[-1]["test_acc"]), abs=1e-6)


def test_commands_take_the_newest_run_that_has_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    main(["fit", *QUICK, "--model.hidden_size", "8"])
    main(["fit", *QUICK, "--trainer.enable_checkpointing", "false"])
    capsys.readouterr()
    main(["test"])
    assert "version_1" in capsys.readouterr().out
    main(["test", "--ckpt_path", str(run_folder() / "checkpoints" / "last.ckpt")])
    assert "version_0" in capsys.readouterr().out


def test_runs_go_where_default_root_dir_says() -> None:
    main(["fit", *QUICK, "--trainer.default_root_dir", "elsewhere"])
    main(["test", "--trainer.default_root_dir", "elsewhere"])
    assert [path.name for path in Path.cwd().iterdir()] == ["elsewhere"]


@pytest.mark.slow
def test_two_commands_started_at_once_never_share_a_run() -> None:
    code = "import sys; from mnist_lightning.cli import main; main(sys.argv[1:])"
    started = [subprocess.Popen([sys.executable, "-c", code, "fit", *QUICK]) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0", "version_1"]
    assert rows(run_folder(0)) == rows(run_folder(1))


# -------------------------------------------------- defaults that give way


def test_defaults_give_way_to_the_users_flags(capsys: pytest.CaptureFixture[str]) -> None:
    off = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
    main(["fit", *QUICK, *off])
    assert "Epoch" not in capsys.readouterr().out
    assert {path.name for path in run_folder().iterdir()} >= {"config.yaml", "hparams.yaml", "test.json"}
    assert not (run_folder() / "metrics.csv").exists()
    assert not (run_folder() / "checkpoints").exists()


def test_defaults_give_way_to_callbacks_and_loggers_of_the_same_kind() -> None:
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"]
    checkpoint = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename={epoch}"]
    bar = ["--trainer.callbacks+=TQDMProgressBar", "--trainer.callbacks.refresh_rate=50"]
    main(["fit", *QUICK, *logger, *checkpoint, *bar])
    assert (Path("csv") / "lightning_logs" / "version_0" / "metrics.csv").exists()
    assert [path.name for path in (run_folder() / "checkpoints").iterdir()] == ["epoch=1.ckpt"]
    assert {path.name for path in run_folder().iterdir()} >= {"config.yaml", "hparams.yaml", "metrics.csv"}
    main(["test"])


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("fit --trainer.accelerator gpu", "gpu"),
        ("fit --trainer.accelerator abacus", "abacus"),
        ("fit --trainer.devices 500", "500 processes"),
        ("fit --bogus 3", "--bogus"),
        ("fit --model.bogus 3", "bogus"),
        ("fit --model.hidden_size x", "hidden_size"),
        ("fit --model.hidden_size 0", "hidden_size must be a whole number from 1"),
        ("fit --model.learning_rate nan", "learning_rate cannot be nan: it must be float"),
        ("fit --model.learning_rate 0", "learning_rate must be a finite number above 0"),
        ("fit --model.loss mse", "loss"),
        ("fit --data.batch_size 0", "batch_size must be a whole number from 1"),
        ("fit --data.val_size 60000", "left to train on"),
        ("fit --data.val_size 1.0", "left to train on"),
        ("fit --data.val_size -1", "val_size must be"),
        ("fit --data.data_dir nowhere", "no MNIST in 'nowhere'"),
        ("fit --model.dropout 1", "dropout must be a number from 0 to below 1, got 1.0"),
        ("fit --model.weight_decay -1", "weight_decay must be a finite number, 0 or above, got -1.0"),
        ("fit --data.train_size 0", "whole number from 1 to 60,000, the images that val_size leaves, got 0"),
        ("fit --data.train_size 1 --data.val_size 60000", "left to train on"),
        ("fit --data.train_size 2 --data.val_size 59999", "from 1 to 1, the images that val_size leaves, got 2"),
        ("fit --data.train_size 0.5", "train_size cannot be 0.5: it must be"),
        ("fit --data.train_transform x", "train_transform cannot be x: it must be"),
        ("fit --data.train_transform nowhere.shift", "train_transform: No module named 'nowhere'"),
        ("fit --data.train_transform torch.nothing", "train_transform: module 'torch' has no attribute 'nothing'"),
        ("fit --data.train_transform torch.nn.Dropout --data.train_transform.q 1", "'q' is not"),
        ("fit --data.train_transform torch.nn.Dropout --data.train_transform.p x", "Expected a <class 'float'>"),
        ("fit --data.train_transform torch.nn.Dropout --data.train_transform.p 2", "between 0 and 1, but got 2"),
        ("fit --data.train_transform torch.nn.Flatten", "shape (1, 1, 28, 28), as it was given, got torch.float32 of"),
        ("fit --data.train_transform torch.numel", "as it was given, got int"),
        ("fit --seed_everything -1", "seed_everything must be"),
        ("fit --trainer.max_epochs -3", "max_epochs"),
        ("fit --trainer.max_epochs many", "max_epochs"),
        ("fit --trainer.precision 7", "precision"),
        ("fit --config nowhere.yaml", "nowhere.yaml"),
        ("fit --config broken.yaml", "broken.yaml"),
        ("fit --config unknown.yaml", "hiden_size"),
        ("fit --ckpt_path last", "no fit run"),
        ("fit --ckpt_path nowhere.ckpt", "no checkpoint at 'nowhere.ckpt'"),
        ("fit --ckpt_path http://127.0.0.1:9/x.ckpt", "no checkpoint at"),
        ("test", "no fit run with a checkpoint"),
        ("validate", "no fit run with a checkpoint"),
        ("predict", "no fit run with a checkpoint"),
        ("test --ckpt_path cut.ckpt", "is no checkpoint, or was cut short"),
        ("test --ckpt_path broken.yaml", "is no checkpoint"),
        ("test --weights_only false", "weights_only"),
        ("fit --trainer.num_nodes 2", "num_nodes"),
        ("inspect --data.val_size x", "val_size"),
        ("inspect --data.train_transform torch.sqrt", "train_transform"),
        ("inspect --data.data_dir nowhere", "no MNIST in 'nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], args: str, says: str) -> None:
    Path("broken.yaml").write_text("model: [hidden_size: 3\n")
    Path("unknown.yaml").write_text("model:\n  hiden_size: 3\n")
    Path("cut.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    assert says in fails(capsys, *args.split())


def test_a_checkpoint_of_another_network_or_cut_short_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    main(["fit", *QUICK])
    checkpoint = run_folder() / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    capsys.readouterr()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        Path("cut.ckpt").write_bytes(whole[:length])
        for command in ("test", "fit"):
            assert "'cut.ckpt' is no checkpoint, or was cut short" in fails(capsys, command, "--ckpt_path", "cut.ckpt")
    other = torch.load(checkpoint, weights_only=True)
    other["state_dict"] = {"layer.weight": torch.zeros(3)}
    torch.save(other, "other.ckpt")
    assert "checkpoint of another network" in fails(capsys, "test", "--ckpt_path", "other.ckpt")
    torch.save({"weights": 3}, "other.ckpt")
    assert "no Lightning checkpoint" in fails(capsys, "test", "--ckpt_path", "other.ckpt")


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_network_that_has_diverged_is_not_evaluated(capsys: pytest.CaptureFixture[str], command: str) -> None:
    import torch

    main(["fit", *QUICK, "--data.val_size", "1000"])
    checkpoint = torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.3.bias"][7] = torch.nan
    Path("bad").mkdir()
    torch.save(checkpoint, "bad/bad.ckpt")
    capsys.readouterr()
    number = "1,000 of 1,000" if command == "validate" else "10,000 of 10,000"
    assert f"infinite or NaN for {number} images" in fails(capsys, command, "--ckpt_path", "bad/bad.ckpt")


def test_validate_without_a_validation_split_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    capsys.readouterr()
    assert "without a validation split" in fails(capsys, "validate")


@pytest.mark.slow
def test_an_unforeseen_exception_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Broken(Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        raise ZeroDivisionError('a bug')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mnist_lightning", "fit", *QUICK, "--trainer.callbacks", "broken.Broken"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


@pytest.mark.slow
def test_output_survives_a_windows_code_page() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252:strict", "COLUMNS": "60", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mnist_lightning", "fit", *QUICK], capture_output=True, env=environment, check=True
    )
    printed = done.stdout.decode("cp1252")
    assert printed.isascii()
    assert "\r" not in printed.replace("\r\n", "\n")
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) < 60
    assert done.stderr == b""
