"""Time this package's command beside a hand-written torch loop, textbook Lightning and Keras.

    python scripts/benchmark.py                                       # five rounds
    python scripts/benchmark.py --rounds 1 --contenders hand package  # a quick look
    python scripts/benchmark.py --growth --keras ~/keras/bin/python   # everything
    python scripts/benchmark.py --against ../old                      # this checkout beside another one
    python scripts/benchmark.py --busy 2 --contenders hand package    # on a machine that does other things too
    python scripts/benchmark.py --accelerator gpu                     # on a GPU, or not at all

Every contender trains the tutorial's network on MNIST, 784-512-10 at a batch size of 128, and then
evaluates it on the 10,000 test images: in a process of its own, in an empty folder, on a terminal of
its own, so that progress bars are drawn. The package's command runs as a user runs it. Training lasts
from one line on the terminal to another. A round runs each contender once; each round begins with
another one. Ratios are taken within a round: a machine that slows down slows both sides.

The report goes to standard output and, as ``benchmark.md`` and ``benchmark.json``, into ``--out``. A
contender that ends with a low test accuracy has not done the work: the script stops, with exit code 1.
What is measured is the checkout that this script lies in. The system must be POSIX (``pty``, ``wait4``).
"""

# Nothing heavy is imported up here. Linux counts the memory of the process that started a program
# into that program's peak, and the interpreter given by --keras runs this same file without torch.
import argparse
import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import pty
import re
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
MNIST_ROOT = CHECKOUT / "mnist_lightning"  # torchvision's root: MNIST/raw lies in it
BATCH_SIZE = 128
QUIET = 0.5  # A load average: with two other programs on two cores, a fit took 425 s where it takes 10.

# What stands on the terminal just before and just after training: lines of the command, or of the contenders below.
BEGINS, ENDS = "Training begins", "Training ends"
BEGUN, TRAINED = rf"Network  |{BEGINS}", rf"Epoch (\d+)/\1 +[\d.]+ s |{ENDS}"

Figures = dict[str, float]
"""What was measured of one process: seconds, ``peak_mib`` and ``test_acc``."""


# Each contender below runs in a process of its own.


