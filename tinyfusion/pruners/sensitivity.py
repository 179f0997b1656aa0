"""Sensitivity analysis: drop the blocks whose removal raises the loss least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.pruners.scored import Scored


class Sensitivity(Scored):
    """Removal of the blocks without which the training loss rises least.

    All losses are of the same samples with the same times, noise and conditioning (none of it
    dropped). With ``selector=greedy``, scores are taken again after each removal.
    """

    name: ClassVar[str] = "sensitivity"
    criterion: ClassVar[str] = "loss_change"

    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """Loss without each block less the loss with all of ``kept``; may be negative."""
        ordered = sorted([tuple(kept), *all_but_one(kept)])
        found = CandidateScores(net, calibration).losses(ordered)
        losses = {blocks: loss for blocks, (loss, _) in zip(ordered, found, strict=True)}
        without = [losses[blocks] - losses[tuple(kept)] for blocks in all_but_one(kept)]
        return torch.tensor(without, dtype=torch.float64)


def all_but_one(kept: Sequence[int]) -> list[tuple[int, ...]]:
    """For every place in ``kept``, the blocks without that one."""
    return [(*kept[:place], *kept[place + 1 :]) for place in range(len(kept))]
