"""Values that change over a run, as functions of the step alone: a resumed run needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass


def progress(step: int, total_steps: int) -> float:
    """Share of the run that is over at ``step``, from 0 at the first to 1 at the last."""
    return min(1.0, step / max(total_steps - 1, 1))


@dataclass(frozen=True)
class Linear:
    """A value that moves linearly from ``start`` at the first step to ``end`` at the last."""

    start: float
    end: float

    def __call__(self, step: int, total_steps: int) -> float:
        """Value at ``step`` of ``total_steps``."""
        return self.start + (self.end - self.start) * progress(step, total_steps)


@dataclass(frozen=True)
class LearningRate:
    """Cosine per step from the peak towards ``end``, after a linear warm-up.

    The cosine takes as many steps to its end as follow the warm-up, as in the official code: the
    last step is one short of ``end``. (Values of `Linear` end at the last step, there as here.)

    Attributes:
        peak: highest rate.
        end: rate where the cosine ends; equal to ``peak`` for a constant rate.
        warm_up: steps over which the rate rises linearly.
        restart: step at which the warm-up is repeated while the cosine continues; 0 for none.
    """

    peak: float
    end: float
    warm_up: int = 0
    restart: int = 0

    def factor(self, step: int, total_steps: int) -> float:
        """Rate at ``step`` over the peak rate."""
        begun = self.restart if step >= self.restart else 0
        rising = min(1.0, (step - begun + 1) / (self.warm_up + 1))
        rest = min(1.0, max(step - self.warm_up, 0) / max(total_steps - self.warm_up, 1))
        low = self.end / self.peak
        return rising * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * rest)))
