"""Does a model use its depth? Held-out loss right after cuts, relative to the whole model.

On a model that ignores half of its blocks every comparison of pruners is meaningless, so a
teacher is chosen by these figures.
"""

from __future__ import annotations

from collections.abc import Collection
from statistics import median
from typing import Any

import torch

from tinyfusion.backbones.contract import Backbone, running_only
from tinyfusion.budget import Budget
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pruners.patterns import mirrored
from tinyfusion.pruners.selectors import least_important
from tinyfusion.pruners.shortgpt import block_influence
from tinyfusion.seeding import generator


def loss_with(net: Backbone, held_out: HeldOutLoss, kept: Collection[int]) -> float:
    """Held-out noise-prediction error (``mse``) with only the ``kept`` blocks run."""
    return held_out(net, running_only(kept))["mse"]


def depth_use(
    net: Backbone, held_out: HeldOutLoss, calibration: HeldOutLoss, draws: int = 20
) -> dict[str, Any]:
    """Loss after a cut over the loss of the whole model, for several cuts.

    Args:
        net: a model of even depth, at least 8.
        held_out: what losses are measured on.
        calibration: what block influence is measured on.
        draws: number of random halves.

    Returns:
        ``full`` (the whole model's loss) and ratios to it: ``first_half``; ``shortgpt``, the half
        that block influence keeps (with its ``shortgpt_kept``); ``oracle``, the pattern of
        BK-SDM (arXiv 2305.15798);
        ``random_min``, ``random_median``; ``consecutive``, one per window of a quarter of the
        depth removed, and ``consecutive_min``; ``single``, one per block removed.
    """
    depth, half, quarter = net.depth, net.depth // 2, net.depth // 4
    everything = set(range(depth))
    full = loss_with(net, held_out, everything)

    def ratio(kept: Collection[int]) -> float:
        return loss_with(net, held_out, kept) / full

    order = least_important(block_influence(net, calibration))[::-1]
    by_influence = list(Budget.of(net.units(), depth - half, [depth - 1]).fill(order))
    halves = [
        torch.randperm(depth, generator=generator(draw, "random_half"))[:half].tolist()
        for draw in range(draws)
    ]
    random = [ratio(kept) for kept in halves]
    windows = [
        ratio(everything - set(range(start, start + quarter)))
        for start in range(depth - quarter + 1)
    ]
    return {
        "full": full,
        "first_half": ratio(range(half)),
        "shortgpt": ratio(by_influence),
        "shortgpt_kept": by_influence,
        "oracle": ratio(mirrored(depth, half)),
        "random_min": min(random),
        "random_median": median(random),
        "consecutive_min": min(windows),
        "consecutive": windows,
        "single": [ratio(everything - {i}) for i in range(depth)],
    }
