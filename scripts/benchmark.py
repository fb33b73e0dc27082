"""Time this package's command beside a hand-written torch loop, textbook Lightning and Keras.

    python scripts/benchmark.py                                       # five rounds
    python scripts/benchmark.py --rounds 1 --contenders hand package  # a quick look
    python scripts/benchmark.py --growth --keras ~/keras/bin/python   # everything

Every contender trains the tutorial's network on MNIST, 784-512-10 at a batch size of 128, and then
evaluates it on the 10,000 test images: in a process of its own, in an empty folder, on a terminal
of its own, so that progress bars are drawn. A round runs each contender once, and each round begins
with another one. Ratios are taken within a round: a machine that slows down slows both sides.

The report goes to standard output and, as ``benchmark.md`` and ``benchmark.json``, into ``--out``;
progress goes to standard error. A contender that ends with a test accuracy below 0.97 has not done
the work: its times are withheld, and the script exits with code 1.

The package must be installed, nothing is downloaded, and the system must be POSIX (``pty``, ``wait4``).
"""

# Nothing heavy is imported up here. Linux counts the memory of the process that started a program
# into that program's peak, and the interpreter given by --keras runs this same file without torch.
import argparse
import contextlib
import fcntl
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import platform
import pty
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

BATCH_SIZE = 128
LEAST_ACCURACY = 0.97  # five epochs give 0.978 to 0.982
QUIET = 0.5  # A load average: with two other programs on two cores, a fit took 425 s where it takes 10.

Figures = dict[str, float]
"""What was measured of one process: seconds, ``peak_mib`` and ``test_acc``."""


class Contender(NamedTuple):
    """What a child process runs (a function below, by name), and what it is told."""

    child: str
    options: dict[str, Any]


CONTENDERS = {
    "hand": Contender("hand", {}),
    "hand-medium": Contender("hand", {"matmul_precision": "medium"}),
    "textbook": Contender("textbook", {}),
    "package": Contender("package", {}),
    "package-medium": Contender("package", {"flags": ["--matmul_precision", "medium"]}),
    "package-bf16": Contender("package", {"flags": ["--trainer.precision", "bf16-mixed"]}),
    "keras": Contender("keras", {}),
}
ON_REQUEST = {"keras", "package-bf16"}  # the one needs an interpreter; the other is slow where a CPU has no bf16

IMPORTS = "import torch, torchvision.datasets, lightning.pytorch, torchmetrics, jsonargparse"
STARTUP = {  # what Python is told, and the exit code it is to give
    "bare interpreter": (["-c", "pass"], 0),
    "bare imports": (["-c", IMPORTS], 0),
    "fit --help": (["-m", "mnist_lightning", "fit", "--help"], 0),
    "--help": (["-m", "mnist_lightning", "--help"], 0),
    "--version": (["-m", "mnist_lightning", "--version"], 0),
    "a mistyped command": (["-m", "mnist_lightning", "fitt"], 2),
}

GROWTH = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 5), (1, 20)]
"""How many times the 60,000 images, and for how many epochs."""


class Ratio(NamedTuple):
    """A figure over another of the same round, and what it is meant not to exceed."""

    figure: str
    row: str
    to_figure: str
    to_row: str
    goal: float | None = None


RATIOS = [
    Ratio("fit", "package", "fit", "hand", 1.10),
    Ratio("fit", "package-medium", "fit", "hand", 0.75),
    Ratio("fit", "package-medium", "fit", "hand-medium"),
    Ratio("fit", "package-bf16", "fit", "hand"),
    Ratio("fit", "hand-medium", "fit", "hand"),
    Ratio("fit", "textbook", "fit", "hand"),
    Ratio("fit", "keras", "fit", "hand"),
    Ratio("process", "package", "process", "hand"),
    Ratio("process", "package", "process", "textbook", 0.45),
    Ratio("process", "package-medium", "process", "keras", 1.00),
    Ratio("peak_mib", "package", "peak_mib", "hand", 1.15),
    Ratio("rest", "evaluation", "bare_rest", "evaluation", 1.5),
    *(Ratio("process", name, "process", "bare imports", 1.15) for name in [*STARTUP][2:]),
]


# ------------------------------------------------------------------------------------ the contenders
# Each function below runs in a process of its own, and puts what it measures into `figures`.


