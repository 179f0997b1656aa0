"""Low-rank layers of peft, computed in fewer passes over their outputs.

Shape suffixes: N rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor


class LowRankLinear(Linear):
    """peft's layer ``W x + b + s B A x`` with the product of the ranks added in place.

    Values and gradients are those of peft's own forward, which makes a tensor of the output's
    size for the product, one for its scaling and one for the sum, in the backward pass too. Made
    from a layer of peft by a change of class (``layer.__class__ = LowRankLinear``), so that names
    and files stay as they are; of one adapter without dropout.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map rows of shape (..., I) to (..., O)."""
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        layer = self.get_base_layer()
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        tensors = [x, layer.weight, layer.bias, down, up]
        if torch.is_autocast_enabled(x.device.type):
            # As autocast does to the products in peft's layer; it does not see into a function.
            dtype = torch.get_autocast_dtype(x.device.type)
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
        return cast(Tensor, _LowRank.apply(*tensors, self.scaling[name]))


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scale: float,
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ down_RI.T
        out_NO = F.linear(x_NI, weight_OI, bias_O).addmm_(low_NR, up_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, down_RI, up_OR, low_NR)
        ctx.scale, ctx.shape = scale, x.shape
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x_NI, weight_OI, down_RI, up_OR, low_NR = ctx.saved_tensors
        gradient_NO = gradients[0].reshape(-1, len(weight_OI))
        of_low_NR = (gradient_NO @ up_OR).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient_NO @ weight_OI).addmm_(of_low_NR, down_RI).view(ctx.shape)
        of_down_RI = of_low_NR.T @ x_NI
        of_up_OR = (gradient_NO.T @ low_NR).mul_(ctx.scale)
        return of_x, None, None, of_down_RI, of_up_OR, None
