"""TinyFusion's own pruner: learn which units stay (arXiv 2412.01199)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from tinyfusion.budget import placeholders
from tinyfusion.errors import InputError
from tinyfusion.gating.contract import Gates
from tinyfusion.gating.draws import Draw, GumbelTopK
from tinyfusion.gating.pattern_gates import START_LOGIT, PatternGates, entropy
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.pruners.scored import Scored
from tinyfusion.seeding import seed_of
from tinyfusion.training.early_stop import EarlyStop
from tinyfusion.training.phases import Phase
from tinyfusion.training.recipes import tinydit_d14
from tinyfusion.training.schedules import Linear
from tinyfusion.units import BLOCKS, BRANCHES

if TYPE_CHECKING:
    from tinyfusion.training.mask_learning import MaskLearning

MASK_LEARNING = "mask_learning"
GUMBEL_TOP_K = GumbelTopK()
START_SPREAD = 0.04
UNIT_RATE_FACTOR = 2.0
"""Rate of single units' gates over that of the update. At the published 10 a logit moves by a nat a
step, and choices are made before they are compared (docs/results.md)."""


class Delta(Protocol):
    """The co-trained weight update; see `tinyfusion.gating.deltas`."""

    def attach(self, net: nn.Module) -> None:
        """Attach to ``net`` in place and leave only the update trainable."""


class Learned:
    """Learn gates together with a weight update, then keep what they have come to prefer.

    Under a budget there is one logit per unit, and every set of units that the budget allows can
    be learned. Within the groups of a scheme there is one for each of a group's keep-patterns, as
    in the paper.

    Args:
        delta: the weight update.
        temperature: Gumbel-softmax temperature over the run.
        scale: factor from logits to log-probabilities over the run.
        gate_rate_factor: learning rate of the gates over that of the update; ``None`` for
            `UNIT_RATE_FACTOR`, and within the groups of a scheme for the published one.
        gate_ema_decay: decay of the gates' average; ``None`` follows the run's length.
        draw: distribution over the sets of units that a budget allows; not used with a scheme.
        stop: when mask learning may end early; ``None`` for never.
        start: criterion in whose order the logits start; ``None`` for equal ones. Not known with
            a scheme.
        start_spread: difference between the highest and the lowest logit then; ``None`` for
            `START_SPREAD`.
        settle: decide units, and stop paying for them, once the probability of their less likely
            outcome is below this; ``None`` for never (see `MaskLearning`).
        dense: run every unit for every sample with gradients (see `GatedBackbone`).
        gate_gradients: share of the dropped pairs of sample and unit that give their gate a
            gradient (see `GatedBackbone`).

    Raises:
        InputError: a factor, temperature, scale or spread that is not positive, a decay outside
            [0, 1), a start that is no criterion, a spread without a start, a threshold outside
            (0, 0.5), a share outside (0, 1], or a share below 1 with ``dense``.
    """

    uses_scheme = True
    kinds: ClassVar[tuple[str, ...]] = (BLOCKS, BRANCHES)
    unit_scores: ClassVar[tuple[str, ...]] = ("inclusion",)

    def __init__(
        self,
        delta: Delta,
        temperature: Linear,
        scale: Linear,
        gate_rate_factor: float | None = None,
        gate_ema_decay: float | None = None,
        draw: Draw = GUMBEL_TOP_K,
        stop: EarlyStop | None = None,
        start: Scored | None = None,
        start_spread: float | None = None,
        settle: float | None = None,
        dense: bool = False,
        gate_gradients: float = 1.0,
    ) -> None:
        if gate_rate_factor is not None and gate_rate_factor <= 0:
            raise InputError(f"pruner.gate_rate_factor={gate_rate_factor} must be positive")
        if temperature.start <= 0 or temperature.end <= 0:
            raise InputError("pruner.temperature must stay positive")
        if scale.start <= 0 or scale.end <= 0:
            raise InputError("pruner.scale must stay positive")
        if gate_ema_decay is not None and not 0 <= gate_ema_decay < 1:
            raise InputError(
                f"pruner.gate_ema_decay={gate_ema_decay} must be at least 0 and less than 1"
            )
        if start is not None and not isinstance(start, Scored):
            raise InputError(
                f"pruner.start: a {type(start).__name__} gives no scores to order logits by; give "
                "a criterion, such as +pruner@pruner.start=sensitivity"
            )
        if start_spread is not None and start is None:
            raise InputError(
                f"pruner.start_spread={start_spread} is how far apart the logits of pruner.start "
                "are, which is not given; give it by +pruner@pruner.start=, or leave both out"
            )
        if start_spread is not None and start_spread <= 0:
            raise InputError(f"pruner.start_spread={start_spread} must be positive")
        if settle is not None and not 0 < settle < 0.5:
            raise InputError(f"pruner.settle={settle} must be more than 0 and less than 0.5")
        if not 0 < gate_gradients <= 1:
            raise InputError(
                f"pruner.gate_gradients={gate_gradients} must be more than 0 and at most 1"
            )
        if dense and gate_gradients < 1:
            raise InputError(
                f"pruner.gate_gradients={gate_gradients} leaves out dropped pairs, which "
                "pruner.dense=true runs all; give one of them"
            )
        self.settle, self.dense, self.gate_gradients = settle, dense, gate_gradients
        self.delta = delta
        self.draw, self.stop = draw, stop
        self.start = start
        self.start_spread = START_SPREAD if start_spread is None else start_spread
        self.temperature, self.scale = temperature, scale
        self.gate_rate_factor, self.gate_ema_decay = gate_rate_factor, gate_ema_decay

    def phases(self, context: PruningContext) -> list[Phase]:
        """Mask learning.

        Raises:
            InputError: a budget that `draw` does not know or that leaves nothing to learn, a
                threshold ``settle`` that units are below from the start, or a draw, a criterion to
                start from, protected units or minimums beside a scheme.
        """
        budget = context.budget
        assert budget is not None
        if context.scheme is None:
            self.draw.check(budget)
            if budget.counts and len(budget.protected) == budget.keep:
                raise InputError(
                    f"{budget}: all that stay are protected, so that there is nothing to learn; "
                    "raise keep=, or give the blocks as pruner=indices"
                )
        elif budget.constraints:
            raise InputError(
                f"budget.{budget.constraints[0]}: pruner=learned does not know it beside "
                f"scheme={context.scheme}, whose patterns are learned as a whole; give "
                "keep= instead of scheme="
            )
        elif self.draw != GUMBEL_TOP_K:
            raise InputError(
                f"pruner.draw={type(self.draw).__name__} draws sets of single units, but a "
                "scheme's patterns have draws of their own; give keep= or a budget instead of "
                "scheme="
            )
        elif self.start is not None:
            raise InputError(
                "pruner.start orders single units, but a scheme's logits are of patterns; give "
                "keep= or a budget instead of scheme="
            )
        if self.settle is not None:
            self._check_settle(self.settle, context)
        # Which units stay is not known yet; a dry run counts as many.
        leaves = context.choice(placeholders(budget), scheme=context.scheme).decision(
            context.net.depth, method="learned", seed=context.seed, budget=budget.record()
        )
        return [Phase(MASK_LEARNING, lambda: self._module(context), leaves=leaves)]

    def _module(self, context: PruningContext) -> MaskLearning:
        from tinyfusion.training.mask_learning import MaskLearning  # imports Lightning

        assert context.budget is not None
        # Before the update is attached, which is none of the network's own.
        gates = self._gates(context)
        # Start values of the update depend on the run's seed alone, not on what was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(context.seed, "delta"))
            self.delta.attach(context.net)
        return MaskLearning(
            context.net,
            gates,
            self._rate_factor(context),
            self.temperature,
            self.scale,
            self.gate_ema_decay,
            context.units,
            self.stop,
            self.settle,
            self.dense,
            self.gate_gradients,
            **context.shared(MASK_LEARNING),
        )

    def _check_settle(self, settle: float, context: PruningContext) -> None:
        """Refuse a threshold by which units would be decided before anything is learned."""
        gates = self._plain_gates(context)
        gates.scale = self.scale.start
        start = gates.state(gates.logits()).inclusion
        least = min(min(p, 1 - p) for p in start if 0 < p < 1)
        if settle >= least:
            raise InputError(
                f"pruner.settle={settle} must be less than {least:.3g}, the probability of the "
                "less likely outcome with which units begin here; such as 0.02"
            )

    def _plain_gates(self, context: PruningContext) -> Gates:
        """The gates without a start of their own."""
        if context.scheme is not None:
            return PatternGates(context.scheme)
        assert context.budget is not None
        return UnitGates(context.budget, self.draw)

    def _rate_factor(self, context: PruningContext) -> float:
        if self.gate_rate_factor is not None:
            return self.gate_rate_factor
        published = tinydit_d14.gates.gate_rate_factor
        return UNIT_RATE_FACTOR if context.scheme is None else published

    def _gates(self, context: PruningContext) -> Gates:
        # A dry run's network has no values to score.
        if self.start is None or next(context.net.parameters()).is_meta:
            return self._plain_gates(context)
        assert context.budget is not None
        calibration = self.start.calibration(context)
        every = range(context.budget.count)
        scores_L = self.start.checked_scores(context.as_blocks, calibration, every)
        return UnitGates(context.budget, self.draw, ordered_logits(scores_L, self.start_spread))

    def choose(self, context: PruningContext) -> Choice:
        """Keep what the averaged gates are for, see `Gates.state`."""
        from tinyfusion.training.mask_learning import MaskLearning  # imports Lightning

        module = context.trained[MASK_LEARNING]
        assert isinstance(module, MaskLearning)
        averaged, live = module.decision_state()
        names = [unit.name for unit in context.units]
        scores: dict[str, Any] = {
            "inclusion": dict(zip(names, averaged.inclusion, strict=True)),
            "margin": averaged.margin,
            "kept_live": [names[unit] for unit in live.kept],
            "skipped_steps": module.skipped_steps,
            "steps": module.global_step,
        }
        if averaged.groups:
            scores["confidence"] = [max(p) for p in averaged.groups]
            scores["entropy"] = [entropy(p) for p in averaged.groups]
        return context.choice(
            averaged.kept,
            scheme=context.scheme,
            probabilities=[list(p) for p in averaged.groups] or None,
            scores=scores,
        )


def ordered_logits(scores_L: Tensor, spread: float) -> Tensor:
    """Evenly spaced logits in the order of scores, equal ones where scores are equal.

    By rank, because scores of blocks often differ by orders of magnitude.

    Args:
        scores_L: scores.
        spread: difference between the highest and the lowest logit.
    """
    values_V, place_L = scores_L.unique(return_inverse=True)
    steps = max(len(values_V) - 1, 1)
    return (START_LOGIT + spread * (place_L / steps - 0.5)).float()