def hand(figures: Figures, root: str, epochs: int, accelerator: str, matmul_precision: str = "highest") -> None:
    """The loop that a careful person writes by hand: nothing waits for the device within an epoch."""
    import torch
    import torch.nn.functional as F
    from torchvision.datasets import MNIST

    torch.set_float32_matmul_precision(matmul_precision)
    device = _device(accelerator)
    train, test = MNIST(root, train=True), MNIST(root, train=False)
    images, targets = (train.data.view(-1, 784).float() / 255).to(device), train.targets.to(device)
    test_images, test_targets = (test.data.view(-1, 784).float() / 255).to(device), test.targets.to(device)
    network = _network().to(device)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
    _note_first_step(figures)

    began = time.perf_counter()
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
    figures["fit"] = time.perf_counter() - began

    began = time.perf_counter()
    figures["test_acc"] = _evaluate(network, test_images.split(BATCH_SIZE), test_targets.split(BATCH_SIZE))
    figures["evaluate"] = time.perf_counter() - began


def textbook(figures: Figures, root: str, epochs: int, accelerator: str) -> None:
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

    train = DataLoader(MNIST(root, train=True, transform=ToTensor()), batch_size=BATCH_SIZE, shuffle=True)
    test = DataLoader(MNIST(root, train=False, transform=ToTensor()), batch_size=BATCH_SIZE)
    model = TextbookClassifier()
    trainer = Trainer(max_epochs=epochs, accelerator=accelerator)
    _note_first_step(figures)

    began = time.perf_counter()
    trainer.fit(model, train)
    figures["fit"] = time.perf_counter() - began

    began = time.perf_counter()
    figures["test_acc"] = trainer.test(model, test)[0]["test_acc"]
    figures["evaluate"] = time.perf_counter() - began


