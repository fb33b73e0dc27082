"""Float32 products by oneDNN, and by bfloat16 where that is allowed."""

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from mnist_lightning.errors import InputError

LEAST_WEIGHTS = 2**16  # of a layer; with fewer, what Python adds to each step is more than is gained
# torch has a kernel for it on every CPU: without instructions of the CPU's own, it is a slow one.
MULTIPLIES_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
TYPES = (Tensor, nn.Parameter)  # a subclass of them may have a product of its own
_OPENMP = ctypes.PyDLL(torch._C.__file__)  # a look-up goes through all that torch is linked to, so to its OpenMP


def prefer_onednn(network: nn.Module) -> None:
    """Have a network's large ``nn.Linear`` layers multiply float32 by oneDNN, if this CPU has AVX-512.

    torch multiplies float32 by MKL, which on AMD's processors reaches half of what they can do:
    (128 x 784) by (784 x 512) takes it 0.49 ms, and oneDNN, which torch brings along too, 0.24 ms
    (2 cores of an EPYC with AVX-512). The products are float32 all the same; only the order of
    the sums, and so the last bits, differ. Layers stay ``nn.Linear`` in every other respect, and multiply
    as it does where oneDNN is not known to be right, and where torch derives twice or compiles.

    With ``torch.set_float32_matmul_precision("medium")``, which allows bfloat16, a CPU that multiplies
    it does so: 0.13 ms, where torch (2.14), even then, takes float32's 0.24. What goes in and what
    comes out is rounded to 8 significant bits, the sums within are float32's.

    Args:
        network: Its layers are changed in place.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return
    for layer in network.modules():
        if type(layer) is nn.Linear and layer.weight.numel() >= LEAST_WEIGHTS:
            layer.__class__ = OneDNNLinear


class OneDNNLinear(nn.Linear):
    """``nn.Linear`` that multiplies float32 on a CPU by oneDNN; see :func:`prefer_onednn`."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``: ``(B, in_features)`` to ``(B, out_features)``, or with more leading dimensions.

        Raises:
            InputError: If torch's own product may be wrong, too; see :func:`teams_may_shrink`.
        """
        weight: Tensor = self.weight  # once: a parametrization computes it each time it is read
        bias: Tensor | None = self.bias
        if not _is_transformed() and _is_float32(input, weight, bias):
            precision = torch.get_float32_matmul_precision()
            if not _is_sure(weight):
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


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _onednn(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input, by_weight, by_bias = ctx.needs_input_grad
        # Gradients are enabled here when second ones may be asked for: oneDNN's product has none of its own.
        plain = torch.is_grad_enabled() or _is_transformed() or not _is_sure(weight)
        multiply = F.linear if plain else _onednn
        return (
            multiply(gradient, weight.t()) if by_input else None,
            multiply(gradient.t(), input.t()) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


def _onednn(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # What torch's own compiler calls for a linear layer on a CPU; there is no public name for it.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


def _is_float32(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are ordinary tensors of float32 on a CPU, of a layer's shapes."""
    return (
        input.ndim == 2
        and len(input) > 0  # oneDNN has no gradients of nothing
        and type(input) in TYPES
        and type(weight) in TYPES
        and input.is_cpu
        and input.dtype == weight.dtype == torch.float32
        and input.is_contiguous()
        and weight.is_contiguous()
        # oneDNN reads past a bias that has gaps, or one element.
        and (bias is None or (bias.is_contiguous() and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
    )


def _is_transformed() -> bool:
    """Whether torch compiles, counts, derives forwards or does as ``torch.func``: it must know each operation."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()  # as autograd.Function asks; there is no public name
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def _is_sure(weight: Tensor) -> bool:
    return teams_may_shrink() is False and _is_right(torch.get_num_threads(), *weight.shape)


def teams_may_shrink() -> bool | None:
    """Whether OpenMP may give fewer threads than torch asks for; None if it cannot be asked.

    It may with ``OMP_DYNAMIC=true``, ``OMP_MAX_ACTIVE_LEVELS=0`` or an ``OMP_THREAD_LIMIT`` below torch's
    number of threads. oneDNN divides a product among the threads that it asks for, and the parts of those
    that it does not get are never computed. This holds for torch's own bfloat16 products, too (torch 2.14).
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
def _is_right(threads: int, outputs: int, inputs: int) -> bool:
    """Whether a layer's three products are right with so many threads: OpenMP may not tell everything.

    They are compared with float64's. Sums of small whole numbers are exact in any order. With 128 rows, a
    product is wrong where one of 2 to 64 threads is missing.
    """

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.arange(rows * columns, dtype=torch.float32, device="cpu") % 7 - 3).reshape(rows, columns)

    input, weight, gradient = matrix(128, inputs), matrix(outputs, inputs), matrix(128, outputs)
    products = (input, weight, gradient[0]), (gradient, weight.t()), (gradient.t(), input.t())
    return all(torch.equal(_onednn(*factors), F.linear(*(f.double() for f in factors)).float()) for factors in products)
