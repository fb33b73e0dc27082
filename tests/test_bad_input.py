"""Whatever stands behind a flag: what people get wrong is one line and exit code 2, and nothing is made."""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnist_lightning.cli import main

GPU = torch.cuda.is_available() or torch.backends.mps.is_available()
DROPOUT = "fit --data.train_transform torch.nn.Dropout --data.train_transform"
PAD = "fit --data.transform torchvision.transforms.v2.Pad --data.transform.padding 2"
STOPPING = "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val_loss"


@pytest.fixture(autouse=True)
def _in_a_folder_with_bad_files() -> None:
    Path("broken.yaml").write_text("model: [hidden_size: 3\n")
    Path("unknown.yaml").write_text("model:\n  hiden_size: 3\n")
    Path("sub.yaml").write_text("fit:\n  model:\n    hiden_size: 3\n")
    Path("good.yaml").write_text("model:\n  hidden_size: 3\n")
    Path("binary.yaml").write_bytes(bytes(range(256)))
    Path("cut.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        # What the parser refuses.
        ("fit --bogus 3", "--bogus"),
        ("fit --model.bogus 3", "bogus"),
        ("fit --model.hidden_size x", "--model.hidden_size cannot be x: it must be int"),
        ("fit --model.learning_rate nan", "learning_rate cannot be nan: it must be float"),
        ("fit --model.loss mse", "loss"),
        ("fit --trainer.max_epochs many", "--trainer.max_epochs cannot be many: it must be int or null"),
        ("fit --trainer.callbacks EarlyStopping --trainer.callbacks.monitr x", "monitr' is not"),
        ("fit --lr_scheduler nope", "--lr_scheduler cannot be nope: it must be a class (package.module.Class"),
        ("fit --data.train_transform x", "train_transform cannot be x: it must be"),
        ("fit --data.train_transform nowhere.shift", "train_transform: No module named 'nowhere'"),
        ("fit --data.train_transform torch.nothing", "train_transform: module 'torch' has no attribute 'nothing'"),
        (f"{DROPOUT}.q 1", "'q' is not"),
        (f"{DROPOUT}.p x", "Expected a <class 'float'>"),
        ("fit --config nowhere.yaml", "nowhere.yaml"),
        ("fit --config broken.yaml", "while parsing a flow"),
        ("fit --config unknown.yaml", "model.hiden_size"),
        ("--config sub.yaml fit", "model.hiden_size"),
        ("fit --config good.yaml --bogus 3", "--bogus 3\n"),
        ("fit --config binary.yaml", "codec can't decode"),
        ("test --weights_only false", "weights_only"),
        ("inspect --data.val_size x", "val_size"),
        ("inspect --data.train_transform torch.sqrt", "train_transform"),
        ("inspect --data.transform torch.sqrt", "--data.transform"),
        # What the classes and Lightning refuse.
        pytest.param("fit --trainer.accelerator gpu", "gpu", marks=pytest.mark.skipif(GPU, reason="there is a GPU")),
        ("fit --trainer.accelerator abacus", "abacus"),
        ("fit --trainer.max_epochs -3", "max_epochs"),
        ("fit --trainer.precision 7", "precision"),
        ("fit --trainer.barebones true", "barebones"),
        ("fit --model.hidden_size 0", "hidden_size must be"),
        ("fit --model.learning_rate 0", "learning_rate must be"),
        ("fit --model.dropout 1", "dropout must be from 0 to below 1, got 1.0"),
        ("fit --model.weight_decay -1", "weight_decay must be"),
        ("fit --data.batch_size 0", "batch_size must be"),
        (f"{DROPOUT}.p 2", "between 0 and 1, but got 2"),
        # What only the data says.
        ("fit --data.val_size 60000", "left to train on"),
        ("fit --data.val_size 1.0", "left to train on"),
        ("fit --data.val_size -1", "val_size must be"),
        ("fit --data.data_dir nowhere", "nowhere"),
        ("inspect --data.data_dir nowhere", "nowhere"),
        ("fit --data.train_size 0", "count from 1 to 60,000, the images that val_size leaves, "),
        ("fit --data.train_size 2 --data.val_size 59999", "from 1 to 1, the images that val_size leaves, "),
        ("fit --data.train_size 1.5", "train_size must be a count from 1 to 60,000"),
        ("fit --data.train_transform torch.nn.Flatten", "shape (1, 1, 28, 28), like its input, got torch.float32 of"),
        ("fit --data.train_transform torch.numel", "like its input, got int"),
        ("fit --data.transform torch.numel", "transform must return a float tensor of shape (1, ...), a row for each"),
        ("fit --data.transform math.sqrt", "--data.transform: only one element tensors"),
        ("fit --data.train_transform math.sqrt", "--data.train_transform: only one element tensors"),
        # What the commands refuse.
        ("fit --seed_everything -1", "seed_everything must be"),
        ("fit --threads 0", "threads must be"),
        ("fit --trainer.devices 500", "500 processes"),
        ("fit --trainer.num_nodes 2", "num_nodes"),
        (PAD, "reads images of shape (1, 28, 28), and gets (1, 32, 32): choose a --data.transform that keeps"),
        (
            f"fit {STOPPING}es --data.val_size 9",
            "cannot monitor 'val_losses', which this run does not log: choose one of",
        ),
        ("fit --trainer.accumulate_grad_batches 0", "accumulate_grad_batches must be above 0, got 0"),
        ("fit --trainer.accelerator cpu --trainer.devices 3", "128 cannot be shared evenly by 3 processes"),
        (f"fit {STOPPING}", "cannot monitor 'val_loss', which this run does not log: choose one of"),
        ("fit --trainer.callbacks BatchSizeFinder", "BatchSizeFinder changes what config.yaml"),
        ("fit --trainer.callbacks LearningRateFinder", "LearningRateFinder changes what config.yaml"),
        ("fit --optimizer Adam --model.learning_rate 0.1", "--optimizer names another: use --optimizer.lr"),
        ("fit --ckpt_path last", "no fit run"),
        ("fit --ckpt_path nowhere.ckpt", "no checkpoint at 'nowhere.ckpt'"),
        ("fit --ckpt_path http://127.0.0.1:9/x.ckpt", "no checkpoint at"),
        ("test", "no fit run with a checkpoint"),
        ("validate", "no fit run with a checkpoint"),
        ("predict", "no fit run with a checkpoint"),
        ("draw", "no fit run with a checkpoint"),
        ("test --ckpt_path cut.ckpt", "is no checkpoint, or was cut short"),
        ("test --ckpt_path broken.yaml", "is no checkpoint"),
    ],
)
def test_what_people_get_wrong_is_one_line(fails: Callable[..., str], args: str, says: str) -> None:
    assert says in fails(*args.split())