def package(figures: Figures, root: str, epochs: int, accelerator: str, flags: Sequence[str] = ()) -> None:
    """``python -m mnist_lightning fit``, with a clock around ``Trainer.fit`` and ``Trainer.test``."""

    def fit(trainer_fit: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        _note_first_step(figures)
        began = time.perf_counter()
        trainer_fit(*args, **kwargs)
        figures["fit"] = time.perf_counter() - began

    def test(trainer_test: Callable[..., Any], trainer: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        results = trainer_test(trainer, *args, **kwargs)
        figures["evaluate"] = time.perf_counter() - began
        figures["test_acc"] = float(trainer.callback_metrics["test_acc"])
        return results

    _run_command(["fit", "--trainer.max_epochs", str(epochs), "--trainer.accelerator", accelerator, *flags], fit, test)


def evaluation(figures: Figures, root: str, epochs: int, accelerator: str) -> None:
    """``python -m mnist_lightning test`` of the run in this folder, taken apart into what it costs.

    Besides the first ``Trainer.test``, which reads and checks the test images, it times more on the
    same Trainer, progress bar and all: of the whole set, and of its first batch alone. The fixed cost
    is that of the first batch, and that of the report with its pictures, which take longer the more
    mistakes there are to show. What the other batches cost is compared with a bare forward pass over
    them.
    """

    def test(trainer_test: Callable[..., Any], trainer: Any, model: Any, datamodule: Any, **kwargs: Any) -> Any:
        def seconds(run: Callable[[], Any]) -> float:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        def evaluate(limit: int | float) -> Any:
            trainer.limit_test_batches = limit
            return trainer_test(trainer, model, datamodule=datamodule, **kwargs)

        def without_report(limit: int | float) -> tuple[float, float]:
            """Seconds of an evaluation, the report's apart."""
            took.clear()
            total = seconds(lambda: evaluate(limit))
            return total - sum(took), sum(took)

        took: list[float] = []
        (report,) = (callback for callback in trainer.callbacks if type(callback).__name__ == "ReportCallback")
        end = report.on_test_end
        report.on_test_end = lambda *args: took.append(seconds(lambda: end(*args)))

        figures["first"] = seconds(lambda: evaluate(1.0))
        images, targets = zip(*datamodule.test_dataloader(), strict=True)
        network = _network()  # torch's own layers, as one writes them by hand
        network.load_state_dict(model.network.state_dict())
        network.to(images[0].device)
        times = [
            (
                *without_report(1.0),
                without_report(1)[0],
                seconds(lambda: _evaluate(network, images[1:], targets[1:])),
            )
            for _ in range(7)
        ]
        for figure, values in zip(("batches", "report", "fixed", "bare_rest"), zip(*times, strict=True), strict=True):
            figures[figure] = statistics.median(values)
        figures["rest"] = figures["batches"] - figures["fixed"]
        return evaluate(1.0)

    _run_command(["test", "--trainer.accelerator", accelerator], lambda *args, **kwargs: None, test)


def growth(figures: Figures, root: str, epochs: int, accelerator: str, copies: int) -> None:
    """The package's classes on MNIST repeated, with metrics, bar, log and checkpoints as in its command."""
    import numpy as np
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from mnist_lightning import MNISTClassifier, MNISTDataModule
    from mnist_lightning.checkpoint import SafeCheckpointIO
    from mnist_lightning.data import MNISTDataset, load_mnist
    from mnist_lightning.progress import EpochProgress

    class RepeatedMNIST(MNISTDataModule):
        def setup(self, stage: str) -> None:
            if self.train_dataset is None:
                images, targets = load_mnist(root, train=True)
                self.train_dataset = MNISTDataset(images.repeat(copies, 1, 1), targets.repeat(copies))

        def train_order(self, epoch: int) -> Any:
            assert self.train_dataset is not None
            return np.random.default_rng((self.seed, epoch)).permutation(len(self.train_dataset))

    data = RepeatedMNIST()
    data.setup("fit")  # before the clock starts, as the command does
    trainer = Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        callbacks=[EpochProgress(), ModelCheckpoint(filename="last")],
        logger=CSVLogger("."),
        plugins=[SafeCheckpointIO()],
        enable_model_summary=False,
    )
    _note_first_step(figures)
    began = time.perf_counter()
    trainer.fit(MNISTClassifier(), datamodule=data)
    figures["fit"] = time.perf_counter() - began


def keras(figures: Figures, root: str, epochs: int, accelerator: str) -> None:
    """Keras 3 on JAX, as the tutorial has it, in whatever interpreter has both."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["KERAS_HOME"] = str(Path.cwd())  # no settings of the user's
    if accelerator == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import numpy as np
    from keras import Sequential, callbacks, layers, optimizers, utils

    def load(split: str) -> tuple[Any, Any]:
        raw = Path(root) / "MNIST" / "raw"  # IDX files: a header, and bytes
        pixels = np.fromfile(raw / f"{split}-images-idx3-ubyte", np.uint8, offset=16)
        digits = np.fromfile(raw / f"{split}-labels-idx1-ubyte", np.uint8, offset=8)
        return pixels.reshape(-1, 784).astype("float32") / 255, utils.to_categorical(digits)

    def first_step(batch: int, logs: Any) -> None:
        figures.setdefault("first_step", time.monotonic())

    (images, targets), test = load("train"), load("t10k")
    model = Sequential([layers.Dense(512, activation="relu"), layers.Dense(10, activation="softmax")])
    rmsprop = optimizers.RMSprop(learning_rate=1e-3, rho=0.9, epsilon=1e-7)
    model.compile(optimizer=rmsprop, loss="categorical_crossentropy", metrics=["accuracy"])

    began = time.perf_counter()
    clock = callbacks.LambdaCallback(on_train_batch_end=first_step)
    model.fit(images, targets, epochs=epochs, batch_size=BATCH_SIZE, callbacks=[clock])
    figures["fit"] = time.perf_counter() - began

    began = time.perf_counter()
    figures["test_acc"] = model.evaluate(*test, batch_size=BATCH_SIZE)[1]
    figures["evaluate"] = time.perf_counter() - began


def machine(figures: dict[str, Any], root: str, epochs: int, accelerator: str) -> None:
    """What the head of the report says of machine and software."""
    from importlib.metadata import version

    import torch

    import mnist_lightning

    device = _device(accelerator)
    figures["machine"] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        "packages": {"Python": platform.python_version(), "mnist_lightning": mnist_lightning.__version__}
        | {name: version(name) for name in ("torch", "torchvision", "lightning", "torchmetrics")},
    }


CHILDREN: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (hand, textbook, package, evaluation, growth, keras, machine)
}


def _network() -> Any:
    """The tutorial's network with Keras's start."""
    from torch import nn

    hidden, output = nn.Linear(784, 512), nn.Linear(512, 10)
    for layer in (hidden, output):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), output)


def _device(accelerator: str) -> Any:
    """The device that Lightning takes for an accelerator."""
    import torch

    on_accelerator = accelerator != "cpu" and torch.accelerator.is_available()
    return torch.accelerator.current_accelerator() if on_accelerator else torch.device("cpu")


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
    print(f"loss {loss_sum.item() / n:.4f}  acc {correct.item() / n:.4f}")
    return float(correct.item() / n)


def _note_first_step(figures: Figures) -> None:
    """Have torch note the time after an optimizer's first step, whoever takes it: 0.1 µs on all others."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def note(*_: Any) -> None:
        if "first_step" not in figures:
            figures["first_step"] = time.monotonic()

    register_optimizer_step_post_hook(note)


def _run_command(args: list[str], fit: Callable[..., Any], test: Callable[..., Any]) -> None:
    """Run ``mnist-lightning`` with functions around ``Trainer.fit`` and ``Trainer.test``."""
    # Lightning must not be imported here, or the command would find its imports done, and no longer
    # in its own order: the Trainer is changed the moment the command has imported it.
    sys.meta_path.insert(0, _TrainerFinder(fit, test))
    sys.argv = ["mnist_lightning", *args]
    from mnist_lightning.__main__ import command

    command()


class _TrainerFinder(importlib.abc.MetaPathFinder):
    """Puts functions around two methods of Lightning's Trainer, as it is imported."""

    def __init__(self, fit: Callable[..., Any], test: Callable[..., Any]) -> None:
        self.around = {"fit": fit, "test": test}

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "lightning.pytorch.trainer.trainer":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_wrap(module: Any) -> None:
            execute(module)
            for method_name, around in self.around.items():
                method = getattr(module.Trainer, method_name)
                setattr(module.Trainer, method_name, _wrapped(method, around))

        loader.exec_module = execute_and_wrap
        return spec


def _wrapped(method: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)  # LightningCLI reads the signature, and makes flags of it
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(method, *args, **kwargs)

    return call


# ------------------------------------------------------------------------------------- the processes


class Finished(NamedTuple):
    """A process that is over."""

    code: int
    started: float  # on the clock of time.monotonic, which all processes share
    seconds: float
    cpu_seconds: float
    peak_mib: float
    screen: str


def run_process(command: Sequence[str], folder: str) -> Finished:
    """Run a program on a terminal of its own, and measure it from start to end."""
    terminal, programs_end = pty.openpty()
    fcntl.ioctl(programs_end, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))  # rows and columns
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=programs_end, stderr=programs_end)
    os.close(programs_end)
    screen = bytearray()
    try:
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while piece := os.read(terminal, 65_536):
                screen += piece
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        os.close(terminal)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Finished(process.returncode, started, seconds, cpu_seconds, peak, screen.decode(errors="replace"))


