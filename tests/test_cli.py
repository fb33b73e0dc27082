"""The command line: what a person types, and what they get."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mnist_lightning import MNISTClassifier, __version__
from mnist_lightning.cli import COMMANDS, main

# A run of a second: 20 batches an epoch of a small network.
QUICK = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "20", "--model.hidden_size", "16"]

GPU = torch.cuda.is_available() or torch.backends.mps.is_available()

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.cuda.*", "ignore:.*does not have many workers")


def run_folder(number: int = 0) -> Path:
    return Path("lightning_logs") / f"version_{number}"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ the process


@pytest.mark.slow
def test_the_process_ends_after_everything_else(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
import atexit, threading
from lightning.pytorch import Callback

class Late(Callback):
    def on_fit_end(self, trainer, pl_module):
        atexit.register(print, "by atexit")
        threading.Thread(target=lambda: (threading.main_thread().join(), print("by a thread"))).start()
"""
    )
    command = [sys.executable, "-m", "mnist_lightning", "fit", *QUICK, "--trainer.callbacks", "mine.Late"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("by a thread\nby atexit\n")


def run(*args: str, stdout: int = subprocess.PIPE, **environment: str) -> "subprocess.CompletedProcess[str]":
    command, env = [sys.executable, "-m", "mnist_lightning", *args], {**os.environ, **environment}
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=env)


