"""Layers in the form that a CPU computes fastest, at the same float32 numbers up to rounding.

torch gives float32 matrix products to MKL, which on processors that are not Intel's leaves AVX-512
unused: there oneDNN, a part of torch as well, multiplies more than twice as fast. And torch's GELU
by a tanh is slower than by the logistic function, to which it is equal. On other devices and in
other types, autocast among them, everything is torch's own.

Shape suffixes: D channels of the input, E channels of the output, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether matrix products are oneDNN's. Without AVX-512 both libraries are as fast."""

# GELU by a tanh (arXiv 1606.08415, section 2), 0.5 x (1 + tanh(a (x + b x^3))), is
# x logistic(2a x + 2ab x^3).
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


class Linear(nn.Linear):
    """``torch.nn.Linear``, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map channels: shape (..., D) to (..., E)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias``, as ``torch.nn.functional.linear``; differentiable once.

    Args:
        x: shape (..., D).
        weight_ED: shape (E, D).
        bias_E: shape (E,).

    Returns:
        Shape (..., E).
    """
    if not (ONEDNN and _is_float32_on_cpu(x) and weight_ED.dtype == x.dtype and x.numel()):
        return F.linear(x, weight_ED, bias_E)
    return _Linear.apply(x, weight_ED, bias_E)


def gelu(x: Tensor, approximate: str) -> Tensor:
    """``torch.nn.functional.gelu``; differentiable once where it is by a tanh.

    Args:
        x: any shape.
        approximate: ``"tanh"`` or ``"none"`` (exact).
    """
    if approximate == "tanh" and _is_float32_on_cpu(x):
        return _Gelu.apply(x)
    return F.gelu(x, approximate=approximate)


def _is_float32_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias`` by oneDNN; autograd does not see it."""
    if torch.compiler.is_compiling():
        return _opaque_product(x, weight_ED, bias_E)
    return torch.ops.mkldnn._linear_pointwise(x, weight_ED, bias_E, "none", [], "")


@torch.library.custom_op("tinyfusion::product", mutates_args=())
def _opaque_product(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """The same to compilers, which take oneDNN's own for one of constant weights."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_ED, bias_E, "none", [], "")


@_opaque_product.register_fake
def _(x: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_ED.shape[0])


def _outer(rows_NE: Tensor, rows_ND: Tensor) -> Tensor:
    """``rows_NE^T @ rows_ND`` by oneDNN, which copies the first of what it multiplies."""
    N, E = rows_NE.shape
    D = rows_ND.shape[1]
    if N * D + 2 * D * E < N * E:
        return _product(rows_ND.t(), rows_NE.t()).t().contiguous()
    return _product(rows_NE.t(), rows_ND.t())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight_ED if needs_x else None)
        return _product(x, weight_ED, bias_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_ED = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows_NE = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight_ED.t()) if needs_x else None,
            _outer(rows_NE, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows_NE.sum(0) if needs_bias else None,
        )


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _logistic(x * x, x).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        logistic = _logistic(x * x, x)
        slope = (x * x).mul_(3 * _CUBIC).add_(_LINEAR).mul_(x)
        slope = torch.ops.aten.sigmoid_backward(slope, logistic)
        return slope.add_(logistic).mul_(gradient)


def _logistic(squared: Tensor, x: Tensor) -> Tensor:
    """The logistic function in the GELU of ``x``, in place of ``squared``."""
    return squared.mul_(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_()


if ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(
        x: Sequence[int], weight_ED: Sequence[int], *_: Any, out_shape: Any = None, **__: Any
    ) -> int:
        """Floating-point operations of a product, for torch's counter."""
        return 2 * math.prod(x) * weight_ED[0]