FLAGS = [
    *(f"model.{name}" for name in ("hidden_size", "learning_rate", "loss", "dropout", "weight_decay")),
    *(f"data.{name}" for name in ("data_dir", "batch_size", "val_size", "seed", "train_size")),
    *("seed_everything", "matmul_precision", "threads", "ckpt_path", "optimizer", "lr_scheduler", "config"),
    *("trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes", "trainer.precision"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.limit_train_batches"),
    *("trainer.val_check_interval", "trainer.gradient_clip_val", "trainer.profiler", "trainer.fast_dev_run"),
    *("trainer.deterministic", "trainer.logger", "trainer.callbacks", "trainer.plugins", "trainer.default_root_dir"),
]
NASTY = ["", " ", "nan", "inf", "-inf", "-1", "0", "1", "3", "0.5", "1.5", "-0.5", "1e400", "99999999999999999999"]
NASTY += ["true", "false", "null", "x", "[]", "{}", "[1]", "é", "../..", "/dev/null", "os.system", "a\nb"]
values = st.one_of(
    st.sampled_from(NASTY),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(flag=st.sampled_from(FLAGS), value=values)
def test_any_value_of_any_flag_is_an_option_or_one_line(flag: str, value: str) -> None:
    before, out, err = sorted(Path.cwd().iterdir()), io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main(["fit", f"--{flag}={value}", "--print_config"])
    if stop.value.code == 0:
        assert out.getvalue()
    else:
        assert stop.value.code == 2
        assert err.getvalue().startswith("mnist_lightning: error: ")
        assert err.getvalue().count("\n") == 1
    assert sorted(Path.cwd().iterdir()) == before
