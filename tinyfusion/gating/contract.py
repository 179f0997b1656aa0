"""What mask learning asks of gates: a learned distribution over the units that stay.

Shape suffixes: B batch, K noise numbers, L units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

CERTAIN = 1e4
"""Log-weight of what is certain; far above any difference of noise, and any temperature's."""


class GateState(NamedTuple):
    """What a set of logits says.

    Attributes:
        kept: numbers of the units that would stay, ascending.
        inclusion: probability that each unit stays, under the distribution that is drawn from.
        groups: for gates of groups of units, per group the probability of every keep-pattern; empty
            for others.
    """

    kept: tuple[int, ...]
    inclusion: tuple[float, ...]
    groups: tuple[tuple[float, ...], ...] = ()

    @property
    def margin(self) -> float:
        """How sure the least sure unit is: the smallest probability of what would be decided of it.

        Below 0.5, some unit that would stay is likelier to be left out, or the other way round.
        """
        kept = set(self.kept)
        return min(p if unit in kept else 1 - p for unit, p in enumerate(self.inclusion))


class Gates(nn.Module, ABC):
    """A learned distribution over sets of units.

    Attributes:
        count: number of units L.
        num_draws: noise numbers K that a draw takes.
        temperature: of the relaxation, set by the schedule.
        scale: factor between logits and log-probabilities, set by the schedule.
        penalty: of the last draw, what to add to the loss; ``None`` for nothing.
        settled: units that are decided, by number, with whether they stay. Draws and
            probabilities are those of the others given them.
    """

    count: int
    num_draws: int

    @property
    @abstractmethod
    def expected_share(self) -> float:
        """About what share of the units a draw keeps; for dry runs, whose logits have no values."""

    @property
    def group_starts(self) -> tuple[int, ...]:
        """First units of groups that are decided each by itself, but for that of the first."""
        return ()

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0
        self.scale = 1.0
        self.penalty: Tensor | None = None
        self.settled: dict[int, bool] = {}

    @abstractmethod
    def forward(self, gumbel_BK: Tensor) -> Tensor:
        """Sample a mask per sample.

        Args:
            gumbel_BK: Gumbel(0, 1) noise.

        Returns:
            1 for kept and 0 for dropped units, shape (B, L), differentiable in the logits.
        """

    @abstractmethod
    def state(self, logits: Sequence[Tensor]) -> GateState:
        """What these logits say at the present scale.

        Args:
            logits: one tensor for each parameter, in the order of ``parameters()``; on the CPU.
        """

    def settle(self, states: Sequence[GateState], below: float) -> Mapping[int, bool]:
        """Decide units whose probability has collapsed in all of some states.

        Only as these states would decide them, so that what is settled is always part of a choice
        that may be made.

        Args:
            states: such as those of the averaged and of the live logits.
            below: what is left of the probability of the less likely outcome, at most.

        Returns:
            The units that are decided by this call.
        """
        found = {}
        for unit in set(range(self.count)) - set(self.settled):
            stays = unit in states[0].kept
            other = [1 - s.inclusion[unit] if stays else s.inclusion[unit] for s in states]
            if max(other) < below and all((unit in s.kept) == stays for s in states):
                found[unit] = stays
        self.settled |= found
        return found

    def logits(self) -> list[Tensor]:
        """Detached copies of the logits on the CPU, one tensor for each parameter.

        Sharded logits are gathered: all ranks must call this together.
        """
        return on_cpu([parameter.detach() for parameter in self.parameters()])


def on_cpu(logits: Sequence[Tensor]) -> list[Tensor]:
    """Copies of logits, gathered where they are sharded, in one transfer."""
    from torch.distributed.tensor import DTensor  # slow to import

    whole = [v.full_tensor() if isinstance(v, DTensor) else v for v in logits]
    return list(torch.cat(whole).cpu().split([len(v) for v in whole]))
