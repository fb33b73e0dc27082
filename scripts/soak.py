"""Kill a run at random moments, resume it, and compare it with one that was never killed.

    python scripts/soak.py --times 50
    python scripts/soak.py --times 50 -- --model.dropout 0.5 --data.val_size 5000

Every process is a real one and dies of a real SIGKILL. What stands behind ``--`` goes to ``fit``.
The weights, the optimizer's state and ``metrics.csv`` must be the same to the last bit.
"""

import argparse
import hashlib
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from mnist_lightning.checkpoint import load_checkpoint
from mnist_lightning.cli import main as mnist_lightning

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="how many runs to kill (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    parser.add_argument("fit", nargs="*", help="more options of fit, behind --")
    options = parser.parse_args()
    args = [*FIT.split(), *options.fit]
    # A server that has imported everything forks the processes: they start within milliseconds.
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    if sys.platform != "win32":
        context.set_forkserver_preload(["__main__", "mnist_lightning.lightning_cli", "torch._dynamo"])
    draw = random.Random(options.seed)

    def run(folder: Path, more: list[str], kill_after: float | None = None) -> int | None:
        process = context.Process(target=command, args=(folder, more))
        process.start()
        process.join(kill_after)
        process.kill()
        process.join()
        return process.exitcode

    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        seconds = 0.0
        for _ in range(2):  # the first starts the server
            whole = Path(tempfile.mkdtemp(dir=temporary))
            began = time.perf_counter()
            if run(whole, args):
                print((whole / "log.txt").read_text(), file=sys.stderr)
                return 2
            seconds = time.perf_counter() - began
        expected = fingerprint(whole)
        print(f"never killed: {seconds:.1f} s, {expected[:16]}", flush=True)
        same = 0
        for i in range(1, options.times + 1):
            folder = Path(tempfile.mkdtemp(dir=temporary))
            moments = [draw.uniform(0, seconds)]
            code = run(folder, args, moments[-1])
            while code != 0:
                if (folder / "lightning_logs").is_dir() and any((folder / "lightning_logs").glob("version_*")):
                    more = ["--ckpt_path", "last"]
                else:
                    more = args  # it died before it had begun
                # One resumed run in three is killed as well.
                moment = draw.uniform(0, seconds) if draw.random() < 1 / 3 else None
                moments += [moment] if moment else []
                code = run(folder, more, moment)
                if code not in (0, -9):
                    print((folder / "log.txt").read_text(), file=sys.stderr)
                    break
            found = fingerprint(folder) if code == 0 else "failed"
            same += found == expected
            killed = ", ".join(f"{moment:.2f}" for moment in moments)
            print(f"{i:>3}  killed after {killed} s: {'same' if found == expected else 'DIFFERENT'}", flush=True)
    print(f"{same} of {options.times} resumed to the same weights, optimizer state and metrics, bit for bit")
    return 0 if same == options.times else 1


if __name__ == "__main__":
    sys.exit(main())