def hand(epochs: int, accelerator: str, matmul_precision: str = "highest") -> None:
    """The loop that a careful person writes by hand: nothing waits for the device within an epoch."""
    import torch
    import torch.nn.functional as F
    from torchvision.datasets import MNIST

    torch.set_float32_matmul_precision(matmul_precision)
    on_accelerator = accelerator != "cpu" and torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if on_accelerator else torch.device("cpu")
    train, test = MNIST(MNIST_ROOT, train=True), MNIST(MNIST_ROOT, train=False)
    images, targets = (train.data.view(-1, 784).float() / 255).to(device), train.targets.to(device)
    test_images, test_targets = (test.data.view(-1, 784).float() / 255).to(device), test.targets.to(device)
    network = _network().to(device)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)

    print(BEGINS, flush=True)
    for epoch in range(epochs):
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        order = torch.randperm(len(images), device=device)
        for index in order.split(BATCH_SIZE):
            x, y = images[index], targets[index]
            logits = network(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(y)
            correct += (logits.argmax(1) == y).sum()
        n = len(images)
        print(f"Epoch {epoch + 1}/{epochs}  loss {loss_sum.item() / n:.4f}  acc {correct.item() / n:.4f}")
    print(ENDS, flush=True)
    print(f"test_acc {_evaluate(network, test_images.split(BATCH_SIZE), test_targets.split(BATCH_SIZE))}")


def textbook(epochs: int, accelerator: str) -> None:
    """Lightning as its introductions teach it, with the Trainer's defaults."""
    import torch
    import torch.nn.functional as F
    import torchmetrics
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    class TextbookClassifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = _network()
            self.train_acc = torchmetrics.Accuracy("multiclass", num_classes=10)
            self.test_acc = torchmetrics.Accuracy("multiclass", num_classes=10)

        def on_fit_start(self) -> None:  # the network is on its device, as with the other contenders
            print(BEGINS, flush=True)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            images, targets = batch
            logits = self.network(images)
            loss = F.cross_entropy(logits, targets)
            self.log("train_loss", loss)
            self.log("train_acc", self.train_acc(logits, targets), prog_bar=True)
            return loss

        def test_step(self, batch: Any, batch_idx: int) -> None:
            images, targets = batch
            logits = self.network(images)
            self.test_acc(logits, targets)
            self.log("test_loss", F.cross_entropy(logits, targets))
            self.log("test_acc", self.test_acc)

        def configure_optimizers(self) -> Any:
            return torch.optim.RMSprop(self.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)

    train = DataLoader(MNIST(MNIST_ROOT, train=True, transform=ToTensor()), batch_size=BATCH_SIZE, shuffle=True)
    test = DataLoader(MNIST(MNIST_ROOT, train=False, transform=ToTensor()), batch_size=BATCH_SIZE)
    model = TextbookClassifier()
    trainer = Trainer(max_epochs=epochs, accelerator=accelerator, devices=1)
    trainer.fit(model, train)
    print(ENDS, flush=True)
    print(f"test_acc {trainer.test(model, test)[0]['test_acc']}")


def keras(epochs: int, accelerator: str) -> None:
    """Keras 3 on JAX, as the tutorial has it, in whatever interpreter has both."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["KERAS_HOME"] = str(Path.cwd())  # no settings of the user's
    if accelerator != "auto":
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[accelerator]
    import numpy as np
    from keras import Sequential, layers, optimizers, utils

    def load(split: str) -> tuple[Any, Any]:
        raw = MNIST_ROOT / "MNIST" / "raw"  # IDX files: a header, and bytes
        pixels = np.fromfile(raw / f"{split}-images-idx3-ubyte", np.uint8, offset=16)
        digits = np.fromfile(raw / f"{split}-labels-idx1-ubyte", np.uint8, offset=8)
        return pixels.reshape(-1, 784).astype("float32") / 255, utils.to_categorical(digits)

    (images, targets), test = load("train"), load("t10k")
    model = Sequential([layers.Dense(512, activation="relu"), layers.Dense(10, activation="softmax")])
    rmsprop = optimizers.RMSprop(learning_rate=1e-3, rho=0.9, epsilon=1e-7)
    model.compile(optimizer=rmsprop, loss="categorical_crossentropy", metrics=["accuracy"])
    print(BEGINS, flush=True)
    model.fit(images, targets, epochs=epochs, batch_size=BATCH_SIZE)
    print(ENDS, flush=True)
    print(f"test_acc {model.evaluate(*test, batch_size=BATCH_SIZE)[1]}")


def evaluation(epochs: int, accelerator: str) -> None:
    """``python -m mnist_lightning test``: its batches beside a bare forward pass, and the report after them."""
    from mnist_lightning import MNISTClassifier
    from mnist_lightning.cli import main

    ends: list[float] = []  # of the batches

    class TimedClassifier(MNISTClassifier):
        def on_test_start(self) -> None:
            ends[:] = [time.perf_counter()]

        def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, *args: Any) -> None:
            if batch_idx in (0, self.trainer.num_test_batches[0] - 1):
                _wait_for(self.device)
                ends.append(time.perf_counter())

        def on_test_end(self) -> None:
            (began, first, last), over = ends, time.perf_counter()
            trainer: Any = self.trainer
            images, targets = zip(*trainer.datamodule.test_dataloader(), strict=True)
            network = _network().to(self.device)  # torch's own layers, as one writes them by hand
            network.load_state_dict(self.network.state_dict())
            _wait_for(self.device)
            bare = time.perf_counter()
            _evaluate(network, images[1:], targets[1:])
            bare, batches = time.perf_counter() - bare, last - first
            figures = {"evaluation_s": over - began, "report_s": over - last, "batches_s": batches, "bare_pass_s": bare}
            print("Measured", json.dumps({**figures, "batches_to_bare_pass": batches / bare}))

    for command in (["fit", "--trainer.max_epochs", str(epochs)], ["test"], ["test"]):  # the last one counts
        sys.argv[1:] = [*command, *_on(accelerator)]
        main(model_class=TimedClassifier)


def growth(epochs: int, accelerator: str, copies: int) -> None:
    """``python -m mnist_lightning fit`` on the training images repeated."""
    from mnist_lightning import MNISTDataModule
    from mnist_lightning.cli import main

    class RepeatedMNIST(MNISTDataModule):
        def load(self, train: bool) -> Any:
            images, targets = super().load(train)
            return (images.repeat(copies, 1, 1), targets.repeat(copies)) if train else (images, targets)

    sys.argv[1:] = ["fit", "--trainer.max_epochs", str(epochs), *_on(accelerator)]
    main(data_class=RepeatedMNIST)


def _network() -> Any:
    """The tutorial's network with Keras's start."""
    from torch import nn

    hidden, output = nn.Linear(784, 512), nn.Linear(512, 10)
    for layer in (hidden, output):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), output)


def _on(accelerator: str) -> list[str]:
    """The flags of the command for one device: all the contenders use one, also where there are several GPUs."""
    return ["--trainer.accelerator", accelerator, "--trainer.devices", "1"]


def _wait_for(device: Any) -> None:
    """Wait until a GPU has done all that it was given: only then does a clock say how long this took."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize()


def _evaluate(network: Any, images: Sequence[Any], targets: Sequence[Any]) -> float:
    """The accuracy over some batches, by a bare forward pass that sums loss and accuracy on the device."""
    import torch
    import torch.nn.functional as F

    loss_sum = torch.zeros((), device=images[0].device)
    correct = torch.zeros((), dtype=torch.int64, device=images[0].device)
    with torch.inference_mode():
        for x, y in zip(images, targets, strict=True):
            logits = network(x)
            loss_sum += F.cross_entropy(logits, y) * len(y)
            correct += (logits.argmax(1) == y).sum()
    n = sum(map(len, targets))
    print(f"loss {loss_sum.item() / n:.4f}")
    return float(correct.item() / n)


GROWTH = {f"growth-{copies}x{epochs}": (copies, epochs) for copies, epochs in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 20))}
"""How many times the 60,000 images, and for how many epochs."""
COMMANDS = {  # the flags of ``python -m mnist_lightning fit``
    "package": [],
    "package-medium": ["--matmul_precision", "medium"],
    "package-bf16": ["--trainer.precision", "bf16-mixed"],
    "against": [],
}
CHILDREN: dict[str, Callable[[int, str], None]] = {
    "hand": hand,
    "hand-medium": functools.partial(hand, matmul_precision="medium"),
    "textbook": textbook,
    "keras": keras,
    "evaluation": evaluation,
    **{row: functools.partial(growth, copies=copies) for row, (copies, _) in GROWTH.items()},
}
DEFAULT = ["hand", "hand-medium", "textbook", "package", "package-medium", "evaluation"]
RATIOS = [  # of which figure, of which row, to the same of which row
    ("fit_s", "package", "hand"),
    ("fit_s", "package-medium", "hand"),
    ("fit_s", "package-bf16", "hand"),
    ("fit_s", "package-medium", "package"),
    ("process_s", "package", "textbook"),
    ("process_s", "package-medium", "keras"),
    ("fit_s", "package", "against"),
    ("process_s", "package", "against"),
]


