"""A linear layer that multiplies float32 by oneDNN, and bfloat16 if that is allowed."""

import os
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

LEAST_WEIGHTS = 2**16  # with fewer, the Python code of each step takes longer than oneDNN saves
# torch multiplies bfloat16 on every CPU, but slowly if the CPU has no instructions for it.
MULTIPLIES_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
_TYPES = (Tensor, nn.Parameter)  # a subclass of Tensor may define its own product
Network = TypeVar("Network", bound=nn.Module)


class OneDNNLinear(nn.Linear):
    """``nn.Linear`` that multiplies float32 on a CPU by oneDNN; see :func:`prefer_onednn`."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``: ``(B, in_features)`` to ``(B, out_features)``, or with more leading dimensions."""
        weight: Tensor = self.weight  # read once, because a parametrization computes it on each access
        bias: Tensor | None = self.bias
        if not _torch_watches() and _is_float32(input, weight, bias):
            precision = torch.get_float32_matmul_precision()
            if precision == "highest":
                product: Tensor = _Linear.apply(input, weight, bias)
                return product
            if precision == "medium" and MULTIPLIES_BFLOAT16:
                bias = None if bias is None else bias.bfloat16()
                return F.linear(input.bfloat16(), weight.bfloat16(), bias).float()
        return F.linear(input, weight, bias)


def prefer_onednn(network: Network) -> Network:
    """Make a network's large ``nn.Linear`` layers multiply float32 by oneDNN, if this CPU has AVX-512, and return it.

    torch multiplies float32 by MKL, which uses only half of what AMD's processors can do. For (128 x 784) by
    (784 x 512), MKL takes 0.49 ms, and oneDNN, which torch contains too, 0.24 ms (2 cores of an EPYC with AVX-512).
    Only the order of the sums differs, and so the last bits. torch's own product stays for second derivatives, while
    torch compiles, and where OpenMP may give too few threads (:func:`openmp_may_give_fewer`).

    ``torch.set_float32_matmul_precision("medium")`` allows bfloat16. If the CPU multiplies bfloat16, the layers then do
    so: 0.13 ms. Factors and results are rounded to 8 significant bits; the sums are computed in float32.
    """
    has_onednn = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if has_onednn and not openmp_may_give_fewer():
        for layer in network.modules():
            if type(layer) is nn.Linear and layer.weight.numel() >= LEAST_WEIGHTS:
                layer.__class__ = OneDNNLinear
    return network


def openmp_may_give_fewer() -> bool:
    """Whether a variable of OpenMP may give fewer threads than torch asks for.

    oneDNN divides a product among the threads that it asks for. If it gets fewer, the parts of the missing ones are
    never computed, and nothing says so. torch's own bfloat16 products have the same fault (torch 2.14).
    """
    limits = {"OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "OMP_THREAD_LIMIT"}
    return torch.get_num_threads() > 1 and not limits.isdisjoint(os.environ)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _onednn(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input, by_weight, by_bias = ctx.needs_input_grad
        # Gradients are enabled here if second derivatives may follow. oneDNN's product has no derivative.
        multiply = F.linear if torch.is_grad_enabled() or _torch_watches() else _onednn
        return (
            multiply(gradient, weight.t()) if by_input else None,
            multiply(gradient.t(), input.t()) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


def _onednn(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # torch's compiler calls this for a linear layer on a CPU.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")  # noqa: SLF001  # there is no public name
    return product


def _is_float32(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are ordinary float32 tensors on a CPU, with the shapes of a layer."""
    return (
        input.ndim == 2
        and len(input) > 0  # oneDNN has no gradients for an empty batch
        and type(input) in _TYPES
        and type(weight) in _TYPES
        and input.is_cpu
        and input.dtype == weight.dtype == torch.float32
        and input.is_contiguous()
        and weight.is_contiguous()
        # oneDNN reads beyond the end of a bias that has gaps, or only one element.
        and (bias is None or (bias.is_contiguous() and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
    )


def _torch_watches() -> bool:
    """Whether torch must see each operation: it compiles, counts, computes forward derivatives, or is in torch.func."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()  # noqa: SLF001  # autograd.Function asks so; no public name
        or torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001  # there is no public name
        or forward_ad._current_level >= 0  # noqa: SLF001  # there is no public name
    )
