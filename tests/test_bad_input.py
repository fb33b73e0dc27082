"""Whatever stands behind a flag: the answer is a run, or one line and exit code 2."""

import contextlib
import io
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnist_lightning.cli import main

# A run of a quarter of a second, whatever the flag in question asks for.
BOUNDED = [
    "--trainer.max_epochs=1",
    "--trainer.max_steps=3",
    "--trainer.limit_test_batches=2",
    "--trainer.enable_progress_bar=false",
    "--model.hidden_size=4",
]
FLAGS = [
    *(f"model.{name}" for name in ("hidden_size", "learning_rate", "loss", "dropout", "weight_decay")),
    *(f"data.{name}" for name in ("data_dir", "batch_size", "val_size", "seed", "train_size")),
    *("seed_everything", "matmul_precision", "ckpt_path", "optimizer", "lr_scheduler", "config"),
    *(
        f"trainer.{name}"
        for name in (
            *(
                "accelerator",
                "strategy",
                "devices",
                "num_nodes",
                "precision",
                "fast_dev_run",
                "max_epochs",
                "min_epochs",
            ),
            *(
                "min_epochs",
                "max_steps",
                "min_steps",
                "max_time",
                "limit_train_batches",
                "limit_val_batches",
                "limit_test_batches",
            ),
            *("overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
            *("log_every_n_steps", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
            *("deterministic", "benchmark", "inference_mode", "profiler", "detect_anomaly", "barebones"),
            *("reload_dataloaders_every_n_epochs", "logger", "callbacks", "plugins"),
        )
    ),
]
NASTY = ["", " ", "nan", "inf", "-inf", "-1", "0", "1", "3", "0.5", "1.5", "-0.5", "1e400", "99999999999999999999"]
NASTY += ["true", "false", "null", "x", "[]", "{}", "[1]", "é", "../..", "/dev/null", "os.system", "a\nb"]
values = st.one_of(
    st.sampled_from(NASTY),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(flag=st.sampled_from(FLAGS), value=values)
@pytest.mark.filterwarnings("ignore")  # Lightning may remark on what a user has asked for
def test_any_value_of_any_flag_is_a_run_or_one_line(flag: str, value: str) -> None:
    before, out, err = Path.cwd(), io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        began = time.monotonic()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(["fit", *BOUNDED, f"--{flag}={value}"])
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            os.chdir(before)
        made = {path.name for path in Path(folder).iterdir()}
        assert code in (0, 2), err.getvalue()
        assert "Traceback" not in err.getvalue()
        assert time.monotonic() - began < 60
        if code == 2:
            assert err.getvalue().startswith("mnist_lightning: error: ")
            assert err.getvalue().count("\n") == 1
            assert not made
        else:
            assert made <= {"lightning_logs", "checkpoints"}
