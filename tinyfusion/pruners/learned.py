"""TinyFusion's own pruner: learn the distribution over keep-patterns (arXiv 2412.01199)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.gating.gates import Gates
from tinyfusion.pruners.contract import Choice, PruningContext
from tinyfusion.scheme import Scheme, check_keep
from tinyfusion.seeding import seed_of
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.phases import Phase
from tinyfusion.training.schedules import Linear

MASK_LEARNING = "mask_learning"


class Delta(Protocol):
    """The co-trained weight update; see `tinyfusion.gating.deltas`."""

    def attach(self, net: nn.Module) -> None:
        """Attach to ``net`` in place and leave only the update trainable."""


class Learned:
    """Learn gates together with a weight update, then keep the most probable patterns.

    Args:
        delta: the weight update.
        temperature: Gumbel-softmax temperature over the run.
        scale: factor from logits to log-probabilities over the run.
        gate_rate_factor: learning rate of the gates over that of the update.
        gate_ema_decay: decay of the gates' average; ``None`` follows the run's length.

    Raises:
        InputError: a factor, temperature or scale that is not positive, or a decay outside
            [0, 1).
    """

    uses_scheme = True

    def __init__(
        self,
        delta: Delta,
        temperature: Linear,
        scale: Linear,
        gate_rate_factor: float = 10.0,
        gate_ema_decay: float | None = None,
    ) -> None:
        if gate_rate_factor <= 0:
            raise InputError(f"pruner.gate_rate_factor={gate_rate_factor} must be positive")
        if temperature.start <= 0 or temperature.end <= 0:
            raise InputError("pruner.temperature must stay positive")
        if scale.start <= 0 or scale.end <= 0:
            raise InputError("pruner.scale must stay positive")
        if gate_ema_decay is not None and not 0 <= gate_ema_decay < 1:
            raise InputError(
                f"pruner.gate_ema_decay={gate_ema_decay} must be at least 0 and less than 1"
            )
        self.delta = delta
        self.temperature, self.scale = temperature, scale
        self.gate_rate_factor, self.gate_ema_decay = gate_rate_factor, gate_ema_decay

    def phases(self, context: PruningContext) -> list[Phase]:
        """Mask learning.

        Raises:
            InputError: there is no scheme, or ``keep`` differs from what the scheme keeps.
        """
        scheme = check_keep(context.scheme, context.keep)
        # Which blocks stay is not known yet, how many of each group is.
        leaves = Decision(
            scheme.first_of_each,
            context.net.depth,
            "learned",
            scheme=scheme.sizes,
            seed=context.seed,
        )
        return [Phase(MASK_LEARNING, lambda: self._module(context, scheme), leaves=leaves)]

    def _module(self, context: PruningContext, scheme: Scheme) -> MaskLearning:
        # Start values of the update depend on the run's seed alone, not on what was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(context.seed, "delta"))
            self.delta.attach(context.net)
        return MaskLearning(
            context.net,
            Gates(scheme),
            self.gate_rate_factor,
            self.temperature,
            self.scale,
            self.gate_ema_decay,
            **context.shared(MASK_LEARNING),
        )

    def choose(self, context: PruningContext) -> Choice:
        """Keep the most probable pattern of every group, by the averaged gates."""
        module = context.trained[MASK_LEARNING]
        assert isinstance(module, MaskLearning)
        state = module.decision_state()
        return Choice(
            kept=state.kept,
            scheme=module.gated.gates.scheme,
            probabilities=state.probabilities,
            scores={
                "kept_live": list(state.kept_live),
                "confidence": state.confidence,
                "entropy": state.entropy,
                "skipped_steps": module.skipped_steps,
            },
        )
