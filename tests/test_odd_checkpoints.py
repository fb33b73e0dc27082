"""Whatever is in a checkpoint: every command works, or says one line; nothing of it is run."""

import contextlib
import copy
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError

EXAMPLES = 200  # or as many as the variable ODD_CHECKPOINTS of the environment says
QUICK = ["--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"]
FIT = ["fit", "--trainer.max_epochs=2", *QUICK]
COMMANDS = {
    "fit": [*FIT, "--ckpt_path=outside/odd.ckpt"],
    "last": [*FIT, "--ckpt_path=last"],
    "validate": ["validate", "--ckpt_path=outside/odd.ckpt"],
    "test": ["test", *QUICK[1:], "--ckpt_path=outside/odd.ckpt"],
    "predict": ["predict", "--trainer.limit_predict_batches=1", "--ckpt_path=outside/odd.ckpt"],
}
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.mark.slow
def test_whatever_a_checkpoint_holds_is_data(tmp_path: Path) -> None:
    # A process of its own: an audit hook stays for ever.
    command = [sys.executable, __file__, os.environ.get("ODD_CHECKPOINTS", str(EXAMPLES))]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-10_000:] + process.stderr[-10_000:]


# ---------------------------------------------------------------------- odd values

CODE = {"class_path": "evil.Evil", "init_args": {}}
WORDS = ["", "x", "0", "99.0", "=1", "evil.f", "os.system", "{class_path: evil.Evil}", "http://127.0.0.1:9/x.ckpt"]
WORDS += ["../" * 10, "/etc/passwd", "y" * 100_000, "\x1b[31mred\n", "a\0b", "\udc80", "é"]


def attributed() -> Any:
    value: Any = OrderedDict(a=1)
    value._metadata = 5
    return value


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def wide() -> Any:
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return value


def deep() -> Any:
    value: list[Any] = []
    for _ in range(300):
        value = [value]
    return value


TENSORS = [
    lambda: torch.ones(3),
    lambda: torch.tensor(0.5),
    lambda: torch.tensor(7),
    lambda: torch.tensor(True),
    lambda: torch.tensor(float("nan")),
    lambda: torch.empty(0),
    lambda: torch.ones(8, 784).to_sparse(),
    lambda: torch.ones(8, 784, dtype=torch.complex64),
    lambda: torch.ones(8, 784, device="meta"),
    lambda: torch.ones(8, 784, dtype=torch.int8),
    lambda: torch.ones(8, 784, dtype=torch.float64),
    lambda: torch.ones(8, 784).to(torch.float8_e5m2),
    lambda: torch.quantize_per_tensor(torch.ones(8, 784), 0.1, 0, torch.qint8),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda: torch.ones(1).expand(10**12),
    lambda: torch.nn.Parameter(torch.ones(8, 784)),
]
OTHERS = [attributed, endless, wide, deep, lambda: torch.float16, lambda: torch.Size([3]), lambda: torch.device("cuda")]
OTHERS += [lambda: {1, 2}, lambda: b"bytes", lambda: 1j, lambda: Counter("aab"), lambda: copy.deepcopy(CODE)]
OTHERS += [lambda: [copy.deepcopy(CODE)], lambda: {"_instantiator": "lightning.pytorch.cli.instantiate_module"}]
numbers = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, -1, 2**31, 2**63, -(2**63), 10**40, 0.0, 0.5, -1.5, 1e308]),
    st.integers(),
    st.floats(),
)
scalars = st.one_of(numbers, st.sampled_from(WORDS), st.text(max_size=5))
values = st.one_of(
    scalars,
    st.sampled_from(TENSORS).map(lambda make: make()),
    st.sampled_from(OTHERS).map(lambda make: make()),
    st.lists(scalars, max_size=3),
    st.dictionaries(scalars.filter(lambda key: key == key), scalars, max_size=3),
)
NAMES = ["_instantiator", "_class_path", "train_transform", "hidden_size", "learning_rate", "loss", "data_dir", "seed"]
NAMES += ["transform", "hparams", "hparams_name", "hparams_type", "native_amp_scaling_state", "combined_loader", "step"]


@st.composite
def changes(draw: st.DrawFn, checkpoint: dict[str, Any]) -> list[tuple[Any, ...]]:
    """One to three changes to a checkpoint, anywhere in it: the way to a part, and what happens to it there."""
    drawn = []
    for _ in range(draw(st.integers(1, 3))):
        part: Any = checkpoint
        way: list[Any] = []
        while isinstance(part, (dict, list)) and part and not (way and draw(st.integers(0, 3)) == 0):
            way.append(draw(st.sampled_from([*part] if isinstance(part, dict) else [*range(len(part))])))
            part = part[way[-1]]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "add":
            way[-1] = draw(st.one_of(st.sampled_from(NAMES), scalars))
        drawn.append((action, way, None if action == "remove" else draw(values)))
    return drawn