def run_process(command: Sequence[str], folder: str, checkout: Path) -> tuple[int, Figures, list[tuple[float, str]]]:
    """Run a program on a terminal of its own: its exit code, its figures, and its lines with the second of each."""
    path = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))  # rows and columns
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": end, "stderr": end}
    lines, began = [], time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=env, **streams) as process, os.fdopen(terminal, "rb") as screen:
        os.close(end)
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            for line in screen:
                lines.append((time.perf_counter() - began, line.decode(errors="replace")))
        _, status, usage = os.wait4(process.pid, 0)
        seconds, process.returncode = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB
    return process.returncode, {"process_s": seconds, "peak_mib": peak}, lines


@contextlib.contextmanager
def busy(number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep so many processes busy with nothing, for as long as this one lives."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(number):
            processes.append(stack.enter_context(subprocess.Popen([sys.executable, "-c", code])))
            stack.callback(processes[-1].kill)
        yield processes


def measure(row: str, options: argparse.Namespace) -> Figures:
    """Run one contender and take its figures from its terminal; exit if it has not learned what it should."""
    copies, epochs = GROWTH.get(row, (1, options.epochs))
    if row in COMMANDS:
        command = [sys.executable, "-m", "mnist_lightning", "fit", "--trainer.max_epochs", str(epochs)]
        command += [*_on(options.accelerator), *COMMANDS[row]]
    else:
        command = [options.keras if row == "keras" else sys.executable, str(Path(__file__).resolve()), "--child", row]
        command += ["--epochs", str(epochs), "--accelerator", options.accelerator]
    with tempfile.TemporaryDirectory() as folder:
        code, figures, lines = run_process(command, folder, options.against if row == "against" else CHECKOUT)

    text = "".join(line for _, line in lines)
    begun, trained = ([seconds for seconds, line in lines if re.search(mark, line)] for mark in (BEGUN, TRAINED))
    accuracies = re.findall(r"test_acc\s+([\d.]+)", text)
    if code or not (begun and trained and accuracies):
        sys.exit(f"{text[-4000:]}\nbenchmark: error: {row} did not train and test: exit code {code}, see above")
    accuracy, least = float(accuracies[-1]), 0.97 if epochs >= 5 else 0.94
    if accuracy < least:  # five epochs give 0.976 to 0.983, one gives 0.955 to 0.97
        sys.exit(f"benchmark: error: {row} has a test accuracy of {accuracy:.4f}, not at least {least}")
    if measured := re.findall(r"Measured (\{.*\})", text):
        return dict(json.loads(measured[-1]))
    fit = trained[0] - begun[0]
    if row in GROWTH:
        return {"fit_s": fit, "fit_s_for_60000": fit / copies / epochs, "rest_s": figures["process_s"] - fit}
    return {"fit_s": fit, **figures, "test_acc": accuracy}


def spread(values: Sequence[float]) -> Figures:
    """Median, extremes and quartiles of a figure in all rounds."""
    q1, median, q3 = statistics.quantiles(values if len(values) > 1 else [*values] * 2, n=4, method="inclusive")
    return {"median": median, "min": min(values), "max": max(values), "q1": q1, "q3": q3}


def summarize(rounds: Sequence[dict[str, Figures]]) -> dict[str, Any]:
    """The spread of each figure of each row, and of each ratio, taken round by round."""
    rows, ratios = {}, []
    for row in [*COMMANDS, *CHILDREN]:
        if measured := [figures[row] for figures in rounds if row in figures]:
            rows[row] = {name: spread([each[name] for each in measured]) for name in measured[0]}
    for figure, row, to in RATIOS:
        if both := [figures for figures in rounds if {row, to} <= figures.keys()]:
            values = [figures[row][figure] / figures[to][figure] for figures in both]
            ratios.append({"figure": figure, "of": row, "to": to, **spread(values)})
    return {"rows": rows, "ratios": ratios}


def as_markdown(report: dict[str, Any]) -> str:
    """The report as tables: one for all rows that have the same figures, and one for the ratios."""
    load = report["load average before"]
    quiet = "a quiet machine" if load <= QUIET else "NOT A QUIET MACHINE, these times mean little"
    gpu = f"on the GPU {report['gpu']}; " if report["gpu"] else ""
    lines = [
        "# Benchmark",
        f"- {report['date']}, rounds: {len(report['rounds'])}, epochs: {report['epochs']}, `{report['command']}`",
        f"- {gpu}{report['cpu']}, {report['cores']} cores; Python {report['python']}, torch {report['torch']}",
        f"- load average before: {load:.1f}, {quiet}; busy processes beside: {report['busy']}",
        "- medians, with minimum and maximum",
    ]

    def table(*rows: Sequence[str]) -> None:
        lines.extend(["", *(f"| {' | '.join(cells)} |" for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]])])

    def text(each: Figures) -> str:
        return f"{each['median']:.4g} ({each['min']:.4g} to {each['max']:.4g})"

    kinds: dict[tuple[str, ...], list[list[str]]] = {}
    for row, figures in report["rows"].items():
        kinds.setdefault(tuple(figures), []).append([row, *map(text, figures.values())])
    for names, rows in kinds.items():
        table(["", *names], *rows)
    cells = [[r["figure"], r["of"], r["to"], text(r), f"{r['q1']:.4g} to {r['q3']:.4g}"] for r in report["ratios"]]
    if cells:
        table(["figure", "of", "to", "ratio, round by round", "quartiles"], *cells)
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    """What the system calls its processor."""
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()


