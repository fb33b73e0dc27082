"""Float32 products by oneDNN, and by bfloat16 where that is allowed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_WEIGHTS = 2**16  # of a layer; with fewer, what Python adds to each step is more than is gained
# torch has a kernel for it on every CPU: without instructions of the CPU's own, it is a slow one.
MULTIPLIES_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def prefer_onednn(network: nn.Module) -> None:
    """Have a network's large ``nn.Linear`` layers multiply float32 by oneDNN, if this CPU has AVX-512.

    torch multiplies float32 by MKL, which on AMD's processors reaches half of what they can do:
    (128 x 784) by (784 x 512) takes it 0.49 ms, and oneDNN, which torch brings along too, 0.24 ms
    (2 cores of an EPYC with AVX-512). The products are float32 all the same; only the order of
    the sums, and so the last bits, differ. Layers stay ``nn.Linear`` in every other respect.

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
        """As ``nn.Linear``: ``(B, in_features)`` to ``(B, out_features)``, or with more leading dimensions."""
        float32 = input.is_cpu and input.dtype == self.weight.dtype == torch.float32
        if float32 and input.ndim == 2 and not torch.is_autocast_enabled("cpu"):
            precision = torch.get_float32_matmul_precision()
            if precision == "highest":
                product: Tensor = _Linear.apply(input, self.weight, self.bias)
                return product
            if precision == "medium" and MULTIPLIES_BFLOAT16:
                bias = None if self.bias is None else self.bias.bfloat16()
                return F.linear(input.bfloat16(), self.weight.bfloat16(), bias).float()
        return super().forward(input)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input, by_weight, by_bias = ctx.needs_input_grad
        return (
            _linear(gradient, weight.t()) if by_input else None,
            _linear(gradient.t(), input.t()) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # What torch's own compiler calls for a linear layer on a CPU; there is no public name for it.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product
