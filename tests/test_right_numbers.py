"""The layer's and the optimizer's numbers are torch's own, and no flag is taken that does nothing."""

import copy
import csv
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode

from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main
from mnist_lightning.model import OneDNNLinear, RMSprop, linear, prefer_onednn

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
only_there = pytest.mark.skipif(not AVX512, reason="this CPU has no AVX-512")

# -------------------------------------------------------------------- the layer


def whole(*shape: int) -> Tensor:
    """Small whole numbers: their products and sums are exact in float32, in any order."""
    return torch.randint(-3, 4, shape).float()


LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "contiguous": whole,
    "transposed": lambda rows, columns: whole(columns, rows).t(),
    "every second row": lambda rows, columns: whole(2 * rows, columns)[::2],
    "every second column": lambda rows, columns: whole(rows, 2 * columns)[:, ::2],
    "one row for all": lambda rows, columns: whole(1, columns).expand(rows, columns),
    "one column for all": lambda rows, columns: whole(rows, 1).expand(rows, columns),
    "rows that overlap": lambda rows, columns: whole(rows + columns).unfold(0, columns, 1)[:rows],
}
BIASES: dict[str, Callable[[int], Tensor | None]] = {
    "none": lambda size: None,
    "contiguous": whole,
    "every second": lambda size: whole(2 * size)[::2],
    "one for all": lambda size: whole(1).expand(size),
    "a number": lambda size: whole(),
}


def as_onednn(plain: nn.Linear) -> nn.Linear:
    layer = copy.copy(plain)  # the same parameters, with their strides
    layer.__class__ = OneDNNLinear
    return layer


def derivatives(layer: nn.Linear, images: Tensor, coefficients: Tensor) -> list[Tensor]:
    """The product, and the first and second derivatives of something that depends on all of it."""
    images = images.detach().requires_grad_()
    leaves = [images, *layer.parameters()]
    product = layer(images)
    value = (product.square() * coefficients).sum() + (product * coefficients).sum()
    plain = torch.autograd.grad(product, leaves, coefficients, retain_graph=True)
    first = torch.autograd.grad(value, leaves, create_graph=True)
    directions = [torch.arange(leaf.numel()).reshape(leaf.shape) % 3 for leaf in leaves]
    second = torch.autograd.grad(sum((f * d).sum() for f, d in zip(first, directions, strict=True)), leaves)
    return [product.detach(), *plain, *first, *second]


@only_there
@pytest.mark.parametrize(
    ("of", "layout"),
    [
        *((of, layout) for of in ("images", "weight", "coefficients") for layout in LAYOUTS),
        *(("bias", layout) for layout in BIASES),
    ],
)
@settings(deadline=None, max_examples=20)
@given(batch=st.sampled_from([0, 1, 2, 17, 33]), inputs=st.integers(1, 40), outputs=st.integers(1, 40))
def test_the_layer_and_its_derivatives_are_those_of_float64(
    of: str, layout: str, batch: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    shapes = {"images": (batch, inputs), "weight": (outputs, inputs), "coefficients": (batch, outputs)}
    tensors = {name: LAYOUTS[layout if name == of else "contiguous"](*shape) for name, shape in shapes.items()}
    images, weight, coefficients = tensors.values()
    bias = BIASES[layout if of == "bias" else "contiguous"](outputs)
    plain = nn.Linear(inputs, outputs)
    plain.weight = nn.Parameter(weight)
    plain.bias = None if bias is None else nn.Parameter(bias)
    ours = derivatives(as_onednn(plain), images, coefficients)
    exact = derivatives(plain.double(), images.double(), coefficients.double())
    for mine, true in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine.double(), true)


