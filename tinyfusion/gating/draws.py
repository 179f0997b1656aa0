"""Random sets of units that use a budget exactly, with gradients for the logits behind them.

Shape suffixes: B batch, L units, K units that stay, Q nodes of a quadrature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyfusion.budget import Budget
from tinyfusion.errors import InputError
from tinyfusion.seeding import generator

DRAWS = 4096
"""Draws from which probabilities are estimated that have no formula."""

STEP = 0.25
"""Distance of the nodes of the quadrature; its error is about exp(-pi^2 / STEP)."""

_FIRST = 1e6
"""Added to what has to be taken first; far above any difference of logits."""


class Draw(Protocol):
    """A distribution over the sets of units that a budget allows."""

    def check(self, budget: Budget) -> None:
        """Refuse a budget that the distribution does not know.

        Raises:
            InputError: it is of that kind.
        """

    def mask(
        self, log_weights_L: Tensor, gumbel_BL: Tensor, temperature: float, budget: Budget
    ) -> Tensor:
        """Draw a set for each row.

        Args:
            log_weights_L: scaled logits; a higher one makes its unit likelier to stay.
            gumbel_BL: Gumbel(0, 1) noise.
            temperature: of the relaxation, if it has one.
            budget: what may stay.

        Returns:
            1 for units that stay and 0 for others, shape (B, L), differentiable in the weights.
        """

    def inclusion(self, log_weights_L: Tensor, budget: Budget) -> Tensor:
        """Probability that each unit stays, shape (L,), float64, on the CPU."""

    def penalty(self, log_weights_L: Tensor, budget: Budget) -> Tensor | None:
        """What to add to the loss so that draws keep to the budget; ``None`` if they always do."""


@dataclass(frozen=True)
class GumbelTopK:
    """The units of largest perturbed logits, until the budget is used (arXiv 1903.06059).

    With every cost 1 these are the k largest: a draw without replacement (Plackett-Luce).
    Gradients are straight through ``q = sigmoid(z / temperature - nu)``, where ``z`` are the
    perturbed logits and ``nu`` is such that the costs of ``q`` add up to the budget in every row
    (arXiv 1906.08707); see `relaxed`.
    """

    def check(self, budget: Budget) -> None:
        """Every budget is known."""

    def mask(
        self, log_weights_L: Tensor, gumbel_BL: Tensor, temperature: float, budget: Budget
    ) -> Tensor:
        """See `Draw.mask`."""
        z_BL = log_weights_L + gumbel_BL
        hard_BL = largest(z_BL.detach(), budget)
        free, keep = list(budget.free), budget.keep_free
        if keep is None:
            costs = torch.tensor([budget.costs[unit] for unit in free]).to(z_BL)
            limit = budget.limit - budget.cost(budget.protected)
        else:
            costs, limit = torch.ones(len(free)).to(z_BL), float(keep)
        soft_BF = relaxed(z_BL[:, free] / temperature, costs, limit)
        # Forward value hard, gradient of soft: x - x is exactly 0.
        return hard_BL.index_add(
            1, torch.tensor(free, device=z_BL.device), soft_BF - soft_BF.detach()
        )

    def inclusion(self, log_weights_L: Tensor, budget: Budget) -> Tensor:
        """By quadrature where units cost the same, else by `DRAWS` draws of a fixed seed."""
        weights_L = log_weights_L.detach().double().cpu()
        if budget.keep_free is not None and not budget.minimums:
            probabilities_L = torch.ones_like(weights_L)
            free = list(budget.free)
            probabilities_L[free] = among_largest(weights_L[free], budget.keep_free)
            return probabilities_L
        uniform_DL = torch.rand(
            DRAWS, budget.count, dtype=torch.float64, generator=generator(0, "inclusion")
        )
        gumbel_DL = -torch.log(-torch.log(uniform_DL.clamp(min=1e-300)))
        return largest(weights_L + gumbel_DL, budget).mean(0)

    def penalty(self, log_weights_L: Tensor, budget: Budget) -> None:
        """Every draw keeps to the budget."""


class ConditionalBernoulli:
    """Sets of k units with probability proportional to the product of their weights (SIMPLE).

    Draws and probabilities are exact, and gradients are those of the exact probabilities that
    each unit stays (arXiv 2210.01941): they depend on the draw only through the loss. The
    temperature has no part in it.
    """

    def check(self, budget: Budget) -> None:
        """Only units of equal cost are known, without minimums.

        Raises:
            InputError: units cost differently, or there are minimums.
        """
        if budget.keep_free is None or budget.minimums:
            raise InputError(
                f"{budget}: {type(self).__name__} draws a number of units, all of one cost and "
                "without minimums; choose pruner.draw._target_=tinyfusion.gating.draws.GumbelTopK"
            )

    def mask(
        self, log_weights_L: Tensor, gumbel_BL: Tensor, temperature: float, budget: Budget
    ) -> Tensor:
        """See `Draw.mask`."""
        free, keep = list(budget.free), cast(int, budget.keep_free)
        weights_F = log_weights_L[free]
        at = torch.tensor(free, device=gumbel_BL.device)
        hard_BL = torch.ones_like(gumbel_BL)
        uniform_BF = torch.exp(-torch.exp(-gumbel_BL[:, free].double())).clamp(max=1 - 1e-16)
        hard_BF = _drawn(weights_F.detach().double(), uniform_BF, keep).to(gumbel_BL.dtype)
        soft_F = kept_marginals(weights_F, keep)
        return hard_BL.index_copy(1, at, hard_BF + (soft_F - soft_F.detach()))

    def inclusion(self, log_weights_L: Tensor, budget: Budget) -> Tensor:
        """The exact probabilities."""
        weights_L = log_weights_L.detach().double().cpu()
        probabilities_L = torch.ones_like(weights_L)
        free, keep = list(budget.free), cast(int, budget.keep_free)
        # Rounding may leave the last place above 1.
        probabilities_L[free] = kept_marginals(weights_L[free], keep).detach().clamp(0, 1)
        return probabilities_L

    def penalty(self, log_weights_L: Tensor, budget: Budget) -> None:
        """Every draw keeps to the budget."""


def largest(values_BL: Tensor, budget: Budget) -> Tensor:
    """The set of `Budget.fill` by falling value, of each row: 1 for units that stay, else 0."""
    order_BL = values_BL.clone()
    for unit in budget.protected:
        order_BL[:, unit] += 2 * _FIRST
    for minimum in budget.minimums:
        count = minimum.count
        if count > 0:
            units = torch.tensor(minimum.units, device=values_BL.device)
            first_BM = order_BL[:, units].topk(count, dim=-1).indices
            order_BL.scatter_add_(
                1, units[first_BM], torch.full_like(first_BM, _FIRST, dtype=order_BL.dtype)
            )
    taken_BL = torch.zeros_like(values_BL)
    if budget.counts:
        return taken_BL.scatter(1, order_BL.topk(budget.keep, dim=-1).indices, 1.0)
    costs_L = torch.tensor(budget.costs, dtype=torch.float64, device=values_BL.device)
    left_B = torch.full_like(costs_L[:1], budget.limit).repeat(len(values_BL))
    for next_B in order_BL.argsort(dim=-1, descending=True, stable=True).unbind(-1):
        cost_B = costs_L[next_B]
        fits_B = cost_B <= left_B
        left_B = left_B - cost_B * fits_B
        taken_BL = taken_BL.scatter(1, next_B[:, None], fits_B[:, None].to(taken_BL.dtype))
    return taken_BL


def relaxed(values_BL: Tensor, costs_L: Tensor, limit: float) -> Tensor:
    """``sigmoid(values - nu)``, with ``nu`` of each row such that the costs add up to ``limit``.

    Its gradient takes the movement of ``nu`` into account: with every cost 1, that of each row
    sums to zero, as that of a softmax does.

    Args:
        values_BL: perturbed logits over the temperature.
        costs_L: cost of each unit, positive.
        limit: what they are to cost, less than all together.
    """
    return cast(Tensor, _Relaxed.apply(values_BL, costs_L, limit))


class _Relaxed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_BL: Tensor, costs_L: Tensor, limit: float) -> Tensor:
        dtype = values_BL.dtype
        values_BL, costs_L = values_BL.double(), costs_L.double()
        # Beyond 40 a sigmoid is 0 or 1 to the last place.
        low_B1 = values_BL.amin(-1, keepdim=True) - 40
        high_B1 = values_BL.amax(-1, keepdim=True) + 40
        for _ in range(48):
            middle_B1 = (low_B1 + high_B1) / 2
            over_B1 = ((values_BL - middle_B1).sigmoid() * costs_L).sum(-1, keepdim=True) > limit
            low_B1 = torch.where(over_B1, middle_B1, low_B1)
            high_B1 = torch.where(over_B1, high_B1, middle_B1)
        offsets_BL = values_BL - (low_B1 + high_B1) / 2
        soft_BL = offsets_BL.sigmoid()
        # Not soft * (1 - soft), which is 0 where soft rounds to 1.
        ctx.save_for_backward(soft_BL * (-offsets_BL).sigmoid(), costs_L)
        return soft_BL.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        slope_BL, costs_L = ctx.saved_tensors
        weighted_BL = slope_BL * gradients[0].double()
        paid_BL = slope_BL * costs_L
        paid_B1 = paid_BL.sum(-1, keepdim=True)
        # All values are far from the threshold: nothing moves.
        share_BL = torch.where(paid_B1 > 1e-280, paid_BL / paid_B1.clamp(min=1e-280), 0.0)
        gradient_BL = weighted_BL - share_BL * weighted_BL.sum(-1, keepdim=True)
        return gradient_BL.to(gradients[0].dtype), None, None


def among_largest(log_weights_L: Tensor, keep: int) -> Tensor:
    """Probability that each of some Gumbel variables is among the ``keep`` largest, shape (L,).

    By the trapezoidal rule over the variable's own value, whose error falls exponentially; given
    that value, the number of larger ones is a sum of independent Bernoulli variables.

    Args:
        log_weights_L: locations of the variables, float64.
        keep: less than L.
    """
    size = len(log_weights_L)
    nodes_Q = torch.arange(-4.0, 40.0, STEP, dtype=torch.float64)
    density_Q = STEP * torch.exp(-nodes_Q - torch.exp(-nodes_Q))
    values_LQ = log_weights_L[:, None] + nodes_Q
    # count_LQK: probability that K of the others are larger than the value.
    count_LQK = values_LQ.new_zeros(size, len(nodes_Q), keep)
    count_LQK[..., 0] = 1.0
    for other in range(size):
        larger_LQ1 = -torch.expm1(-torch.exp(log_weights_L[other] - values_LQ))[..., None]
        larger_LQ1[other] = 0.0
        stays = count_LQK * (1 - larger_LQ1)
        stays[..., 1:] += count_LQK[..., :-1] * larger_LQ1
        count_LQK = stays
    return (count_LQK.sum(-1) * density_Q).sum(-1).clamp(max=1.0)


def kept_marginals(log_weights_L: Tensor, keep: int) -> Tensor:
    """Probability that each unit stays under the conditional Bernoulli distribution, shape (L,).

    The derivative of the log of the elementary symmetric polynomial of the weights of degree
    ``keep``; differentiable in turn.
    """
    with torch.enable_grad():
        weights_L = log_weights_L.double()
        if not weights_L.requires_grad:
            weights_L = weights_L.detach().requires_grad_()
        total = _polynomials(weights_L, keep)[-1][keep]
        (marginals_L,) = torch.autograd.grad(
            total, weights_L, create_graph=log_weights_L.requires_grad
        )
    return marginals_L.to(log_weights_L.dtype)


def _polynomials(log_weights_L: Tensor, keep: int) -> list[Tensor]:
    """Logs of the elementary symmetric polynomials of the first 0..L weights.

    Of n weights those of degrees 0..min(n, keep): higher ones are 0.
    """
    row = torch.zeros_like(log_weights_L[:1])
    rows = [row]
    for weight in log_weights_L:
        with_it = row + weight
        # logaddexp, whose second derivative is not a number where the terms are far apart.
        parts = [row[:1], row[1:] - F.logsigmoid(row[1:] - with_it[:-1])]
        row = torch.cat([*parts, with_it[-1:]] if len(row) <= keep else parts)
        rows.append(row)
    return rows


def _drawn(log_weights_L: Tensor, uniform_BL: Tensor, keep: int) -> Tensor:
    """One set of ``keep`` units per row, from the last unit to the first; 1 for those that stay."""
    rows = [
        torch.cat([row, row.new_full((keep + 1 - len(row),), -torch.inf)])
        for row in _polynomials(log_weights_L, keep)
    ]
    left_B = torch.full(uniform_BL.shape[:1], keep, device=uniform_BL.device)
    taken = []
    for unit in reversed(range(len(log_weights_L))):
        # Of the first sets of left_B units, the share that holds this unit.
        with_B = log_weights_L[unit] + rows[unit][(left_B - 1).clamp(min=0)]
        chance_B = torch.exp(with_B - rows[unit + 1][left_B]) * (left_B > 0)
        takes_B = uniform_BL[:, unit] < chance_B
        left_B = left_B - takes_B.long()
        taken.append(takes_B)
    return torch.stack(taken[::-1], 1).to(uniform_BL.dtype)
