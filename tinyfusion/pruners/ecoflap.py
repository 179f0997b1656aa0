"""ECoFLaP's importance from forwards alone: what a small change of a unit does to the loss.

Source: arXiv 2310.02998, whose second stage, pruning within layers by these scores, does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain, running_only
from tinyfusion.backbones.unit_weights import OwnParameter
from tinyfusion.errors import InputError
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.scored import Scored
from tinyfusion.pruners.selectors import Selector
from tinyfusion.seeding import generator
from tinyfusion.states import States, batch_of, blend, streams

Form = Literal["gate", "weights"]
"""What is changed: the share of a unit's effect, or its parameters."""


class Seeded(NamedTuple):
    """A calibration batch, and the seed of what is drawn besides."""

    loss: HeldOutLoss
    seed: int


def closing(unit: int, delta: float, kept: Collection[int]) -> BlockRunner:
    """A runner that takes back a share of what one unit does.

    Args:
        unit: its number.
        delta: the share: 0 runs it as it is, 1 leaves it out.
        kept: units that run.
    """

    def runner(index: int, block: nn.Module, states: States, condition: Any) -> States:
        if index not in kept:
            return states
        out = run_plain(index, block, states, condition)
        if index != unit:
            return out
        device = streams(states)[0].device
        keep_B = torch.full((batch_of(states),), 1 - delta, dtype=torch.float64, device=device)
        return blend(keep_B, out, states)

    return runner


def slope_along_draws(
    loss: Callable[[], float],
    parameters: Sequence[OwnParameter],
    epsilon: float,
    draws: int,
    *key: int | str,
) -> float:
    """Mean of ``|L(w + eps z) - L(w - eps z)| / (2 eps)`` over directions ``z`` ~ N(0, I).

    It estimates ``E |g.z| = ||g|| sqrt(2 / pi)`` with the gradient g (ECoFLaP's zeroth-order
    score). Parameters are changed in place and have their values again afterwards, bit by bit: they
    are put back from a copy, as subtracting a change again would round.

    Args:
        loss: the loss with the parameters as they are.
        parameters: what is changed.
        epsilon: size of the change.
        draws: number of directions.
        key: seed of the directions, see `tinyfusion.seeding.generator`.
    """
    held = [own.values.clone() for own in parameters]
    total = 0.0
    try:
        for draw in range(draws):
            ends = []
            for sign in (1, -1):
                # The same direction both times, made anew rather than kept.
                noise = generator(*key, draw)
                for own, values in zip(parameters, held, strict=True):
                    z = torch.randn(values.shape, generator=noise).to(values)
                    own.write(values + sign * epsilon * z)
                ends.append(loss())
            total += abs(ends[0] - ends[1]) / (2 * epsilon)
    finally:
        for own, values in zip(parameters, held, strict=True):
            own.write(values)
    return total / draws


class ECoFLaP(Scored):
    """Removal of the units to a small change of which the loss is least sensitive.

    ``form="gate"``: ``s_i = |L(m_i = 1) - L(m_i = 1 - delta)| / delta``, where ``m_i`` is the share
    of what the unit does that is applied; one forward per unit and one more. ``form="weights"``:
    `slope_along_draws` of all parameters of the unit, two forwards per unit and draw, as published.
    No gradients are needed.

    Args:
        selector: how to go from scores to units.
        num_samples: calibration samples; published: 32 to 128.
        protect_last: never remove the last unit.
        form: what is changed.
        delta: share of a unit's effect that is taken back, for gates.
        epsilon: size of the change, for weights.
        draws: directions, for weights; published: one for each batch.

    Raises:
        InputError: no samples, another form, or a number out of range.
    """

    name: ClassVar[str] = "ecoflap"
    criterion: ClassVar[str] = "zeroth_order"

    def __init__(
        self,
        selector: Selector,
        num_samples: int = 128,
        protect_last: bool = False,
        form: Form = "gate",
        delta: float = 0.01,
        epsilon: float = 1e-3,
        draws: int = 8,
    ) -> None:
        super().__init__(selector, num_samples, protect_last)
        if form not in get_args(Form):
            raise InputError(
                f"pruner.form={form!r} is not known; valid: {', '.join(get_args(Form))}"
            )
        if not 0 < delta <= 1:
            raise InputError(f"pruner.delta={delta} must be above 0 and at most 1")
        if not epsilon > 0:
            raise InputError(f"pruner.epsilon={epsilon} must be above 0")
        if draws < 1:
            raise InputError(f"pruner.draws={draws} must be at least 1")
        self.form, self.delta, self.epsilon, self.draws = form, delta, epsilon, draws

    def calibration(self, context: PruningContext) -> Seeded:
        """The batch, and the run's seed for directions."""
        return Seeded(super().calibration(context), context.seed)

    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """How much the loss changes with each unit, per change of the unit."""
        loss, seed = calibration

        def found(runner: BlockRunner) -> float:
            return loss(net, runner)["loss"]

        if self.form == "gate":
            whole = found(running_only(kept))
            slopes = [
                abs(whole - found(closing(unit, self.delta, kept))) / self.delta for unit in kept
            ]
        else:
            units = net.units()
            slopes = [
                slope_along_draws(
                    lambda: found(running_only(kept)),
                    list(net.own_parameters(units[unit]).values()),
                    self.epsilon,
                    self.draws,
                    seed,
                    "ecoflap",
                    units[unit].name,
                )
                for unit in kept
            ]
        return torch.tensor(slopes, dtype=torch.float64)

    def evidence(self, context: PruningContext, calibration: Any, selection: Any) -> dict[str, Any]:
        """What was changed, and by how much."""
        if self.form == "gate":
            return {"form": self.form, "delta": self.delta}
        return {"form": self.form, "epsilon": self.epsilon, "draws": self.draws}
