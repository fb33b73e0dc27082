"""Float32 products by oneDNN: the same layer, but for the last bits and the time."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


def onednn(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(784, 512, bias=bias)
    layer = copy.deepcopy(plain)
    layer.__class__ = OneDNNLinear
    return plain, layer


def results(layer: nn.Linear, images: Tensor) -> list[Tensor]:
    """The product, and the gradients of something that depends on all of it."""
    images = images.clone().requires_grad_()
    product = layer(images)
    product.square().mean().backward()
    gradients = [parameter.grad for parameter in (images, *layer.parameters())]
    layer.zero_grad()
    return [product.detach(), *(gradient for gradient in gradients if gradient is not None)]


@only_there
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1, 96, 128])
def test_product_and_gradients_are_float32_s(size: int, bias: bool) -> None:
    plain, layer = onednn(bias)
    images = torch.rand(size, 784)
    exact = results(copy.deepcopy(plain).double(), images.double())
    ours, torch_s = results(layer, images), results(plain, images)
    assert len(ours) == 3 + bias
    for mine, theirs, true in zip(ours, torch_s, exact, strict=True):
        assert mine.dtype == torch.float32
        rounding = (theirs.double() - true).abs().max()
        assert (mine.double() - true).abs().max() <= 8 * rounding  # bfloat16 products would be 10,000 times off
    assert not all(map(torch.equal, ours, torch_s))  # another library's sums


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
def test_medium_rounds_to_bfloat16_where_the_cpu_multiplies_it(
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


def test_only_large_plain_linear_layers_are_changed_and_none_without_avx_512() -> None:
    class Mine(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10), Mine(784, 512))
    names = list(network.state_dict())
    prefer_onednn(network)
    assert [type(layer) for layer in network] == [OneDNNLinear if AVX512 else nn.Linear, nn.ReLU, nn.Linear, Mine]
    assert list(network.state_dict()) == names


@only_there
def test_the_command_uses_it_and_the_class_alone_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type] = []

    class Model(MNISTClassifier):
        def on_fit_start(self) -> None:
            seen.append(type(self.network[1]))

        def on_test_start(self) -> None:
            seen.append(type(self.network[1]))

    monkeypatch.chdir(tmp_path)
    main(["fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"], Model)
    main(["test"], Model)
    assert seen == [OneDNNLinear] * 3
    assert type(Model().network[1]) is nn.Linear
