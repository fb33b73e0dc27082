"""RMSprop: torch's own, to the last bit."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning.model import RMSprop

CONSTANTS: dict[str, Any] = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7}


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.rand(32, 784, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        network(images.to(next(network.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype)


def same(ours: nn.Module, torch_s: nn.Module) -> bool:
    return all(map(torch.equal, ours.parameters(), torch_s.parameters()))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_bit_is_torch_s(dtype: torch.dtype, weight_decay: float) -> None:
    ours, torch_s = network(dtype), network(dtype)
    train(ours, RMSprop(ours.parameters(), **CONSTANTS, weight_decay=weight_decay), range(20))
    train(torch_s, torch.optim.RMSprop(torch_s.parameters(), **CONSTANTS, weight_decay=weight_decay), range(20))
    assert same(ours, torch_s)
    assert not same(ours, network(dtype))


@pytest.mark.parametrize("eps", [1e-7, 1e-14, 1e-30, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_bit_is_torch_s_however_small_the_means_are(dtype: torch.dtype, eps: float) -> None:
    torch.manual_seed(0)
    magnitudes = torch.linspace(-330, 2, 40_000, dtype=torch.float64)
    means = torch.cat([10**magnitudes, torch.zeros(1000), torch.tensor([torch.inf, torch.nan])]).to(dtype)
    gradients = torch.randn(len(means), dtype=torch.float64).to(dtype)
    gradients[::2] = 0  # as from black pixels: the mean stays as small as it is
    results = []
    for kind in (RMSprop, torch.optim.RMSprop):
        weights = nn.Parameter(torch.zeros_like(means))
        optimizer = kind([weights], **{**CONSTANTS, "eps": eps})
        weights.grad = torch.zeros_like(means)
        optimizer.step()
        optimizer.state[weights]["square_avg"].copy_(means)
        weights.data.zero_()
        weights.grad = gradients.clone()
        optimizer.step()
        results.append((weights.detach(), optimizer.state[weights]["square_avg"]))
    for ours, torch_s in zip(*results, strict=True):
        assert torch.equal(ours.nan_to_num(nan=123), torch_s.nan_to_num(nan=123))


def test_either_goes_on_from_the_state_of_the_other() -> None:
    networks = [network(torch.float32) for _ in range(3)]
    optimizers: list[torch.optim.Optimizer] = [
        RMSprop(networks[0].parameters(), **CONSTANTS),
        torch.optim.RMSprop(networks[1].parameters(), **CONSTANTS),
        RMSprop(networks[2].parameters(), **CONSTANTS),
    ]
    for net, optimizer in zip(networks, optimizers, strict=True):
        train(net, optimizer, range(5))
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    assert {*states[0]["state"][0]} == {*states[1]["state"][0]}  # no tensor kept for speed in a checkpoint
    optimizers[0].load_state_dict(states[1])
    optimizers[1].load_state_dict(states[2])
    for net, optimizer in zip(networks, optimizers, strict=True):
        train(net, optimizer, range(5, 10))
    assert same(networks[0], networks[1])
    assert same(networks[0], networks[2])


def test_a_network_and_its_optimizer_can_be_copied_and_change_their_dtype() -> None:
    net = network(torch.float32)
    pair = (net, RMSprop(net.parameters(), **CONSTANTS))
    train(*pair, range(3))
    net, optimizer = copy.deepcopy(pair)
    net.double()
    optimizer.load_state_dict(optimizer.state_dict())  # casts the state to the dtype of the weights
    train(net, optimizer, range(3, 6))
    torch_s = network(torch.float32)
    other = torch.optim.RMSprop(torch_s.parameters(), **CONSTANTS)
    train(torch_s, other, range(3))
    torch_s.double()
    other.load_state_dict(other.state_dict())
    train(torch_s, other, range(3, 6))
    assert same(net, torch_s)


def test_a_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = RMSprop([weight], **CONSTANTS)

    def closure() -> Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 3
    assert (weight < 1).all()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_forgotten_as_torch_s_are(set_to_none: bool) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = RMSprop([weight], **CONSTANTS)
    weight.square().sum().backward()
    optimizer.zero_grad(set_to_none)
    if set_to_none:
        assert weight.grad is None
    else:
        assert weight.grad is not None
        assert not weight.grad.any()
