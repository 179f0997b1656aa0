"""Laptop-Diff: drop the set of blocks whose removal changes the output least (arXiv 2404.11098)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.scored import Scored
from tinyfusion.pruners.selectors import Selection
from tinyfusion.pruners.sensitivity import all_but_one


class LaptopDiff(Scored):
    """Removal of the blocks of least summed output change.

    A block's score is the mean squared distance between the outputs of the whole model and of the
    model without it. The method takes the change by a set of blocks for the sum of their scores;
    how far off that is for the chosen set is recorded: ``set_change`` is the measured change
    ``c(S)`` and ``additivity_gap`` is ``|c(S) - sum of scores| / c(S)``.
    """

    name: ClassVar[str] = "laptop_diff"
    criterion: ClassVar[str] = "output_change"

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
        return list(CandidateScores(net, calibration).distances(kept_sets, wanted))
