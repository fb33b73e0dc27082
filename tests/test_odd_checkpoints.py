"""Whatever is in a checkpoint: nothing of it is run, and nothing outside the folder is touched."""

import contextlib
import copy
import io
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main

NUMBER = 40  # of odd checkpoints, or as many as the variable ODD_CHECKPOINTS of the environment says
QUICK = ["--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"]
COMMANDS = {
    "fit": ["--trainer.max_epochs=2", *QUICK],
    "validate": [],
    "test": QUICK[1:],
    "predict": ["--trainer.limit_predict_batches=1"],
}
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")

CODE = {"class_path": "evil.Evil", "init_args": {}}
VALUES: list[Any] = ["evil.f", "os.system", "{class_path: evil.Evil}", "http://127.0.0.1:9/x.ckpt", "../../x"]
VALUES += [CODE, [CODE], {"_instantiator": "evil.f"}, "\x1b[31mred\n", "a\0b", None, True, -1, 2**63, 0.5, {}, []]
VALUES += [torch.tensor(float("nan")), torch.empty(0), torch.ones(8, 784), torch.float16, Counter("a")]
NAMES = ["_instantiator", "_class_path", "train_transform", "transform", "hparams", "hparams_name", "hparams_type"]
NAMES += ["optimizers", "download", "data_dir", "loss", "epoch"]

watching = False
broken: list[str] = []
MODULES: set[str] = set()
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "socket.", "urllib.")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


@pytest.mark.slow
def test_whatever_a_checkpoint_holds_is_data(tmp_path: Path) -> None:
    # A process of its own: an audit hook stays for ever.
    command = [sys.executable, __file__, os.environ.get("ODD_CHECKPOINTS", str(NUMBER))]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-10_000:] + process.stderr[-10_000:]


def parts(part: Any) -> Iterator[Any]:
    """A checkpoint and all dicts and lists in it that hold something."""
    if isinstance(part, (dict, list)) and part:
        yield part
        for inner in part.values() if isinstance(part, dict) else part:
            yield from parts(inner)


def change(checkpoint: dict[str, Any], draw: random.Random) -> None:
    """Replace, remove or add a value anywhere in a checkpoint."""
    part = draw.choice([*parts(checkpoint)])
    key = draw.choice([*part] if isinstance(part, dict) else range(len(part)))
    action = draw.choice(["replace", "replace", "remove", "add"])
    if action == "remove":
        del part[key]
    elif action == "add" and isinstance(part, dict):
        part[draw.choice(NAMES)] = copy.deepcopy(draw.choice(VALUES))
    else:
        part[key] = copy.deepcopy(draw.choice(VALUES))


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Note what no command may do: import, connect, start a process, or change a file elsewhere."""
    paths: list[Any] = []
    if not watching:
        return
    if event == "import" and args[0].split(".")[0] not in MODULES:
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


def observe(action: Any, argument: Any) -> None:
    """Do something with a checkpoint. It may fail in any way, but nothing forbidden may happen."""
    global watching
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watching = True
        with contextlib.suppress(Exception, SystemExit):
            action(argument)
        watching = False
    assert not broken, broken


def check(checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint to every command, from outside and as that of a run here, and load it from Python."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, here)
        os.chdir(folder)
        LAST.parent.mkdir(parents=True)
        Path("mine.txt").write_text("mine")
        Path("evil.py").write_text("raise SystemExit('evil was imported')")
        for path in (LAST, "odd.ckpt"):
            torch.save(checkpoint, path)
        (LAST.parent.parent / "config.yaml").write_text(CONFIG)
        for command, options in COMMANDS.items():
            for path in ("odd.ckpt", "last"):
                observe(main, [command, *options, f"--ckpt_path={path}"])
        for cls in (MNISTClassifier, MNISTDataModule):
            observe(cls.load_from_checkpoint, "odd.ckpt")
        assert Path("mine.txt").read_text() == "mine"
        assert Path("odd.ckpt").exists()


if __name__ == "__main__":
    sys.path.insert(0, "")  # where a checkpoint's own code would be found
    with contextlib.redirect_stdout(io.StringIO()):
        main(["fit", "--trainer.max_epochs=1", *QUICK, "--model.hidden_size=8", "--data.val_size=200"])
    real = torch.load(LAST, weights_only=True)
    CONFIG = (LAST.parent.parent / "config.yaml").read_text()
    check(real)  # imports what a command imports
    MODULES.update(sys.stdlib_module_names, (name.split(".")[0] for name in sys.modules))
    sys.addaudithook(watch)
    for number in range(int(sys.argv[1])):
        odd, chance = copy.deepcopy(real), random.Random(number)
        for _ in range(chance.randrange(4)):
            change(odd, chance)
        check(odd)
