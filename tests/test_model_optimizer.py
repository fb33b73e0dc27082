"""RMSprop: torch's own, to the last bit."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mnist_lightning.model import RMSprop

CONSTANTS: dict[str, Any] = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7}


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
    return all(torch.equal(o.nan_to_num(123), t.nan_to_num(123)) for o, t in zip(ours, torch_s, strict=True))


def test_every_bit_is_torch_s_also_in_another_dtype_and_after_a_copy() -> None:
    results = []
    for kind in (RMSprop, torch.optim.RMSprop):
        optimizer = kind(parameters(0, torch.float32), **CONSTANTS)
        take_steps(optimizer, range(5))
        for param in optimizer.param_groups[0]["params"]:
            param.data = param.data.double()
        optimizer.load_state_dict(optimizer.state_dict())  # casts the state to the dtype of the weights
        take_steps(optimizer, range(5, 8))
        results.append(take_steps(copy.deepcopy(optimizer), range(8, 10)))
    assert same(*results)


def test_torch_s_goes_on_from_the_state_of_ours() -> None:
    ours, torch_s = (kind(parameters(0, torch.float32), **CONSTANTS) for kind in (RMSprop, torch.optim.RMSprop))
    for optimizer in (ours, torch_s):
        take_steps(optimizer, range(5))
    state = copy.deepcopy(ours.state_dict())
    assert {*state["state"][0]} == {*torch_s.state_dict()["state"][0]}  # no tensor kept for speed in a checkpoint
    torch_s.load_state_dict(state)
    assert same(take_steps(ours, range(5, 10)), take_steps(torch_s, range(5, 10)))


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
        results.append([weights.detach(), optimizer.state[weights]["square_avg"]])
    assert same(*results)


def test_gradients_are_forgotten_as_torch_s_are() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = RMSprop([weight], **CONSTANTS)
    weight.square().sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert not weight.grad.any()
    optimizer.zero_grad()
    assert weight.grad is None


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


@settings(deadline=None, max_examples=100)
@given(
    options=st.lists(GROUPS, min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
    loaded=st.booleans(),
)
def test_every_group_has_torch_s_own_step(options: Groups, dtype: torch.dtype, loaded: bool) -> None:
    def groups() -> Groups:
        return [{"params": parameters(number, dtype), **copy.deepcopy(group)} for number, group in enumerate(options)]

    torch_s = torch.optim.RMSprop(groups(), **CONSTANTS)
    if loaded:  # into groups without any options
        take_steps(torch_s, range(2))
        plain = [{"params": group["params"]} for group in copy.deepcopy(torch_s.param_groups)]
        ours = RMSprop(plain, **CONSTANTS)
        ours.load_state_dict(copy.deepcopy(torch_s.state_dict()))
    else:
        ours = RMSprop(groups(), **CONSTANTS)
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
