"""Float32 products by oneDNN: the same layer, but for the last bits and the time."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main
from mnist_lightning.model import OneDNNLinear, linear, prefer_onednn
from mnist_lightning.model.linear import MULTIPLIES_BFLOAT16

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
only_there = pytest.mark.skipif(not AVX512, reason="this CPU has no AVX-512")
only_with_bfloat16 = pytest.mark.skipif(not MULTIPLIES_BFLOAT16, reason="this CPU does not multiply bfloat16")


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def as_onednn(plain: nn.Linear) -> nn.Linear:
    layer = copy.copy(plain)  # the same parameters, with their strides
    layer.__class__ = OneDNNLinear
    return layer


def onednn(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(784, 512, bias=bias)
    return plain, as_onednn(plain)


def results(layer: nn.Linear, images: Tensor) -> list[Tensor]:
    """The product, and the gradients of something that depends on all of it."""
    images = images.clone().requires_grad_()
    product = layer(images)
    return [product.detach(), *torch.autograd.grad(product.square().mean(), [images, *layer.parameters()])]


@only_there
@pytest.mark.parametrize("size", [1, 96, 128])
def test_float32_products_are_another_library_s_and_as_exact(size: int) -> None:
    plain, layer = onednn()
    images = torch.rand(size, 784)
    exact = results(copy.deepcopy(plain).double(), images.double())
    ours, torch_s = results(layer, images), results(plain, images)
    for mine, theirs, true in zip(ours, torch_s, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).abs().max() <= 8 * (theirs - true).abs().max()  # bfloat16 would be 10,000 times off
    assert not all(map(torch.equal, ours, torch_s))


def test_all_but_float32_is_torch_s_own() -> None:
    plain, layer = onednn()
    images = torch.rand(64, 784)
    for change in (nn.Module.double, nn.Module.bfloat16):
        ours, torch_s = change(copy.deepcopy(layer)), change(copy.deepcopy(plain))
        given = images.to(ours.weight.dtype)
        assert all(map(torch.equal, results(ours, given), results(torch_s, given)))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(images).dtype == torch.bfloat16
    assert torch.equal(layer(images.reshape(2, 32, 784)), plain(images.reshape(2, 32, 784)))
    torch.set_float32_matmul_precision("high")
    assert torch.equal(layer(images), plain(images))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bfloat16", [pytest.param(True, marks=only_with_bfloat16), False])
def test_medium_rounds_to_bfloat16_where_the_cpu_has_it(
    bias: bool, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "MULTIPLIES_BFLOAT16", bfloat16)
    plain, layer = onednn(bias)
    images = torch.rand(128, 784)
    exact = results(copy.deepcopy(plain).double(), images.double())
    torch.set_float32_matmul_precision("medium")
    ours = results(layer, images)
    assert len(ours) == 3 + bias
    if not bfloat16:
        assert all(map(torch.equal, ours, results(plain, images)))
        return
    for mine, true in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        error = (mine.double() - true).norm() / true.norm()
        assert error < 2**-8  # half a unit in the last of 8 significant bits
    rounded = images.bfloat16().double() @ plain.weight.detach().bfloat16().double().t()
    rounded += plain.bias.detach().bfloat16().double() if bias else 0
    # Rounded before and after, and not in between: each of the 784 sums would lose as much again.
    assert ((ours[0] - rounded).abs() <= 2**-8 * rounded.abs() + 1e-5).all()


def test_only_large_plain_linear_layers_are_changed_and_none_without_avx_512(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(nn.Linear):
        pass

    monkeypatch.setattr(linear, "openmp_may_give_fewer", lambda: False)
    network = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10), Mine(784, 512))
    assert prefer_onednn(network) is network
    assert [type(layer) for layer in network] == [OneDNNLinear if AVX512 else nn.Linear, nn.ReLU, nn.Linear, Mine]


@pytest.mark.parametrize("limit", [None, "OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "OMP_THREAD_LIMIT"])
def test_none_are_changed_where_openmp_may_give_less(limit: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "OMP_THREAD_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    if limit:
        monkeypatch.setenv(limit, "2")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert linear.openmp_may_give_fewer() == (threads > 1 and limit is not None)
            changed = type(prefer_onednn(nn.Linear(784, 512))) is OneDNNLinear
            assert changed == (AVX512 and not linear.openmp_may_give_fewer())
    finally:
        torch.set_num_threads(before)


@only_there
def test_the_command_uses_it_and_the_class_alone_does_not() -> None:
    seen: list[type] = []

    class Model(MNISTClassifier):
        def on_fit_start(self) -> None:
            seen.append(type(self.network[1]))

        on_test_start = on_fit_start

    main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"], Model)
    main(["test"], Model)
    assert seen == [OneDNNLinear] * 3
    assert type(Model().network[1]) is nn.Linear


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


def each_image_s_gradient(layer: nn.Linear, images: Tensor) -> Tensor:
    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (image[None],)).square().sum()

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), images)["weight"]


@only_there
@pytest.mark.parametrize(
    "derivative",
    [
        each_image_s_gradient,
        lambda layer, images: torch.autograd.functional.jacobian(lambda x: layer(x).sum(0), images, vectorize=True),
        lambda layer, images: torch.func.jvp(layer, (images,), (images.flip(0),))[1],
        lambda layer, images: torch.func.hessian(lambda x: layer(x).square().sum())(images),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:FutureWarning")  # torch's own, when it derives forwards
def test_other_ways_to_derive_work_as_with_torch_s_layer(derivative: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    plain, images = nn.Linear(50, 60), torch.rand(4, 50)
    ours = derivative(as_onednn(plain), images)
    true = derivative(plain.double(), images.double())
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
