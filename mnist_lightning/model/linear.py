"""A linear layer that multiplies float32 by oneDNN, and bfloat16 if that is allowed."""

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from mnist_lightning.errors import InputError

# For a layer with fewer weights, the Python code of each step takes longer than oneDNN saves.
LEAST_WEIGHTS = 2**16
# torch multiplies bfloat16 on every CPU, but slowly if the CPU has no instructions for it.
MULTIPLIES_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
_TYPES = (Tensor, nn.Parameter)  # a subclass of Tensor may define its own product
# A name is looked up in all libraries that this one is linked to. The OpenMP that torch uses is among them.
_OPENMP = ctypes.PyDLL(torch._C.__file__)  # noqa: SLF001  # the only way to torch's own library


class OneDNNLinear(nn.Linear):
    """``nn.Linear`` that multiplies float32 on a CPU by oneDNN; see :func:`prefer_onednn`."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``: ``(B, in_features)`` to ``(B, out_features)``, or with more leading dimensions.

        Raises:
            InputError: If even torch's own product may be wrong; see :func:`teams_may_shrink`.
        """
        weight: Tensor = self.weight  # read once, because a parametrization computes it on each access
        bias: Tensor | None = self.bias
        if not _torch_watches() and _is_float32(input, weight, bias):
            precision = torch.get_float32_matmul_precision()
            if not _onednn_is_safe(weight):
                if precision != "highest" and teams_may_shrink() is not None:
                    raise InputError(
                        f"OpenMP may give fewer threads than torch's {torch.get_num_threads()}, and torch's products "
                        f"may be wrong then, with {precision!r} precision: call torch.set_num_threads(1)"
                    )
            elif precision == "highest":
                product: Tensor = _Linear.apply(input, weight, bias)
                return product
            elif precision == "medium" and MULTIPLIES_BFLOAT16:
                bias = None if bias is None else bias.bfloat16()
                return F.linear(input.bfloat16(), weight.bfloat16(), bias).float()
        return F.linear(input, weight, bias)


def prefer_onednn(network: nn.Module) -> None:
    """Make a network's large ``nn.Linear`` layers multiply float32 by oneDNN, if this CPU has AVX-512.

    torch multiplies float32 by MKL, which uses only half of what AMD's processors can do. For (128 x 784) by
    (784 x 512), MKL takes 0.49 ms. oneDNN, which torch contains too, takes 0.24 ms (2 cores of an EPYC with
    AVX-512). The products are still float32. Only the order of the sums differs, and so the last bits.

    A layer stays an ``nn.Linear`` in every other respect. It uses torch's own product if oneDNN's is not known
    to be right, for second derivatives, and while torch compiles.

    ``torch.set_float32_matmul_precision("medium")`` allows bfloat16. If the CPU multiplies bfloat16, the layers
    then do so: 0.13 ms. torch's own layer (2.14) then takes oneDNN, but multiplies float32: 0.24 ms. Inputs,
    weights and results are rounded to 8 significant bits; the sums are computed in float32.

    Args:
        network: Its layers are changed in place.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return
    for layer in network.modules():
        if type(layer) is nn.Linear and layer.weight.numel() >= LEAST_WEIGHTS:
            layer.__class__ = OneDNNLinear


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
        plain = torch.is_grad_enabled() or _torch_watches() or not _onednn_is_safe(weight)
        multiply = F.linear if plain else _onednn
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


def _onednn_is_safe(weight: Tensor) -> bool:
    """Whether oneDNN computes all products of a layer with these weights correctly, with this number of threads."""
    return teams_may_shrink() is False and _products_are_right(torch.get_num_threads(), *weight.shape)


def teams_may_shrink() -> bool | None:
    """Whether OpenMP may give fewer threads than torch asks for; ``None`` if OpenMP cannot be asked.

    It may with ``OMP_DYNAMIC=true``, with ``OMP_MAX_ACTIVE_LEVELS=0`` or with an ``OMP_THREAD_LIMIT`` below
    torch's number of threads. oneDNN divides a product among the threads that it asks for. If it gets fewer,
    the parts of the missing ones are never computed. torch's own bfloat16 products have the same fault
    (torch 2.14).
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return False
    try:
        limit, levels = _OPENMP.omp_get_thread_limit(), _OPENMP.omp_get_max_active_levels()
        return bool(_OPENMP.omp_get_dynamic()) or limit < threads or levels < 1
    except AttributeError:
        return None


@functools.cache
def _products_are_right(threads: int, outputs: int, inputs: int) -> bool:
    """Whether a layer's three products are right with so many threads. OpenMP may hide that it gives fewer.

    The products are compared with those in float64. Sums of small whole numbers are exact in any order. With 128
    rows, a product is wrong if any one of 2 to 64 threads is missing.
    """

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.arange(rows * columns, dtype=torch.float32, device="cpu") % 7 - 3).reshape(rows, columns)

    input, weight, gradient = matrix(128, inputs), matrix(outputs, inputs), matrix(128, outputs)
    products = (input, weight, gradient[0]), (gradient, weight.t()), (gradient.t(), input.t())
    return all(torch.equal(_onednn(*factors), F.linear(*(f.double() for f in factors)).float()) for factors in products)