def run_child(python: str, child: str, options: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run one of the functions above in its own process.

    Returns:
        What it measured, with ``process`` and ``cpu`` (seconds) and ``peak_mib``; or else ``refused``, saying why.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / "figures.json"
        task = {"child": child, "options": options, "figures": str(path)}
        finished = run_process([python, str(Path(__file__).resolve()), "--child", json.dumps(task)], folder)
        if finished.code or not path.is_file():
            print(finished.screen[-4000:], file=sys.stderr)
            return {"refused": f"exit code {finished.code}"}
        figures: dict[str, Any] = json.loads(path.read_text())
    if "first_step" in figures:
        figures["first_step"] -= finished.started
    figures |= {"process": finished.seconds, "cpu": finished.cpu_seconds, "peak_mib": finished.peak_mib}
    accuracy = figures.get("test_acc", float("nan"))
    if child in {contender.child for contender in CONTENDERS.values()} and not accuracy >= LEAST_ACCURACY:
        return {"refused": f"test accuracy {accuracy:.4f} is not at least {LEAST_ACCURACY}"}
    return figures


def run_round(number: int, arguments: argparse.Namespace, root: str) -> dict[str, Figures]:
    """Run all that was asked for once.

    Returns:
        For each row of the report, its figures.
    """
    rows: dict[str, Any] = {}
    common = {"root": root, "epochs": arguments.epochs, "accelerator": arguments.accelerator}

    def say(row: str) -> None:
        figures = [
            f"{name} {value:.2f}" if name != "refused" else f"REFUSED: {value}" for name, value in rows[row].items()
        ]
        print(f"round {number + 1}/{arguments.rounds}  {row:<18}  {'  '.join(figures)}", file=sys.stderr, flush=True)

    def measure(row: str, child: str, options: dict[str, Any], folder: str, python: str = sys.executable) -> None:
        rows[row] = run_child(python, child, {**common, **options}, folder)
        say(row)

    first = number % len(arguments.contenders) if arguments.contenders else 0
    for name in arguments.contenders[first:] + arguments.contenders[:first]:
        if name == "package-bf16" and number >= arguments.bf16_rounds:
            continue
        with tempfile.TemporaryDirectory() as folder:
            python = arguments.keras if name == "keras" else sys.executable
            measure(name, *CONTENDERS[name], folder, python)
            if name == "package" and "refused" not in rows[name]:
                measure("evaluation", "evaluation", {}, folder)
    with tempfile.TemporaryDirectory() as folder:
        for name, (args, code) in STARTUP.items() if "package" in arguments.contenders else ():
            finished = run_process([sys.executable, *args], folder)
            as_expected = finished.code == code
            rows[name] = {"process": finished.seconds} if as_expected else {"refused": f"exit code {finished.code}"}
            say(name)
    for copies, epochs in GROWTH if arguments.growth else ():
        with tempfile.TemporaryDirectory() as folder:
            measure(growth_row(copies, epochs), "growth", {"copies": copies, "epochs": epochs}, folder)
    return rows


def growth_row(copies: int, epochs: int) -> str:
    """The name of a row that shows growth."""
    return f"{copies} x 60,000 images, {epochs} epoch{'s' * (epochs > 1)}"


# --------------------------------------------------------------------------------------- the report


class Spread(NamedTuple):
    """Of one figure in all rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.min:.{digits}f} to {self.max:.{digits}f})"


def refusals(rounds: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The rows that were refused in any round, and why."""
    return {row: figures["refused"] for rows in rounds for row, figures in rows.items() if "refused" in figures}


def summaries(rounds: Sequence[dict[str, Any]]) -> dict[str, dict[str, Spread]]:
    """Median, min and max of every figure of every row that was not refused."""
    refused = refusals(rounds)
    values: dict[str, dict[str, list[float]]] = {}
    for rows in rounds:
        for row, figures in rows.items():
            for figure, value in figures.items() if row not in refused else ():
                values.setdefault(row, {}).setdefault(figure, []).append(value)
    return {row: {figure: Spread.of(many) for figure, many in figures.items()} for row, figures in values.items()}


def paired(rounds: Sequence[dict[str, Any]], ratio: Ratio) -> Spread | None:
    """Median, min and max of a ratio's values in the rounds that have both figures, if any has."""
    if {ratio.row, ratio.to_row} & refusals(rounds).keys():
        return None
    values = [
        rows[ratio.row][ratio.figure] / rows[ratio.to_row][ratio.to_figure]
        for rows in rounds
        if ratio.figure in rows.get(ratio.row, {}) and ratio.to_figure in rows.get(ratio.to_row, {})
    ]
    return Spread.of(values) if values else None


def as_json(report: dict[str, Any]) -> str:
    """The report with every round in it, but without the figures of what was refused."""
    rounds, refused = report["rounds"], refusals(report["rounds"])
    ratios = [{**ratio._asdict(), **spread._asdict()} for ratio in RATIOS if (spread := paired(rounds, ratio))]
    summary = {
        row: {figure: spread._asdict() for figure, spread in figures.items()}
        for row, figures in summaries(rounds).items()
    }
    kept = [{row: figures for row, figures in rows.items() if row not in refused} for rows in rounds]
    return json.dumps({**report, "refused": refused, "summary": summary, "ratios": ratios, "rounds": kept}, indent=2)


def as_markdown(report: dict[str, Any]) -> str:
    """The report as tables, of the rows that were measured."""
    rounds = report["rounds"]
    refused, summary = refusals(rounds), summaries(rounds)
    facts = report["machine"]
    lines = [
        "# Benchmark",
        "",
        f"- {report['date']}, {len(rounds)} round{'s' * (len(rounds) > 1)} of `{report['command']}`",
        f"- {facts['cpu']}, cores: {facts['cores']}, torch's threads: {facts['threads']}, its CPU capability: "
        f"{facts['cpu_capability']}; device {facts['device']}",
        f"- {', '.join(f'{name} {version}' for name, version in facts['packages'].items())}",
        f"- load average before the start {report['load']:.1f}"
        + (": NOT A QUIET MACHINE, these times mean little" if report["load"] > QUIET else ""),
        *(f"- {note}" for note in report["notes"]),
        "",
        "Medians, with min and max.",
    ]
    lines += [f"\n**REFUSED: {row}: {why}. Its figures are withheld.**" for row, why in refused.items()]

    def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], remark: str) -> None:
        if rows:
            lines.extend(["", f"## {title}", "", remark, ""])
            lines.extend(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])

    def cell(row: str, figure: str, digits: int = 2) -> str:
        spread = summary.get(row, {}).get(figure)
        return spread.text(digits) if spread else ""

    columns = [  # head, figure, digits
        ("fit, s", "fit", 2),
        ("process, s", "process", 2),
        ("CPU time, s", "cpu", 2),
        ("to the first step, s", "first_step", 2),
        ("evaluation, s", "evaluate", 3),
        ("peak, MiB", "peak_mib", 0),
        ("test accuracy", "test_acc", 4),
    ]
    contenders = [name for name in CONTENDERS if name in summary or name in refused]
    table(
        f"Contenders, {report['epochs']} epoch{'s' * (report['epochs'] > 1)}",
        ["contender", *(head for head, _, _ in columns)],
        [
            [name, *(cell(name, figure, digits) for _, figure, digits in columns)]
            if name not in refused
            else [name, f"refused: {refused[name]}", *[""] * (len(columns) - 1)]
            for name in contenders
        ],
        "Fit is the training alone, with all that `Trainer.fit` does; the process is everything from start to exit. "
        "The first step is over so long after the process started; CPU time is the whole process's, on all cores.",
    )
    ratios = [(ratio, spread) for ratio in RATIOS if (spread := paired(rounds, ratio))]
    table(
        "Ratios, paired by round",
        ["figure", "of", "to", "ratio", "goal", "reached"],
        [
            [
                ratio.figure,
                ratio.row,
                ratio.to_row if ratio.figure == ratio.to_figure else f"{ratio.to_row}: {ratio.to_figure}",
                spread.text(3),
                f"{ratio.goal:.2f}" if ratio.goal else "",
                ("yes" if spread.median <= ratio.goal else "NO") if ratio.goal else "",
            ]
            for ratio, spread in ratios
        ],
        "Below 1, the first is faster, or takes less memory.",
    )
    table(
        "Evaluation of the 10,000 test images",
        ["what", "s"],
        [
            [what, cell("evaluation", figure, 3)]
            for figure, what in {
                "first": "the first `Trainer.test`, which reads and checks the images (`first`)",
                "report": "after that, the fixed cost: the report and its pictures (`report`)",
                "fixed": "and `Trainer.test` of the first batch (`fixed`)",
                "rest": "and of the other 78 batches (`rest`)",
                "bare_rest": "a bare forward pass over these 78 (`bare_rest`)",
            }.items()
            if "evaluation" in summary
        ],
        "Inside `python -m mnist_lightning test`, bar and all.",
    )
    table(
        "Start-up",
        ["what", "s"],
        [[name, cell(name, "process")] for name in STARTUP if name in summary],
        f"Whole processes. The bare imports are `{IMPORTS}`.",
    )
    sizes = {growth_row(copies, epochs): copies * epochs for copies, epochs in GROWTH}
    table(
        "Growth",
        ["what", "fit, s", "of this for 60,000 images, s", "the rest of the process, s", "CPU time of the process, s"],
        [
            [
                row,
                cell(row, "fit"),
                f"{summary[row]['fit'].median / size:.2f}",
                f"{summary[row]['process'].median - summary[row]['fit'].median:.2f}",
                cell(row, "cpu"),
            ]
            for row, size in sizes.items()
            if row in summary
        ],
        "The package's classes on MNIST repeated, each epoch logged and saved. A cost that is linear gives the same "
        "third column all the way down, and a start-up that is constant the same fourth.",
    )
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    """What the system calls its processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ----------------------------------------------------------------------------------- the command line


def parse_arguments() -> argparse.Namespace:
    """The command line, checked as far as it can be before anything is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often everything is run (default 5)")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="epochs of a training (default 5)")
    parser.add_argument(
        "--contenders",
        nargs="*",
        choices=[*CONTENDERS],
        default=[name for name in CONTENDERS if name not in ON_REQUEST],
        metavar="NAME",
        help=f"which to run, of {', '.join(CONTENDERS)}; start-up and evaluation are measured beside 'package' "
        f"(default: all but {' and '.join(sorted(ON_REQUEST))})",
    )
    parser.add_argument("--keras", metavar="PYTHON", help="run Keras too, by this interpreter, which has keras and jax")
    parser.add_argument(
        "--bf16-rounds", type=int, default=0, metavar="N", help="run 'package-bf16' too, in the first N rounds"
    )
    parser.add_argument("--growth", action="store_true", help="measure up to 8 times the images and 20 epochs too")
    parser.add_argument(
        "--accelerator", choices=["auto", "cpu"], default="auto", help="cpu leaves a GPU alone (default auto)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark_results"), metavar="DIR", help="default: ./benchmark_results"
    )
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.child:
        return arguments
    if arguments.rounds < 1 or arguments.epochs < 1:
        parser.error("--rounds and --epochs must be at least 1")
    if arguments.keras:
        if not os.access(arguments.keras, os.X_OK):
            parser.error(f"--keras must be a Python interpreter, got {arguments.keras!r}")
        arguments.keras = str(Path(arguments.keras).absolute())  # not resolved: a venv's Python is a link
        arguments.contenders = [*arguments.contenders, "keras"]
    elif "keras" in arguments.contenders:
        parser.error("the contender keras needs --keras PYTHON")
    if "package-bf16" in arguments.contenders:
        arguments.bf16_rounds = arguments.bf16_rounds or arguments.rounds
    elif arguments.bf16_rounds:
        arguments.contenders = [*arguments.contenders, "package-bf16"]
    arguments.contenders = list(dict.fromkeys(arguments.contenders))
    if not arguments.contenders and not arguments.growth:
        parser.error("nothing to measure: name --contenders, or ask for --growth")
    return arguments


