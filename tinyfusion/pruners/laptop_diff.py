"""Laptop-Diff: drop the set of blocks whose removal changes the output least (arXiv 2404.11098)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.scored import Scored
from tinyfusion.pruners.selectors import Selection, Selector
from tinyfusion.pruners.sensitivity import all_but_one


class LaptopDiff(Scored):
    """Removal of the blocks of least summed output change.

    A block's score is the mean squared distance between the outputs of the whole model and of the
    model without it. The method takes the change by a set of blocks for the sum of their scores;
    how far off that is for the chosen set is recorded: ``set_change`` is the measured change
    ``c(S)`` and ``additivity_gap`` is ``|c(S) - sum of scores| / c(S)``.

    With ``noisy_power`` samples count by their times (Amber-Image, arXiv 2602.17047): ``sum_t w_t
    ||out - out(without i)||^2 / sum_t w_t``, where ``w_t = u ** noisy_power`` and u goes from 0 for
    clean data to 1 for noise. The published weights are not known; this form is ours.

    Args:
        selector: how to go from scores to blocks.
        num_samples: calibration samples.
        protect_last: never remove the last block.
        noisy_power: how much more noisy times count; 0: all alike. Not where the network is not
            told times.

    Raises:
        InputError: no samples, or a negative power.
    """

    name: ClassVar[str] = "laptop_diff"
    criterion: ClassVar[str] = "output_change"

    def __init__(
        self,
        selector: Selector,
        num_samples: int = 1024,
        protect_last: bool = False,
        noisy_power: float = 0.0,
    ) -> None:
        super().__init__(selector, num_samples, protect_last)
        if not 0 <= noisy_power < float("inf"):
            raise InputError(f"pruner.noisy_power={noisy_power} must be at least 0")
        self.noisy_power = noisy_power

    def calibration(self, context: PruningContext) -> HeldOutLoss:
        """See `Scored`.

        Raises:
            InputError: a power with a process whose networks are not told times.
        """
        if self.noisy_power and context.process.times is None:
            raise InputError(
                f"pruner.noisy_power={self.noisy_power:g} weights by time, but networks for a "
                f"process of kind {context.process.kind!r} are not told any; valid: 0"
            )
        return super().calibration(context)

    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """Output change without each block, always against the whole model."""
        ordered = sorted(all_but_one(kept))
        found = self._changes(net, calibration, ordered)
        changes = dict(zip(ordered, found, strict=True))
        return torch.tensor([changes[blocks] for blocks in all_but_one(kept)], dtype=torch.float64)

    def evidence(
        self, context: PruningContext, calibration: Any, selection: Selection
    ) -> dict[str, Any]:
        """How well scores add up to the change by the whole set."""
        net = context.as_blocks
        (change,) = self._changes(net, calibration, [selection.kept])
        dropped = [i for i in range(net.depth) if i not in selection.kept]
        summed = float(selection.scores[dropped].sum())
        gap = abs(change - summed) / change if change else None
        return {"set_change": change, "additivity_gap": gap}

    def _changes(
        self, net: Backbone, calibration: Any, kept_sets: Sequence[Sequence[int]]
    ) -> list[float]:
        wanted = calibration.predict(net)
        weights_N = time_weights(calibration, self.noisy_power) if self.noisy_power else None
        return list(CandidateScores(net, calibration).distances(kept_sets, wanted, weights_N))


def time_weights(calibration: HeldOutLoss, power: float) -> Tensor:
    """How much each sample of a batch counts by the time that it is noised at.

    Args:
        calibration: the batch, of a process with times.
        power: 0 counts all alike; the larger, the more noisy ones count.

    Returns:
        ``u ** power`` over its mean, u from 0 for clean data to 1 for noise; shape (N,), float64.
    """
    process = calibration.process
    times_N = torch.cat([corrupted.inputs[1] for _, corrupted in calibration.parts]).double()
    if process.times == "whole":
        times_N = (times_N + 1) / getattr(process, "num_steps", 1 + times_N.max())
    noisiness_N = (process.clean_draw - times_N).abs()
    weights_N = noisiness_N**power
    return weights_N / weights_N.mean()