@only_there
@pytest.mark.parametrize("onednn_first", [True, False])
@pytest.mark.parametrize("kind", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_a_parametrized_layer_is_computed_as_torch_s(
    kind: Callable[[nn.Module], nn.Module], onednn_first: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(784, 512))
    exact = copy.deepcopy(network).double()
    if onednn_first:
        prefer_onednn(network)
    torch.manual_seed(1)  # spectral_norm begins with random vectors
    kind(network[0])
    prefer_onednn(network)
    torch.manual_seed(1)
    kind(exact[0])
    exact.load_state_dict(network.state_dict())
    images = torch.rand(64, 784)
    for _ in range(3):
        network(images).square().mean().backward()
        exact(images.double()).square().mean().backward()
    for mine, true in zip(network.parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert (mine.grad - true.grad).norm() < 1e-5 * true.grad.norm()


@only_there
def test_a_parametrization_is_computed_once_a_product() -> None:
    class Doubled(nn.Module):
        times = 0

        def forward(self, weight: Tensor) -> Tensor:
            self.times += 1
            return 2 * weight

    layer = as_onednn(nn.Linear(784, 512))
    doubled = Doubled()
    parametrize.register_parametrization(layer, "weight", doubled)
    doubled.times = 0
    layer(torch.rand(8, 784))
    assert doubled.times == 1


def dual(layer: nn.Linear, images: Tensor, direction: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(images, direction))).tangent


def dual_gradient(layer: nn.Linear, images: Tensor, direction: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    product = layer(images)
    with forward_ad.dual_level():
        along = forward_ad.make_dual(torch.ones_like(product), product.detach())
        return forward_ad.unpack_dual(torch.autograd.grad(product, images, along)[0]).tangent


def each_image_s_gradient(layer: nn.Linear, images: Tensor, direction: Tensor) -> Tensor:
    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (image[None],)).square().sum()

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), images)["weight"]


def batched_gradients(layer: nn.Linear, images: Tensor, direction: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: layer(x).sum(0), images, vectorize=True)


