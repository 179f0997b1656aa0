"""Gates and low-rank updates as the formulas say, for the straightforward mask learning.

What `tinyfusion.gating` is tested and timed against; see `tinyfusion.studies.plain_steps`.

Shape suffixes: B batch, C keep-patterns of a group, M units of a group, L units, K noise numbers.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.scheme import Scheme

START_LOGIT = 0.02


class PatternChoice(nn.Module):
    """Per group a Gumbel-softmax over all keep-patterns, straight through (section 3).

    Args:
        scheme: the groups.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.choices_CM = [
            torch.tensor([[float(m in kept) for m in range(group.size)] for kept in patterns])
            for group in scheme.groups
            for patterns in [list(combinations(range(group.size), group.keep))]
        ]
        self.logits = nn.ParameterList(
            torch.full((len(choices_CM),), START_LOGIT) for choices_CM in self.choices_CM
        )
        self.num_draws = sum(map(len, self.choices_CM))

    def forward(self, gumbel_BK: Tensor, temperature: float, scale: float) -> Tensor:
        """One mask per sample, shape (B, L)."""
        masks = []
        parts = gumbel_BK.split([len(logits_C) for logits_C in self.logits], dim=1)
        for logits_C, choices_CM, gumbel_BC in zip(
            self.logits, self.choices_CM, parts, strict=True
        ):
            soft_BC = F.softmax((scale * logits_C + gumbel_BC) / temperature, dim=-1)
            hard_BC = F.one_hot(soft_BC.argmax(-1), len(logits_C)).to(soft_BC)
            masks.append((hard_BC - soft_BC.detach() + soft_BC) @ choices_CM.to(soft_BC))
        return torch.cat(masks, dim=1)


class SubsetChoice(nn.Module):
    """The k largest perturbed logits, with the gradient of their sigmoids at the k-th threshold.

    ``q = sigmoid(z / temperature - nu)``, where ``nu`` is such that each row of ``q`` sums to k
    (arXiv 1906.08707).

    Args:
        count: number of units L.
        keep: how many of them stay, k.
    """

    def __init__(self, count: int, keep: int) -> None:
        super().__init__()
        self.keep, self.num_draws = keep, count
        self.logits_L = nn.Parameter(torch.full((count,), START_LOGIT))

    def forward(self, gumbel_BK: Tensor, temperature: float, scale: float) -> Tensor:
        """One mask per sample, shape (B, L)."""
        z_BL = scale * self.logits_L + gumbel_BK
        hard_BL = torch.zeros_like(z_BL).scatter(1, z_BL.topk(self.keep, dim=1).indices, 1.0)
        a_BL = (z_BL / temperature).double()
        nu_B1 = self._threshold(a_BL.detach())
        # The threshold moves with the logits: d nu / d a = w / sum(w), with w = q (1 - q).
        w_BL = (a_BL - nu_B1).sigmoid().detach() * (nu_B1 - a_BL).sigmoid().detach()
        share_BL = w_BL / w_BL.sum(1, keepdim=True).clamp(min=1e-280)
        nu_B1 = nu_B1 + (share_BL * (a_BL - a_BL.detach())).sum(1, keepdim=True)
        soft_BL = (a_BL - nu_B1).sigmoid().to(z_BL)
        return hard_BL - soft_BL.detach() + soft_BL

    def _threshold(self, a_BL: Tensor) -> Tensor:
        low_B1, high_B1 = a_BL.amin(1, keepdim=True) - 40, a_BL.amax(1, keepdim=True) + 40
        for _ in range(60):
            middle_B1 = (low_B1 + high_B1) / 2
            over_B1 = (a_BL - middle_B1).sigmoid().sum(1, keepdim=True) > self.keep
            low_B1 = torch.where(over_B1, middle_B1, low_B1)
            high_B1 = torch.where(over_B1, high_B1, middle_B1)
        return (low_B1 + high_B1) / 2


class LowRankLinear(nn.Module):
    """``W x + b + (alpha / rank) B A x``, of which only A and B are trained (arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """As a linear layer."""
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale


def attach_low_rank(net: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a network and put a `LowRankLinear` in the place of each of its linear layers."""
    net.requires_grad_(False)
    linears = [(name, m) for name, m in net.named_modules() if type(m) is nn.Linear]
    for name, linear in linears:
        owner, _, own_name = name.rpartition(".")
        setattr(net.get_submodule(owner), own_name, LowRankLinear(linear, rank, alpha))
