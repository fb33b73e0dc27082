"""Kill a run at random moments, resume it, and compare it with one that was never killed.

    python scripts/soak.py --times 50
    python scripts/soak.py --times 50 -- --model.dropout 0.5 --data.val_size 5000

Every process is a real one and dies of a real SIGKILL. What stands behind ``--`` goes to ``fit``.
The weights, the optimizer's state and ``metrics.csv`` must be the same to the last bit. Every third run begins
from a checkpoint that lies elsewhere, with weights that no training gives.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mnist_lightning.cli import main as mnist_lightning
from mnist_lightning.safe_checkpoints import load_checkpoint

# Short epochs, so that a kill falls everywhere: into imports, steps, validation and saving.
FIT = "--trainer.max_epochs 6 --trainer.limit_train_batches 40 --model.hidden_size 64"


def command(folder: Path, args: list[str]) -> None:
    """What a process does: one command in a folder, its output in ``log.txt``."""
    with (folder / "log.txt").open("a", buffering=1) as log:
        sys.stdout = sys.stderr = log
        mnist_lightning(["fit", "--trainer.default_root_dir", str(folder), *args])


def fingerprint(folder: Path) -> str:
    """A hash over weights, optimizer state and metrics of the only run in a folder."""
    (run,) = (folder / "lightning_logs").glob("version_*")
    checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")
    averages = checkpoint["optimizer_states"][0]["state"].values()
    digest = hashlib.sha256((run / "metrics.csv").read_bytes() + (run / "test.json").read_bytes())
    for tensor in [*checkpoint["state_dict"].values(), *(value for state in averages for value in state.values())]:
        digest.update(torch.as_tensor(tensor).numpy().tobytes())
    return digest.hexdigest()


def main() -> int:
    """Kill and resume as often as was asked; 0 if every run ended with the same bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="how many runs to kill (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    parser.add_argument("fit", nargs="*", help="more options of fit, behind --")
    options = parser.parse_args()
    args = [*FIT.split(), *options.fit]
    # A server that has imported everything forks the processes: they start within milliseconds.
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "mnist_lightning.cli.mnist_cli", "torch._dynamo"])
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # it remarks on what killed processes leave
    draw = random.Random(options.seed)

    def run(folder: Path, more: list[str], kill_after: float | None = None) -> int | None:
        process = context.Process(target=command, args=(folder, more))
        process.start()
        process.join(kill_after)
        process.kill()
        process.join()
        return process.exitcode  # type: ignore[no-any-return]

    with tempfile.TemporaryDirectory() as temporary:

        def unbroken(*more: str) -> Path:
            folder = Path(tempfile.mkdtemp(dir=temporary))
            if run(folder, [*args, *more]):
                raise SystemExit((folder / "log.txt").read_text())
            return folder

        first = unbroken("--trainer.max_epochs", "1")  # starts the server, too
        elsewhere = str(Path(temporary) / "elsewhere.ckpt")
        checkpoint = load_checkpoint(next(first.glob("lightning_logs/*/checkpoints/last.ckpt")))
        for tensor in checkpoint["state_dict"].values():
            tensor.fill_(0.01)
        torch.save(checkpoint, elsewhere)
        starts: list[list[str]] = [[], [], ["--ckpt_path", elsewhere]]
        began = time.perf_counter()
        expected = [fingerprint(unbroken(*more)) for more in starts]
        seconds = (time.perf_counter() - began) / len(starts)
        print(f"never killed: {seconds:.1f} s, {expected[0][:16]}, from elsewhere {expected[2][:16]}", flush=True)
        same = 0
        for i in range(options.times):
            folder = Path(tempfile.mkdtemp(dir=temporary))
            moments = [draw.uniform(0, seconds)]
            code = run(folder, [*args, *starts[i % 3]], moments[-1])
            while code != 0:
                begun = any(folder.glob("lightning_logs/version_*"))  # or it died before
                more = ["--ckpt_path", "last"] if begun else [*args, *starts[i % 3]]
                # One resumed run in three is killed as well.
                moment = draw.uniform(0, seconds) if draw.random() < 1 / 3 else None
                moments += [moment] if moment else []
                code = run(folder, more, moment)
                if code not in (0, -9):
                    print((folder / "log.txt").read_text(), file=sys.stderr)
                    break
            equal = code == 0 and fingerprint(folder) == expected[i % 3]
            same += equal
            killed = ", ".join(f"{moment:.2f}" for moment in moments)
            print(f"{i + 1:>3}  killed after {killed} s: {'same' if equal else 'DIFFERENT'}", flush=True)
    print(f"{same} of {options.times} resumed to the same weights, optimizer state and metrics, bit for bit")
    return 0 if same == options.times else 1


if __name__ == "__main__":
    sys.exit(main())