def gpu_name() -> str:
    """What torch calls the GPU, or nothing without one. Another process asks it: this one does not import torch."""
    code = """if True:
        import torch
        if torch.cuda.is_available():
            print(torch.cuda.get_device_name())
        elif torch.backends.mps.is_available():
            print("MPS")"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def parse_arguments() -> argparse.Namespace:
    """The command line, checked as far as it can be before anything is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, metavar="N", help="how often everything is run (default 5; with --against 11)")
    add("--epochs", type=int, default=5, metavar="N", help="epochs of a training (default 5)")
    names = f"some of {' '.join(DEFAULT)} (default all; with --against: package)"
    add("--contenders", nargs="+", choices=DEFAULT, metavar="NAME", help=names)
    add("--keras", metavar="PYTHON", help="run Keras too, by this interpreter, which has keras and jax")
    add("--bf16-rounds", type=int, default=0, metavar="N", help="run package-bf16 too, in the first N rounds")
    add("--growth", action="store_true", help="measure up to 8 times the images, and 20 epochs, too")
    add("--against", type=Path, metavar="PATH", help="run the command of another checkout of this repository too")
    add("--accelerator", choices=["auto", "cpu", "gpu"], default="auto", help="default: auto, a GPU if there is one")
    add("--busy", type=int, default=0, metavar="N", help="run all beside N processes that only count (default 0)")
    add("--out", type=Path, default="benchmark_results", metavar="DIR", help="default: ./benchmark_results")
    add("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()

    options.rounds = (11 if options.against else 5) if options.rounds is None else options.rounds
    if options.rounds < 1 or options.epochs < 1:
        parser.error("--rounds and --epochs must be at least 1")
    if options.busy < 0:
        parser.error(f"--busy must be 0 or more, got {options.busy}")
    if options.keras and not os.access(options.keras, os.X_OK):
        parser.error(f"--keras must be a Python interpreter, got {options.keras!r}")
    if options.against and not (options.against / "mnist_lightning" / "__main__.py").is_file():
        parser.error(f"--against must be a checkout of this repository, got {str(options.against)!r}")
    options.gpu = "" if options.child or options.accelerator == "cpu" else gpu_name()
    if options.accelerator == "gpu" and not options.child and not options.gpu:
        parser.error("--accelerator gpu needs a GPU, and torch finds none here")
    for name in ("keras", "against"):  # processes run elsewhere; not resolved, as a venv's Python is a link
        setattr(options, name, getattr(options, name) and Path(getattr(options, name)).absolute())
    asked = {"keras": options.keras, "against": options.against, "package-bf16": options.bf16_rounds}
    rows = options.contenders or (["package"] if options.against else DEFAULT)
    options.rows = [*rows, *(row for row, wanted in asked.items() if wanted), *(GROWTH if options.growth else ())]
    return options


def main() -> None:
    """Run the rounds, and report after each, so that a run that is cut short has its report too."""
    options = parse_arguments()
    if options.child:
        return CHILDREN[options.child](options.epochs, options.accelerator)
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["benchmark.py", *sys.argv[1:]]),
        "epochs": options.epochs,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": options.gpu,
        "load average before": os.getloadavg()[0],
        "busy": options.busy,
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "rounds": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for checkout in filter(None, [CHECKOUT, options.against]):
        # From disk into memory, and compiled, before the first clock starts.
        run_process([sys.executable, "-m", "mnist_lightning", "fit", "--help"], str(options.out), checkout)
    with busy(options.busy):
        run_rounds(options, report)
    print(as_markdown(report), end="")


def run_rounds(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Run all contenders, round by round, and write the report after each round."""
    for number in range(options.rounds):
        report["rounds"].append({})
        first = number % len(options.rows)
        for row in options.rows[first:] + options.rows[:first]:
            if row != "package-bf16" or number < options.bf16_rounds:
                figures = report["rounds"][-1][row] = measure(row, options)
                said = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                print(f"round {number + 1}/{options.rounds}  {row:<14}  {said}", file=sys.stderr, flush=True)
        report |= summarize(report["rounds"])
        (options.out / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
        (options.out / "benchmark.md").write_text(as_markdown(report))


if __name__ == "__main__":
    main()