@pytest.mark.slow
@pytest.mark.parametrize("args", [["--version"], ["fit", *QUICK]])
def test_what_nobody_reads_any_more_is_not_said_and_the_command_goes_on(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*args, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert args == ["--version"] or json.loads((run_folder() / "test.json").read_text())["test_acc"] > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("args", [["--version"], pytest.param(["fit", *QUICK], marks=pytest.mark.slow)])
def test_output_that_cannot_be_written_is_one_line_and_nothing_made(args: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(*args, stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr.startswith("mnist_lightning: error: cannot write to the standard output (No space left")
    assert done.stderr.count("\n") == 1
    assert not any(Path.cwd().iterdir())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="as a shell closes it")
def test_a_closed_output_is_no_obstacle() -> None:
    command = [sys.executable, "-m", "mnist_lightning", "fit", *QUICK]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (run_folder() / "curves.png").exists()


@pytest.mark.slow
def test_a_narrow_encoding_and_a_notebooks_backend_are_no_obstacle() -> None:
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = run("fit", *QUICK, "--trainer.default_root_dir", "é", PYTHONIOENCODING="ascii", **backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9/lightning_logs" in done.stdout


# A shell inside a job's allocation, or one from which torchrun was called, may have all of these.
LEFT_OVER = {"RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "JSM_NAMESPACE_RANK": "1"}


@pytest.mark.slow
def test_a_single_process_says_and_writes_all_of_it_whatever_ranks_are_left_over() -> None:
    done = run("fit", *QUICK, "--seed_everything", "true", **LEFT_OVER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Epoch ") == 2
    names = {"checkpoints", "config.yaml", "curves.png", "hparams.yaml", "metrics.csv", "test.json"}
    assert {path.name for path in run_folder().glob("[!.]*")} == names
    assert len(rows(run_folder())) == 3
    # Any seed: 0 is what a process takes whose launcher has not told it.
    assert yaml.safe_load((run_folder() / "config.yaml").read_text())["seed_everything"] != 0
    assert "did you mean 'fit'?" in run("fti", **LEFT_OVER).stderr


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_ctrl_c_while_torch_is_imported_is_no_traceback() -> None:
    Path("lightning").mkdir()
    Path("lightning/__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "mnist_lightning", "fit"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    try:
        assert process.communicate(timeout=120)[1] == ""
    finally:
        process.kill()
    assert process.returncode == 130


@pytest.mark.parametrize("code", [1, 3])
def test_only_ctrl_c_is_ctrl_c(capsys: pytest.CaptureFixture[str], code: int) -> None:
    class Exits(MNISTClassifier):
        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            if self.current_epoch == 1:
                sys.exit(code)

    with pytest.raises(SystemExit) as stop:
        main(["fit", *QUICK], Exits)
    assert stop.value.code == code
    printed = capsys.readouterr().out
    assert f"Stopped  by sys.exit({code})" in printed
    assert "Ctrl-C" not in printed


# ------------------------------------------------------------------ without torch


@pytest.mark.parametrize("args", [["--help"], ["-h"], []])
def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    main(args)
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"mnist-lightning {__version__}\n"


def test_a_mistyped_command_is_guessed(fails: Callable[..., str]) -> None:
    assert "did you mean 'fit'?" in fails("fti")


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("fit", {"--trainer.max_epochs", "--model.hidden_size", "--data.val_size", "--optimizer", "--ckpt_path"}),
        ("inspect", {"--data.val_size", "--out"}),
    ],
)
def test_help_says_how_the_command_is_called(capsys: pytest.CaptureFixture[str], command: str, flags: set[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m mnist_lightning ")
    assert flags <= set(printed.split())


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
    monkeypatch.setenv("COLUMNS", "140")
    transform = ["torchvision.transforms.v2.RandomAffine", "--data.train_transform.degrees", "10"]
    main(["fit", *QUICK, "--data.train_size", "1000", "--model.dropout", "0.5", "--data.train_transform", *transform])
    lines = capsys.readouterr().out.splitlines()
    images = "1,000 training images (transformed by RandomAffine), 10,000 test images"
    assert lines[0] == f"Data     MNIST in the package: {images}"
    assert lines[2] == "Network  784 -> 16 ReLU, dropout 0.5 -> 10, 12,730 parameters"
    main(["fit", *QUICK, "--data.train_size", "1000", *NORMALIZED, "--data.train_transform", *transform])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Data     MNIST in the package, transformed by Normalize: {images}"
    main(["fit", *QUICK])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Data     MNIST in the package: 60,000 training images, 10,000 test images"
    assert lines[2] == "Network  784 -> 16 ReLU -> 10, 12,730 parameters"


NORMALIZE = "torchvision.transforms.v2.Normalize"
NORMALIZED = ["--data.transform", NORMALIZE, "--data.transform.mean", "[0.1307]", "--data.transform.std", "[0.3081]"]


def test_a_run_is_evaluated_on_the_images_that_it_was_trained_on(
    mnist: Callable[[str], tuple[np.ndarray, np.ndarray]],
) -> None:
    main(["fit", *QUICK, "--data.val_size", "100", *NORMALIZED])
    config = yaml.safe_load((run_folder() / "config.yaml").read_text())["data"]["transform"]
    assert (config["class_path"], config["init_args"]["mean"]) == (NORMALIZE, [0.1307])
    at_the_end = json.loads((run_folder() / "test.json").read_text())
    for command in ("test", "validate", "predict"):
        main([command])
    assert json.loads((run_folder() / "test.json").read_text()) == at_the_end
    pixels, digits = mnist("t10k")
    images = (torch.from_numpy(pixels).reshape(-1, 784) / 255 - 0.1307) / 0.3081
    weights = torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    hidden = (images @ weights["network.1.weight"].T + weights["network.1.bias"]).relu()
    logits = hidden @ weights["network.3.weight"].T + weights["network.3.bias"]
    predictions = np.loadtxt(run_folder() / "predictions.csv", delimiter=",", skiprows=1)
    assert predictions[:, 0].tolist() == list(range(10_000))
    assert predictions[:, 1].tolist() == predictions[:, 2:].argmax(1).tolist()
    np.testing.assert_allclose(predictions[:, 2:], logits.softmax(1), atol=1e-5)
    assert at_the_end["test_acc"] == pytest.approx((logits.argmax(1).numpy() == digits).mean(), abs=2e-4)
    held_out = np.random.default_rng(0).permutation(60_000)[:100]
    pixels, digits = mnist("train")
    images = (torch.from_numpy(pixels[held_out]).reshape(-1, 784) / 255 - 0.1307) / 0.3081
    hidden = (images @ weights["network.1.weight"].T + weights["network.1.bias"]).relu()
    logits = hidden @ weights["network.3.weight"].T + weights["network.3.bias"]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(digits[held_out]).long())
    assert json.loads((run_folder() / "validate.json").read_text())["val_loss"] == pytest.approx(float(loss), rel=1e-4)


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


def test_seed_everything_true_draws_a_seed_that_repeats_the_run_and_false_draws_none() -> None:
    for _ in range(2):
        main(["fit", *QUICK, "--seed_everything", "true"])
    seeds = [yaml.safe_load((run_folder(number) / "config.yaml").read_text())["seed_everything"] for number in (0, 1)]
    assert seeds[0] != seeds[1]
    assert rows(run_folder(0)) != rows(run_folder(1))
    main(["fit", *QUICK, "--seed_everything", str(seeds[0])])
    assert rows(run_folder(2)) == rows(run_folder(0))
    for number in (3, 4):
        main(["fit", *QUICK, "--seed_everything", "false"])
        assert yaml.safe_load((run_folder(number) / "config.yaml").read_text())["seed_everything"] is False
    assert rows(run_folder(3)) != rows(run_folder(4))


def test_a_printed_config_can_be_given_back() -> None:
    main(["fit", *QUICK, "--data.val_size", "500", "--optimizer", "Adam", "--optimizer.lr", "0.01"])
    main(["fit", "--config", str(run_folder() / "config.yaml")])
    assert rows(run_folder(0)) == rows(run_folder(1))


def test_evaluation_starts_from_the_runs_own_configuration(
    capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
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
    assert "hidden_size 32 contradicts the checkpoint's 16" in fails("test", "--model.hidden_size", "32")
    assert "val_size 7 contradicts the checkpoint's 500" in fails("validate", "--data.val_size", "7")


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


def test_commands_take_the_newest_run_that_has_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    main(["fit", *QUICK, "--model.hidden_size", "8"])
    main(["fit", *QUICK, "--trainer.enable_checkpointing", "false"])
    capsys.readouterr()
    main(["test"])
    assert "version_1" in capsys.readouterr().out
    main(["test", "--ckpt_path", str(run_folder() / "checkpoints" / "last.ckpt")])
    assert "version_0" in capsys.readouterr().out


def commands(printed: str) -> list[list[str]]:
    """The words of the commands among what was printed, each of which stands on one line."""
    lines = [line.removeprefix("Next").removeprefix("Resume").strip() for line in printed.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python -m mnist_lightning ")]


def test_the_commands_that_fit_prints_work_as_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    root = Path("a folder of which the name is long") / "and has 'quotes'"
    main(["fit", *QUICK, "--trainer.default_root_dir", str(root)])
    printed = capsys.readouterr().out
    assert str(root / run_folder()) in printed
    predict, draw, fit = commands(printed)
    main(predict[3:])
    main([*draw[3:], "--no_open"])
    printed = capsys.readouterr().out
    assert all(str(root / run_folder() / name) in printed for name in ("predictions.csv", "draw.html"))
    main(fit[3:])
    assert [row["epoch"] for row in rows(root / run_folder())] == ["0", "1", "2", "3", "4"]
    assert [path.name for path in Path.cwd().iterdir()] == [root.parts[0]]


def test_the_commands_that_fit_prints_are_about_the_run_it_trained(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *QUICK])
    main(["fit", *QUICK])
    capsys.readouterr()
    main(["fit", "--ckpt_path", str(run_folder() / "checkpoints" / "last.ckpt")])
    predict, draw, fit = commands(capsys.readouterr().out)
    main(predict[3:])
    main([*draw[3:], "--no_open"])
    main(fit[3:])
    assert all((run_folder(0) / name).exists() for name in ("predictions.csv", "draw.html"))
    assert [len(rows(run_folder(number))) for number in (0, 1)] == [5, 3]


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


@pytest.mark.parametrize(
    "first",
    [pytest.param("", marks=pytest.mark.slow), "from typing import Optional, Union; Optional[Union[float, int]]; "],
)
def test_a_whole_number_is_never_taken_for_a_fraction(first: str) -> None:
    # typing makes one object of Union[int, float] and Union[float, int]: the one that was made first.
    code = f"{first}import lightning.pytorch; import sys; from mnist_lightning.cli import main; main(sys.argv[1:])"
    limits = ["--trainer.limit_train_batches", "1", "--trainer.limit_test_batches", "0.5", "--data.train_size", "640"]
    command = [sys.executable, "-c", code, "fit", "--trainer.max_epochs", "1", *limits]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load((run_folder() / "config.yaml").read_text())
    sizes = [config["trainer"]["limit_train_batches"], config["trainer"]["limit_test_batches"]]
    assert [repr(size) for size in [*sizes, config["data"]["train_size"]]] == ["1", "0.5", "640"]
    assert rows(run_folder())[0]["step"] == "0"  # one batch


def test_callbacks_and_loggers_of_the_users_own_are_used() -> None:
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"]
    checkpoint = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename={epoch}"]
    bar = ["--trainer.callbacks+=TQDMProgressBar", "--trainer.callbacks.refresh_rate=50"]
    main(["fit", *QUICK, *logger, *checkpoint, *bar])
    assert (Path("csv") / "lightning_logs" / "version_0" / "metrics.csv").exists()
    assert {path.name for path in (run_folder() / "checkpoints").iterdir()} == {"epoch=1.ckpt", "last.ckpt"}
    assert {path.name for path in run_folder().iterdir()} >= {"config.yaml", "hparams.yaml", "metrics.csv"}
    main(["test"])


@pytest.mark.parametrize("flag", ["deterministic", "benchmark"])
def test_what_a_command_sets_for_all_of_torch_is_put_back(flag: str) -> None:
    def state() -> tuple[object, ...]:
        return dict(os.environ), torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark

    before = state()
    main(["fit", *QUICK, f"--trainer.{flag}", "true"])
    assert state() == before


# ------------------------------------------------------------------- bad input


def test_a_run_whose_configuration_is_broken_names_its_file(fails: Callable[..., str]) -> None:
    main(["fit", *QUICK])
    config = run_folder() / "config.yaml"
    for text in ("model:\n  hiden_size: 3\n", "model: ["):
        config.write_text(text)
        assert f"'{config}'" in fails("fit", "--ckpt_path", "last")
    assert f"'{config}' cannot be read" in fails("test")


def test_null_is_the_default_of_a_path_too(capsys: pytest.CaptureFixture[str]) -> None:
    for null in ("null", "~"):
        main(["inspect", "--data.data_dir", null])
        assert "(60000, 28, 28)" in capsys.readouterr().out


def test_a_model_of_the_users_may_log_what_a_callback_monitors() -> None:
    class Logs(MNISTClassifier):
        def on_train_epoch_end(self) -> None:
            self.log("mine", 1.0)

    main(["fit", *QUICK, "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "mine"], Logs)


def test_an_error_is_one_line_of_readable_length(fails: Callable[..., str]) -> None:
    error = fails("\x1b[2J\nfit" + "x" * 1_000_000)
    assert "\\x1b[2J\\nfit" in error
    assert len(error) < 3_000


# A folder in the place of a file stands in for a disk that is full when its turn comes.
@pytest.mark.parametrize(
    ("name", "there"),
    [("curves.png", {"test.json", "metrics.csv"}), ("test.json", {"metrics.csv"}), ("metrics.csv", set())],
)
def test_fit_says_what_it_computed_though_it_cannot_be_written(
    capsys: pytest.CaptureFixture[str], name: str, there: set[str]
) -> None:
    class FillsTheDisk(MNISTClassifier):
        def on_test_start(self) -> None:
            (run_folder() / name).unlink(missing_ok=True)
            (run_folder() / name).mkdir()

    with pytest.raises(SystemExit) as stop:
        main(["fit", *QUICK], FillsTheDisk)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "Test     test_loss" in captured.out
    assert f"{name}' (Is a directory)" in captured.err
    assert {path.name for path in run_folder().iterdir() if path.is_file()} >= there


@pytest.mark.parametrize("name", ["test.json", "report.json", "mistakes.png"])
def test_test_says_what_it_computed_though_it_cannot_be_written(capsys: pytest.CaptureFixture[str], name: str) -> None:
    main(["fit", *QUICK])
    (run_folder() / "test.json").unlink()
    (run_folder() / name).mkdir()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["test"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "Test     test_loss" in captured.out
    assert "calibration error" in captured.out
    assert f"{name}' (Is a directory)" in captured.err
    assert name == "test.json" or (run_folder() / "test.json").is_file()


def test_a_checkpoint_of_another_network_or_cut_short_is_refused(fails: Callable[..., str]) -> None:
    main(["fit", *QUICK])
    checkpoint = run_folder() / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        Path("cut.ckpt").write_bytes(whole[:length])
        for command in ("test", "fit"):
            assert "'cut.ckpt' is no checkpoint, or was cut short" in fails(command, "--ckpt_path", "cut.ckpt")
    other = torch.load(checkpoint, weights_only=True)
    other["state_dict"] = {"layer.weight": torch.zeros(3)}
    torch.save(other, "other.ckpt")
    assert "checkpoint of another network" in fails("test", "--ckpt_path", "other.ckpt")
    torch.save({"weights": 3}, "other.ckpt")
    assert "no Lightning checkpoint" in fails("test", "--ckpt_path", "other.ckpt")


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_network_that_has_diverged_is_not_evaluated(fails: Callable[..., str], command: str) -> None:
    main(["fit", *QUICK, "--data.val_size", "1000"])
    checkpoint = torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.3.bias"][7] = torch.nan
    Path("bad").mkdir()
    torch.save(checkpoint, "bad/bad.ckpt")
    says = {"test": "test_loss is nan", "validate": "val_loss is nan", "predict": "NaN for 10,000 of 10,000 images"}
    assert says[command] in fails(command, "--ckpt_path", "bad/bad.ckpt")


def test_validate_without_a_validation_split_says_so(fails: Callable[..., str]) -> None:
    main(["fit", *QUICK])
    assert "without a validation split" in fails("validate")


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
    assert max(len(line) for line in printed.splitlines() if "python -m" not in line) < 60
    assert done.stderr == b""
