"""Learned choice of exactly as many units as a budget allows: one logit per unit.

Shape suffixes: B batch, L units.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tinyfusion.budget import Budget
from tinyfusion.gating.contract import CERTAIN, Gates, GateState
from tinyfusion.gating.draws import Draw
from tinyfusion.gating.pattern_gates import START_LOGIT


class UnitGates(Gates):
    """One logit per unit under a budget; every set that the budget allows can be learned.

    Args:
        budget: what may stay.
        draw: the distribution over the sets.
        start_L: start values of the logits, shape (L,); ``None`` for equal ones, which favour no
            unit.

    Raises:
        InputError: a budget that the distribution does not know.
    """

    def __init__(self, budget: Budget, draw: Draw, start_L: Tensor | None = None) -> None:
        super().__init__()
        draw.check(budget)
        self.budget, self.draw = budget, draw
        self.count = self.num_draws = budget.count
        if start_L is None:
            start_L = torch.full((budget.count,), START_LOGIT)
        self.logits_L = nn.Parameter(start_L.clone())

    @property
    def expected_share(self) -> float:
        """See `Gates.expected_share`; that of the cost, where units are not counted."""
        return self.budget.limit / sum(self.budget.costs)

    def forward(self, gumbel_BK: Tensor) -> Tensor:
        """See `Gates.forward`; one noise number for each unit."""
        # Outside autocast: a bfloat16 product would round the gradient of the logits.
        with torch.autocast(gumbel_BK.device.type, enabled=False):
            weights_L = self._log_weights(self.logits_L)
            self.penalty = self.draw.penalty(weights_L, self.budget)
            mask_BL = self.draw.mask(weights_L, gumbel_BK, self.temperature, self.budget)
            return self._with_settled(mask_BL)

    def _log_weights(self, logits_L: Tensor) -> Tensor:
        """Scaled logits; those of settled units leave no doubt."""
        return self._with_settled(self.scale * logits_L, CERTAIN, -CERTAIN)

    def _with_settled(self, values: Tensor, stays: float = 1.0, goes: float = 0.0) -> Tensor:
        """Values of shape (..., L), with one of two numbers for units that are settled."""
        if not self.settled:
            return values
        places = torch.tensor(list(self.settled), device=values.device)
        numbers = [stays if stay else goes for stay in self.settled.values()]
        known = torch.tensor(numbers, device=values.device).to(values.dtype)
        return values.index_copy(-1, places, known.expand(*values.shape[:-1], -1))

    def state(self, logits: Sequence[Tensor]) -> GateState:
        """See `Gates.state`; the decision is `decide`'s."""
        (logits_L,) = logits
        weights_L = self._log_weights(logits_L)
        inclusion_L = self._with_settled(self.draw.inclusion(weights_L, self.budget))
        gone = [unit for unit, stays in self.settled.items() if not stays]
        values_L = self._with_settled(logits_L, CERTAIN, -CERTAIN)
        kept = decide(values_L, inclusion_L, self.budget, gone)
        return GateState(kept, tuple(inclusion_L.tolist()))


def decide(
    logits_L: Tensor, inclusion_L: Tensor, budget: Budget, gone: Collection[int] = ()
) -> tuple[int, ...]:
    """The units that stay.

    Where units cost the same, those of the largest logits. Where they cost differently, the set
    that the budget allows and whose inclusion probabilities have the largest sum, which is the set
    that has most units in common with a draw (a 0/1 programme). Probabilities of 0 or 1 tell no
    sets apart: as long as there is one, a unit that fits is added, or one of a larger logit, and
    of a probability no smaller, takes the place of another.

    Args:
        logits_L: logits.
        inclusion_L: probability that each unit stays.
        budget: what may stay.
        gone: units that don't stay in any case; the others meet the budget without them.
    """
    order = logits_L.argsort(descending=True, stable=True).tolist()
    order = [unit for unit in order if unit not in gone]
    if budget.keep_free is not None:
        return budget.fill(order)
    from scipy.optimize import Bounds, LinearConstraint, milp  # only where costs differ

    costs = np.asarray(budget.costs)
    scale = 1.0 / costs.sum()
    rows = [LinearConstraint(costs * scale, ub=budget.limit * scale)]
    for minimum in budget.minimums:
        members = np.isin(np.arange(budget.count), minimum.units).astype(float)
        rows.append(LinearConstraint(members, lb=minimum.count))
    least = np.isin(np.arange(budget.count), list(budget.protected)).astype(float)
    most = 1.0 - np.isin(np.arange(budget.count), list(gone))
    found = milp(
        -inclusion_L.double().numpy(), integrality=1, bounds=Bounds(least, most), constraints=rows,
        # Presolved, HiGHS prints a line where its tolerance lets a set through that is none.
        options={"mip_rel_gap": 0.0, "presolve": False},
    )  # fmt: skip
    kept = set(np.flatnonzero(np.rint(found.x)).tolist()) if found.x is not None else set()
    if not budget.allows(kept):  # by less than the solver's tolerance
        kept = set(budget.fill(order))
    return improved(kept, order, inclusion_L.tolist(), budget)


def improved(
    kept: set[int], order: Sequence[int], inclusion: Sequence[float], budget: Budget
) -> tuple[int, ...]:
    """Add units, and exchange them for others that come earlier in ``order``, while that fits.

    Args:
        kept: units that the budget allows.
        order: all units, the most important first.
        inclusion: probability of each unit, whose sum does not fall.
        budget: what may stay.
    """
    place = {unit: number for number, unit in enumerate(order)}
    kept = set(kept)
    while True:
        outside = [unit for unit in order if unit not in kept]
        # One more; or, for the last in the order for which there is one, a better one instead.
        gone: list[set[int]] = [
            set(),
            *({unit} for unit in sorted(kept, key=lambda unit: -place[unit])),
        ]
        better = next(
            (
                (kept - out) | {unit}
                for out in gone
                for unit in outside
                if all(
                    place[unit] < place[other] and inclusion[unit] >= inclusion[other]
                    for other in out
                )
                and budget.allows((kept - out) | {unit})
            ),
            None,
        )
        if better is None:
            return tuple(sorted(kept))
        kept = better