@only_there
@pytest.mark.parametrize(
    "derivative",
    [
        dual,
        dual_gradient,
        each_image_s_gradient,
        batched_gradients,
        lambda layer, images, direction: torch.func.jvp(layer, (images,), (direction,))[1],
        lambda layer, images, direction: torch.func.hessian(lambda x: layer(x).square().sum())(images),
        lambda layer, images, direction: torch.autograd.functional.hvp(
            lambda x: layer(x).pow(3).sum(), images, direction
        )[1],
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:FutureWarning")  # torch's own, when it derives forwards
def test_other_ways_to_derive_work_as_with_torch_s_layer(derivative: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(50, 60)
    images, direction = torch.rand(4, 50), torch.rand(4, 50)
    ours = derivative(as_onednn(plain), images, direction)
    true = derivative(plain.double(), images.double(), direction.double())
    assert (ours - true).norm() < 1e-6 * true.norm()


@only_there
def test_the_layer_s_operations_are_counted_as_torch_s() -> None:
    with FlopCounterMode(display=False) as counter:
        as_onednn(nn.Linear(784, 512))(torch.rand(128, 784)).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 128 * 784 * 512  # the product, and its derivative by the weights


@only_there
@pytest.mark.slow
def test_the_layer_can_be_compiled_and_exported() -> None:
    plain = nn.Linear(784, 512)
    layer, images = as_onednn(plain), torch.rand(8, 784)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(images), plain(images))
    assert torch.equal(torch.export.export(nn.Sequential(layer), (images,)).module()(images), plain(images))


# ----------------------------------------------------------- the layer's threads

LAYER = """
import sys

import pytest
import torch
from torch import nn

from mnist_lightning.model import linear
from mnist_lightning.errors import InputError

whole = lambda *shape: torch.randint(-3, 4, shape).float()


def uses_onednn():
    plain = nn.Linear(784, 512)
    layer = linear.OneDNNLinear(784, 512)
    layer.load_state_dict(plain.state_dict())
    images = torch.rand(128, 784)
    same = torch.equal(layer(images), plain(images))
    layer.load_state_dict({"weight": whole(512, 784), "bias": whole(512)})
    for _ in range(3):
        images = whole(128, 784).requires_grad_()
        exact_layer, exact_images = nn.Linear(784, 512).double(), images.detach().double().requires_grad_()
        exact_layer.load_state_dict(layer.state_dict())
        for rows in (1, 64, 128):
            results = []
            for module, input in ((layer, images), (exact_layer, exact_images)):
                torch.full((10**6,), torch.nan)  # what is not computed is what was in memory before
                product = module(input[:rows])
                results.append([product, *torch.autograd.grad(product.square().sum(), [input, *module.parameters()])])
            assert all(torch.equal(mine.double(), true) for mine, true in zip(*results))
    return not same


"""
SURE = "torch.set_num_threads({}); assert uses_onednn()"
UNSURE = """
torch.set_num_threads({})
assert not uses_onednn()
torch.set_float32_matmul_precision("medium")
with pytest.raises(InputError, match=r"call torch.set_num_threads\\(1\\)$"):
    uses_onednn()
torch.set_float32_matmul_precision("highest")
"""
# A library that makes a team smaller and does not tell: only the numbers show it.
SILENT = "linear.teams_may_shrink = lambda: False"
NESTED = """
import ctypes
openmp, seen = ctypes.CDLL(torch._C.__file__), []
uses_onednn()
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: seen.append(uses_onednn()))
openmp.GOMP_parallel(region, None, 2, 0)
assert len(seen) == 2
"""


@only_there
@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "codes"),
    [
        ("OMP_DYNAMIC=false", [SURE.format(2), SURE.format(1), SURE.format(3), NESTED]),
        ("OMP_DYNAMIC=true", [UNSURE.format(2), SURE.format(1)]),
        ("OMP_MAX_ACTIVE_LEVELS=0", [UNSURE.format(2), SURE.format(1)]),
        ("OMP_MAX_ACTIVE_LEVELS=1", [SURE.format(2), NESTED]),
        ("OMP_THREAD_LIMIT=1", [UNSURE.format(2), SURE.format(1)]),
        ("OMP_THREAD_LIMIT=2", [SURE.format(2), UNSURE.format(3), SURE.format(2), NESTED]),
        ("OMP_MAX_ACTIVE_LEVELS=0", [SILENT, UNSURE.format(2), SURE.format(1)]),
        ("OMP_THREAD_LIMIT=2", [SILENT, SURE.format(2), UNSURE.format(3)]),
    ],
)
def test_the_layer_is_right_however_few_threads_openmp_gives(setting: str, codes: list[str]) -> None:
    name, value = setting.split("=")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", name: value}
    subprocess.run([sys.executable, "-c", LAYER + "\n".join(codes)], env=environment, check=True)


@only_there
def test_an_openmp_that_cannot_be_asked_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, images, threads = nn.Linear(784, 512), torch.rand(64, 784), torch.get_num_threads()
    monkeypatch.setattr(linear, "_OPENMP", object())
    try:
        torch.set_num_threads(2)
        assert torch.equal(as_onednn(plain)(images), plain(images))
    finally:
        torch.set_num_threads(threads)


MAIN = """
import os
import sys
import torch
from mnist_lightning.cli import main
main(sys.argv[1:])
assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (2, "2")
"""


@pytest.mark.slow
def test_the_command_is_right_however_few_threads_openmp_gives(tmp_path: Path) -> None:
    losses: dict[str, float] = {}
    for flags in ("--trainer.precision 64-true", "", "--matmul_precision medium", "--trainer.precision bf16-mixed"):
        folder = tmp_path / str(len(losses))
        limits = [f"--trainer.limit_{stage}_batches=20" for stage in ("train", "test")]
        command = ["fit", "--trainer.max_epochs=1", *limits, *flags.split()]
        subprocess.run(
            [sys.executable, "-c", MAIN, *command, f"--trainer.default_root_dir={folder}"],
            env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "1"},
            check=True,
        )
        with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as rows:
            losses[flags] = float(next(csv.DictReader(rows))["train_loss"])
    exact = losses["--trainer.precision 64-true"]
    assert losses.pop("") == pytest.approx(exact, rel=1e-5)
    assert list(losses.values()) == pytest.approx([exact] * 3, rel=1e-2)


