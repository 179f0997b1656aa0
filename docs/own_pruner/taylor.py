"""Score blocks by what removing their weights would change in the loss, to first order."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion import Backbone, HeldOutLoss, Scored
from tinyfusion.backbones.contract import evaluating, predict, run_plain


class Taylor(Scored):
    """Sum of |weight x gradient| over a block's weights, as in arXiv 2402.02834."""

    criterion = "first_order_change"
    kinds = ("blocks",)  # not branches: it looks into net.blocks

    def scores(self, net: Backbone, calibration: HeldOutLoss, kept: tuple[int, ...]) -> Tensor:
        """One number for each block of ``kept``, in a model that runs only these."""

        def runner(index, block, states, condition):
            return run_plain(index, block, states, condition) if index in kept else states

        net.zero_grad(set_to_none=True)
        device = next(net.parameters()).device
        with evaluating(net):
            for rows, corrupted in calibration.parts:
                inputs = [value.to(device) for value in corrupted.inputs]
                out = predict(net, inputs, calibration.conditioning[rows].to(device), runner).cpu()
                calibration.process.loss(out, corrupted)["loss"].sum().backward()
        sums = [
            sum((p * p.grad).double().abs().sum() for p in net.blocks[i].parameters()) for i in kept
        ]
        net.zero_grad(set_to_none=True)
        return torch.stack(sums).detach().cpu() / len(calibration.conditioning)
