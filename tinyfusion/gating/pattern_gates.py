"""Learned choice among the keep-patterns of every group (TinyFusion, section 3).

Shape suffixes: B batch, C choices of one group, M positions of one group, L units, K all choices
of all groups side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.gating.contract import CERTAIN, Gates, GateState
from tinyfusion.scheme import BlockGroup, Scheme

START_LOGIT = 0.02
"""Start value of every logit; equal values make the start exactly uniform."""


class GroupGate(nn.Module):
    """A categorical distribution over the keep-patterns of one group.

    Attributes:
        patterns: numbers of the kept units of every pattern; listed once, there can be thousands.
    """

    choices_CM: Tensor

    def __init__(self, group: BlockGroup) -> None:
        super().__init__()
        choices = group.choices()
        self.start = group.start
        self.patterns = [tuple(group.start + m for m in kept) for kept in choices]
        rows = [[float(m in kept) for m in range(group.size)] for kept in choices]
        self.register_buffer("choices_CM", torch.tensor(rows), persistent=False)
        self.logits_C = nn.Parameter(torch.full((len(rows),), START_LOGIT))

    def soft_choice(
        self,
        gumbel_BC: Tensor,
        temperature: float,
        scale: float,
        settled: Mapping[int, bool] | None = None,
    ) -> Tensor:
        """Gumbel-softmax relaxation of one draw per sample, shape (B, C)."""
        weights_C = self.log_weights(scale * self.logits_C, settled or {})
        return ((weights_C + gumbel_BC) / temperature).softmax(-1)

    def log_weights(self, weights_C: Tensor, settled: Mapping[int, bool]) -> Tensor:
        """Scaled logits, with next to no weight for patterns that settled units rule out."""
        out = [any((u in kept) != settled[u] for u in self._in(settled)) for kept in self.patterns]
        if not any(out):
            return weights_C
        return weights_C.masked_fill(torch.tensor(out, device=weights_C.device), -CERTAIN)

    def _in(self, settled: Mapping[int, bool]) -> list[int]:
        start, size = self.start, self.choices_CM.shape[1]
        return [unit for unit in settled if start <= unit < start + size]

    def forward(
        self,
        gumbel_BC: Tensor,
        temperature: float,
        scale: float,
        settled: Mapping[int, bool] | None = None,
    ) -> Tensor:
        """One hard keep-pattern per sample with straight-through gradients, shape (B, M)."""
        # Outside autocast: a bfloat16 product would round the gradient of the logits.
        with torch.autocast(gumbel_BC.device.type, enabled=False):
            soft_BC = self.soft_choice(gumbel_BC, temperature, scale, settled)
            hard_BC = F.one_hot(soft_BC.argmax(-1), soft_BC.shape[-1]).to(soft_BC.dtype)
            # Forward value hard, gradient of soft; zeros are exact because x - x is.
            return (hard_BC - soft_BC.detach() + soft_BC) @ self.choices_CM


class PatternGates(Gates):
    """Gates of all groups of a scheme.

    Args:
        scheme: the groups, laid over the units of one kind (`Backbone.units`), such as blocks.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.count = scheme.depth
        self.num_draws = sum(group.num_choices for group in scheme.groups)
        # A ModuleList does not say what it holds.
        gates = nn.ModuleList(GroupGate(group) for group in scheme.groups)
        self.groups = cast("Sequence[GroupGate]", gates)

    @property
    def expected_share(self) -> float:
        """See `Gates.expected_share`; every draw keeps as many."""
        return self.scheme.keep / self.scheme.depth

    @property
    def group_starts(self) -> tuple[int, ...]:
        """See `Gates.group_starts`."""
        return tuple(group.start for group in self.scheme.groups[1:])

    def forward(self, gumbel_BK: Tensor) -> Tensor:
        """See `Gates.forward`; one noise number for each pattern, groups side by side."""
        parts = gumbel_BK.split([gate.logits_C.numel() for gate in self.groups], dim=-1)
        return torch.cat(
            [
                gate(part, self.temperature, self.scale, self.settled)
                for gate, part in zip(self.groups, parts, strict=True)
            ],
            dim=-1,
        )

    def probabilities(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """``softmax(scale * logits)`` per group, given the settled units."""
        return [
            gate.log_weights(self.scale * values.float(), self.settled).softmax(-1)
            for gate, values in zip(self.groups, logits, strict=True)
        ]

    def state(self, logits: Sequence[Tensor]) -> GateState:
        """See `Gates.state`; the decision is the most probable pattern of every group."""
        kept: list[int] = []
        inclusion: list[float] = []
        probabilities = self.probabilities(logits)
        for gate, values, chances_C in zip(self.groups, logits, probabilities, strict=True):
            kept += gate.patterns[int(gate.log_weights(values, self.settled).argmax())]
            inclusion += (chances_C @ gate.choices_CM.to(chances_C)).clamp(max=1.0).tolist()
        return GateState(
            tuple(kept), tuple(inclusion), tuple(tuple(p.tolist()) for p in probabilities)
        )


def entropy(probabilities: Sequence[float]) -> float:
    """Entropy of a group's distribution, in nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)