def change(checkpoint: dict[str, Any], action: str, way: list[Any], value: Any) -> None:
    *first, last = way
    part: Any = checkpoint
    with contextlib.suppress(AttributeError, IndexError, KeyError, RuntimeError, TypeError):  # another change was there
        for key in first:
            part = part[key]
        if action == "remove":
            del part[last]
        elif isinstance(part, dict) or action == "replace":
            part[last] = value
        else:
            part.append(value)


# ---------------------------------------------------------------------- what a command does

watching = False
broken: list[str] = []
MODULES: set[str] = set()
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "socket.", "urllib.")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Note what no command may do: import, connect, start a process, or change a file elsewhere."""
    if not watching:
        return
    paths: list[Any] = []
    if event == "import":
        if args[0].split(".")[0] not in MODULES:
            broken.append(f"imports {args[0]}")
    elif event.startswith(FORBIDDEN):
        broken.append(f"{event} {args}")
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        paths = [args[0]]
    elif event in CHANGES:
        paths = [arg for arg in args if isinstance(arg, (str, bytes, os.PathLike))]
    for path in paths:
        if not isinstance(path, int) and not Path(os.fsdecode(path)).resolve().is_relative_to(Path.cwd()):
            broken.append(f"{event} {args}")


def tree() -> dict[str, str]:
    """What is there, with the digests of files, but for the lock of a run."""
    paths = [path for path in Path().rglob("*") if path.name not in (".lock", ".process")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder" for path in paths}


def observe(args: list[str]) -> None:
    """Run a command, and see that it keeps the promise."""
    global watching
    before, out, err, began = tree(), io.StringIO(), io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always")  # each time, as in a process of its own
        watching = True
        try:
            main(args)
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            watching = False
    said, after = err.getvalue(), tree()
    assert not broken, broken
    assert time.process_time() - began < 60  # of the process's own: other programs may keep the cores busy
    assert all(line.isprintable() for line in (out.getvalue() + said).splitlines()), out.getvalue() + said
    assert len(said) < 3000
    if code == 0:
        assert {Path(path).parts[0] for path in after} <= {"evil.py", "outside", "lightning_logs"}
    elif "the loss became infinite or NaN" not in said:
        assert code == 2, (code, said)
        assert said.startswith("mnist_lightning: error: "), said
        assert said.count("\n") == 1, said
        assert after == before, after.keys() ^ before.keys()


def load(path: Path) -> None:
    """Load it from Python: it works, or it says what is wrong, as torch does of other weights."""
    global watching
    for cls in (MNISTClassifier, MNISTDataModule):
        watching = True
        try:
            cls.load_from_checkpoint(path)
        except (InputError, RuntimeError) as error:
            said = isinstance(error, InputError) or "Error(s) in loading state_dict" in str(error)
        else:
            said = True
        finally:
            watching = False
        assert said
        assert not broken, broken


def check(drawn: list[tuple[Any, ...]]) -> None:
    """Give a changed checkpoint to every command, from outside and as that of a run here."""
    checkpoint, here = copy.deepcopy(REAL), Path.cwd()
    for one in drawn:
        change(checkpoint, *one)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        tempfile.tempdir = folder  # where hparams.yaml is written first
        try:
            LAST.parent.mkdir(parents=True)
            Path("outside").mkdir()
            Path("evil.py").write_text("raise SystemExit('evil was imported')")
            for path in (LAST, "outside/odd.ckpt"):
                torch.save(checkpoint, path)
            (LAST.parent.parent / "config.yaml").write_text(CONFIG)
            for args in COMMANDS.values():
                observe(args)
            load(Path("outside/odd.ckpt"))
        finally:
            os.chdir(here)
            tempfile.tempdir = None


if __name__ == "__main__":
    sys.path.insert(0, "")  # where a checkpoint's own code would be found
    with contextlib.redirect_stdout(io.StringIO()):
        main(["fit", "--trainer.max_epochs=1", *QUICK, "--model.hidden_size=8", "--data.val_size=200"])
    REAL = torch.load(LAST, weights_only=True)
    CONFIG = (LAST.parent.parent / "config.yaml").read_text()
    check([])  # imports what a command imports
    MODULES.update(sys.stdlib_module_names, (name.split(".")[0] for name in sys.modules))
    sys.addaudithook(watch)
    check([])
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    test = given(drawn=changes(REAL))(check)
    for value in ("evil.f", CODE):  # what it all began with
        way = ["datamodule_hyper_parameters", "train_transform"]
        test = example(drawn=[("add", way, value), ("remove", ["MNISTDataModule"], None)])(test)
    settings(max_examples=int(sys.argv[1]), derandomize=bool(os.environ.get("CI")), **quiet)(test)()
