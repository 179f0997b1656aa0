"""Units that stay independently of each other, with a penalty on what they are expected to cost.

Shape suffixes: B batch, L units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.budget import Budget
from tinyfusion.errors import InputError


class PenalisedCost:
    """One coin per unit, and the log-cost penalty of TAS (arXiv 1905.09717).

    Draws meet the budget on average only, once the penalty has steered them there; the decision
    meets it always. With ``E = sum_i p_i c_i``, the expected cost, the loss has the further term
    ``weight * log E`` while the likeliest set costs more than the budget, ``-weight * log E`` while
    it costs less by more than ``tolerance`` of all units together, and none between. TAS chooses
    depths of stages; single units are ours. Gradients are straight through
    ``sigmoid((log_weights + noise) / temperature)``, with logistic noise. The loss that is shown
    while the mask is learned is the one that is minimised, with this term in it.

    Args:
        weight: of the penalty.
        tolerance: how far below the budget is close enough, as a share of the cost of all units.

    Raises:
        InputError: a weight that is not positive, or a tolerance outside [0, 1).
    """

    def __init__(self, weight: float = 2.0, tolerance: float = 0.05) -> None:
        if weight <= 0:
            raise InputError(f"pruner.draw.weight={weight} must be positive")
        if not 0 <= tolerance < 1:
            raise InputError(
                f"pruner.draw.tolerance={tolerance} must be at least 0 and less than 1"
            )
        self.weight, self.tolerance = weight, tolerance

    def check(self, budget: Budget) -> None:
        """Minimums are not known.

        Raises:
            InputError: there are some.
        """
        if budget.minimums:
            raise InputError(
                f"{budget}: {type(self).__name__} draws units one by one, without minimums; "
                "choose pruner.draw._target_=tinyfusion.gating.draws.GumbelTopK"
            )

    def mask(
        self, log_weights_L: Tensor, gumbel_BL: Tensor, temperature: float, budget: Budget
    ) -> Tensor:
        """See `Draw.mask`."""
        # P(G < x) is uniform for a Gumbel variable: log u - log(1 - u) is logistic noise.
        log_u_BL = -torch.exp(-gumbel_BL.double())
        noise_BL = (log_u_BL - torch.log(-torch.expm1(log_u_BL))).to(gumbel_BL.dtype)
        z_BL = log_weights_L + noise_BL
        soft_BL = (z_BL / temperature).sigmoid()
        hard_BL = (z_BL.detach() > 0).to(soft_BL.dtype)
        held_L = _held(budget, gumbel_BL)
        return torch.where(held_L, 1.0, hard_BL + (soft_BL - soft_BL.detach()))

    def inclusion(self, log_weights_L: Tensor, budget: Budget) -> Tensor:
        """The probabilities of the coins."""
        weights_L = log_weights_L.detach().double().cpu()
        return torch.where(_held(budget, weights_L), 1.0, weights_L.sigmoid())

    def penalty(self, log_weights_L: Tensor, budget: Budget) -> Tensor:
        """See `Draw.penalty`."""
        costs_L = torch.tensor(budget.costs).to(log_weights_L)
        held_L = _held(budget, log_weights_L)
        expected = (torch.where(held_L, 1.0, log_weights_L.sigmoid()) * costs_L).sum()
        likeliest = (((log_weights_L > 0) | held_L) * costs_L).sum().detach()
        too_much = likeliest > budget.limit
        too_little = likeliest < budget.limit - self.tolerance * sum(budget.costs)
        sign = too_much.to(expected.dtype) - too_little.to(expected.dtype)
        return self.weight * sign * torch.log(expected)


def _held(budget: Budget, like: Tensor) -> Tensor:
    """Which units are protected, shape (L,)."""
    protected = [unit in budget.protected for unit in range(budget.count)]
    return torch.tensor(protected, device=like.device)