def main() -> None:
    """Run the rounds, and report after each, so that a run that is cut short has its report too."""
    arguments = parse_arguments()
    if arguments.child:
        figures: Figures = {}
        CHILDREN[arguments.child["child"]](figures, **arguments.child["options"])
        Path(arguments.child["figures"]).write_text(json.dumps(figures))
        return
    spec = importlib.util.find_spec("mnist_lightning")
    if spec is None or spec.origin is None:
        sys.exit(f"benchmark: error: mnist_lightning is not installed for {sys.executable}: pip install it first")
    root = str(Path(spec.origin).parent)  # mnist_lightning.data.PACKAGED, without its imports
    arguments.out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]

    with tempfile.TemporaryDirectory() as folder:
        # This also brings the libraries from the disk into memory, before the first clock starts.
        facts = run_child(
            sys.executable, "machine", {"root": root, "epochs": 0, "accelerator": arguments.accelerator}, folder
        )
        if "refused" in facts:
            sys.exit("benchmark: error: torch cannot be imported, see above")
        notes = []
        if {"package", "package-medium"} & {*arguments.contenders}:
            options = run_process([sys.executable, *STARTUP["fit --help"][0]], folder).screen
            if "package-medium" in arguments.contenders and "--matmul_precision" not in options:
                arguments.contenders.remove("package-medium")
                notes.append("package-medium is left out: this version's `fit` has no `--matmul_precision`")
                print(notes[-1], file=sys.stderr)

    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["benchmark.py", *sys.argv[1:]]),
        "epochs": arguments.epochs,
        "machine": facts["machine"],
        "notes": notes,
        "load": load,
        "rounds": [],
    }
    for number in range(arguments.rounds):
        report["rounds"].append(run_round(number, arguments, root))
        (arguments.out / "benchmark.json").write_text(as_json(report) + "\n")
        (arguments.out / "benchmark.md").write_text(as_markdown(report))
    print(as_markdown(report), end="")
    refused = refusals(report["rounds"])
    if refused:
        sys.exit("\n".join(f"benchmark: REFUSED {row}: {why}" for row, why in refused.items()))


if __name__ == "__main__":
    main()