# ---------------------------------------------------------------- the optimizer

GROUPS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-3, 0.1, 1, torch.tensor(1e-2)]),
        "alpha": st.sampled_from([0.9, 0.0, 1.0, 1.5]),
        "eps": st.sampled_from([1e-7, 1e-3, 0.0]),
        "weight_decay": st.sampled_from([0.0, 0.1, 0]),
    },
    optional={
        "momentum": st.sampled_from([0, 0.9]),
        "centered": st.booleans(),
        "maximize": st.booleans(),
        "foreach": st.sampled_from([None, True, False]),
        "differentiable": st.just(False),
    },
)
Groups = list[dict[str, Any]]


def parameters(number: int, dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(number)
    return [nn.Parameter(torch.randn(3, 5, generator=generator, dtype=dtype)) for _ in range(2)]


def take_steps(optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """What the optimizer has made of its parameters, and of its own tensors."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
            param.grad[0] = 0
        optimizer.step()
    states = [optimizer.state[param] for param in params]
    return [*(param.detach() for param in params), *(state[name] for state in states for name in sorted(state))]


def same(ours: list[Tensor], torch_s: list[Tensor]) -> bool:
    assert len(ours) == len(torch_s)
    return all(
        torch.equal(torch.nan_to_num(o, 123), torch.nan_to_num(t, 123)) for o, t in zip(ours, torch_s, strict=True)
    )


@settings(deadline=None, max_examples=100)
@given(
    options=st.lists(GROUPS, min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
    loaded=st.booleans(),
)
def test_every_group_has_torch_s_own_step(options: Groups, dtype: torch.dtype, loaded: bool) -> None:
    def groups() -> Groups:
        return [{"params": parameters(number, dtype), **copy.deepcopy(group)} for number, group in enumerate(options)]

    torch_s = torch.optim.RMSprop(groups(), lr=1e-3, alpha=0.9, eps=1e-7)
    if loaded:  # into groups without any options
        take_steps(torch_s, range(2))
        plain = [{"params": group["params"]} for group in copy.deepcopy(torch_s.param_groups)]
        ours = RMSprop(plain, lr=1e-3, alpha=0.9, eps=1e-7)
        ours.load_state_dict(copy.deepcopy(torch_s.state_dict()))
    else:
        ours = RMSprop(groups(), lr=1e-3, alpha=0.9, eps=1e-7)
    assert same(take_steps(ours, range(2, 6)), take_steps(torch_s, range(2, 6)))
    assert ours.state_dict()["param_groups"] == torch_s.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (torch.optim.lr_scheduler.OneCycleLR, {"max_lr": 0.1, "total_steps": 20}),
        (torch.optim.lr_scheduler.CyclicLR, {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 3}),
        (torch.optim.lr_scheduler.StepLR, {"step_size": 2}),
    ],
)
def test_a_scheduler_that_cycles_the_momentum_trains_as_with_torch_s(scheduler: Any, options: dict[str, Any]) -> None:
    results = []
    for kind in (RMSprop, torch.optim.RMSprop):
        optimizer = kind(parameters(0, torch.float32), lr=0.01, alpha=0.9, eps=1e-7)
        schedule = scheduler(optimizer, **options)
        for step in range(8):
            result = take_steps(optimizer, range(step, step + 1))
            schedule.step()
        results.append(result)
    assert same(*results)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_hooks_are_called_once_a_step(momentum: float) -> None:
    torch.optim.RMSprop(parameters(0, torch.float32))  # from now on, torch's own step calls hooks by itself
    optimizer = RMSprop([{"params": parameters(0, torch.float32), "momentum": momentum}], lr=0.01, alpha=0.9, eps=1e-7)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    take_steps(optimizer, range(2))
    assert calls == ["before", "after"] * 2


def test_sparse_gradients_are_refused_as_by_torch() -> None:
    (param, _) = parameters(0, torch.float32)
    param.grad = torch.ones(3, 5).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        RMSprop([param], lr=0.01, alpha=0.9, eps=1e-7).step()


# --------------------------------------------------------------------------------------- flags


class Probe(MNISTClassifier):
    """Notes what a flag may change and no file shows."""

    notes: ClassVar[dict[str, Any]] = {}

    def on_train_start(self) -> None:
        loader = self.trainer.train_dataloader
        self.note("deterministic", torch.are_deterministic_algorithms_enabled())
        self.note("benchmark", torch.backends.cudnn.benchmark)
        self.note("anomalies", torch.is_anomaly_enabled())
        self.note("products", torch.get_float32_matmul_precision())
        self.note("dtype", str(self.dtype))
        self.note("bar", type(self.trainer.progress_bar_callback).__name__)
        self.note("loader", id(loader))

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.note("reloaded", id(self.trainer.train_dataloader) != self.notes["loader"])

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note("validated", (self.trainer.sanity_checking, self.global_step, batch_idx), several=True)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note("tested", (torch.is_inference_mode_enabled(), batch_idx), several=True)

    def note(self, name: str, value: Any, several: bool = False) -> None:
        self.notes[name] = (*self.notes.get(name, ()), value) if several else value


SHORT = "--trainer.max_epochs 2 --trainer.limit_train_batches 8 --model.hidden_size 16"
VALIDATED = "--data.val_size 640 --trainer.limit_val_batches 3"
STOPS = "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor train_loss --trainer.callbacks.patience 0"
STOPS += " --trainer.callbacks.min_delta 100"
RATES = "--trainer.logger CSVLogger --trainer.logger.save_dir theirs --trainer.callbacks LearningRateMonitor"

# What each flag is tried with: its own arguments, and those of the run with it and of the run without it.
TRIED = {
    "seed_everything": ("1", ""),
    "matmul_precision": ("medium", ""),
    "trainer.accelerator": ("cpu" if torch.cuda.is_available() or torch.backends.mps.is_available() else "gpu", ""),
    "trainer.num_nodes": ("2", ""),
    "trainer.precision": ("64-true", ""),
    "trainer.logger": ("CSVLogger", ""),
    "trainer.callbacks": ("TQDMProgressBar", ""),
    "trainer.fast_dev_run": ("true", ""),
    "trainer.max_epochs": ("1", ""),
    "trainer.min_epochs": ("3", f"{STOPS} --trainer.max_epochs 4"),
    "trainer.max_steps": ("5", ""),
    "trainer.min_steps": ("20", f"{STOPS} --trainer.max_epochs 4"),
    "trainer.max_time": ("00:00:00:00", ""),
    "trainer.limit_train_batches": ("3", ""),
    "trainer.limit_val_batches": ("2", VALIDATED),
    "trainer.limit_test_batches": ("2", ""),
    "trainer.limit_predict_batches": ("2", ""),
    "trainer.overfit_batches": ("2", ""),
    "trainer.val_check_interval": ("4", VALIDATED),
    "trainer.check_val_every_n_epoch": ("2", VALIDATED),
    "trainer.num_sanity_val_steps": ("0", VALIDATED),
    "trainer.log_every_n_steps": ("1", RATES),
    "trainer.enable_checkpointing": ("false", ""),
    "trainer.enable_progress_bar": ("false", ""),
    "trainer.enable_model_summary": ("true", ""),
    "trainer.accumulate_grad_batches": ("2", ""),
    "trainer.gradient_clip_val": ("0.001", ""),
    "trainer.gradient_clip_algorithm": ("value", "--trainer.gradient_clip_val 0.001"),
    "trainer.deterministic": ("true", ""),
    "trainer.benchmark": ("true", ""),
    "trainer.inference_mode": ("false", ""),
    "trainer.use_distributed_sampler": ("false", ""),
    "trainer.profiler": ("simple", ""),
    "trainer.detect_anomaly": ("true", ""),
    "trainer.barebones": ("true", ""),
    "trainer.plugins": ("lightning.pytorch.plugins.DoublePrecision", ""),
    "trainer.reload_dataloaders_every_n_epochs": ("1", ""),
    "trainer.default_root_dir": ("there", ""),
    "trainer.enable_autolog_hparams": ("false", "--trainer.logger CSVLogger --trainer.logger.save_dir theirs"),
    "trainer.model_registry": ("mine", ""),
    "model.hidden_size": ("8", ""),
    "model.learning_rate": ("0.01", ""),
    "model.loss": ("keras", "--model.learning_rate 0.1"),
    "model.dropout": ("0.5", ""),
    "model.weight_decay": ("0.1", ""),
    "data.data_dir": ("nowhere", ""),
    "data.batch_size": ("64", ""),
    "data.val_size": ("640", ""),
    "data.seed": ("1", ""),
    "data.train_size": ("600", ""),
    "data.train_transform": ("torchvision.transforms.functional.hflip", ""),
    "data.transform": ("torchvision.transforms.functional.hflip", ""),
    "data.dataset": ("FashionMNIST", ""),
    "data.emnist_split": ("letters", ""),
    "data.download": ("true", ""),
    "optimizer": ("Adam", ""),
    "lr_scheduler": ("ConstantLR", ""),
    "threads": ("3", ""),
    "ckpt_path": ("last", ""),
}
# Whole processes are needed for these: tests/test_distributed.py starts them.
SEVERAL_PROCESSES = {"trainer.strategy", "trainer.devices", "trainer.sync_batchnorm"}


@pytest.fixture
def what_it_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[[str], Any]:
    """Runs ``fit``: all that it leaves, prints and logs, but for times and its own configuration; None if refused."""
    numbers = itertools.count()

    def run(args: str) -> Any:
        root = tmp_path / str(next(numbers))
        root.mkdir()
        monkeypatch.chdir(root)
        monkeypatch.setattr(Probe, "notes", {})
        caplog.clear()
        code = 0
        try:
            main(["fit", *args.split()], Probe)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        if code == 2 and err.count("\n") == 1:
            return None
        assert code == 0
        printed = re.sub(r"\d+\.\d s ", "", out + err + caplog.text)
        files = {str(path): path.read_bytes() for path in Path().rglob("*.csv")}
        names = {str(path) for path in Path().rglob("*")}
        weights = [torch.load(path, weights_only=True)["state_dict"] for path in sorted(Path().rglob("*.ckpt"))]
        sums = [float(tensor.double().sum()) for state in weights for tensor in state.values()]
        return printed, files, names, sums, {name: note for name, note in Probe.notes.items() if name != "loader"}

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_flag_of_fit_changes_what_it_does_or_is_refused(
    capsys: pytest.CaptureFixture[str], what_it_does: Callable[[str], Any]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    flags = set(re.findall(r"^  --([\w.]+)", capsys.readouterr().out, re.MULTILINE))
    groups = {"trainer", "model", "data", "print_config"}
    flags = {flag for flag in flags - groups if not flag.endswith(".help")}
    assert flags == TRIED.keys() | SEVERAL_PROCESSES
    without = {more: what_it_does(f"{SHORT} {more}") for more in {more for _, more in TRIED.values()}}
    assert None not in without.values()
    again = what_it_does(SHORT)
    assert again == without[""]  # nothing but a flag makes a difference
    useless = [
        flag
        for flag, (value, more) in TRIED.items()
        if what_it_does(f"{SHORT} {more} --{flag} {value}") == without[more]
    ]
    assert not useless, ", ".join(useless)
