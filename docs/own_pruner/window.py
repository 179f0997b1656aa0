"""Drop one run of consecutive blocks: the one across which hidden states turn least."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from tinyfusion import Choice, InputError, PruningContext


class Window:
    """The angular distance of arXiv 2403.17887, here averaged over tokens.

    Args:
        num_samples: calibration samples.
    """

    def __init__(self, num_samples: int = 1024) -> None:
        self.num_samples = num_samples

    def choose(self, context: PruningContext) -> Choice:
        """Find the run of blocks in one pass over the calibration samples."""
        depth, size = context.net.depth, context.net.depth - context.keep
        # Between stacks of different kinds states are changed by more than blocks.
        ends = (*context.net.borders, depth)
        windows = [
            start
            for begin, end in zip((0, *ends), ends, strict=False)
            for start in range(begin, end - size + 1)
        ]
        if not windows:
            raise InputError(f"keep={context.keep}: no stack has {size} blocks in a row to drop")
        angles, inputs = dict.fromkeys(windows, 0.0), {}

        def runner(index, block, states, condition):
            inputs[index] = states  # of this block; those before the window are dropped below
            out = block(states, condition)
            start = index - size + 1
            if start in angles:
                cosines = F.cosine_similarity(inputs[start], out, dim=-1).clamp(-1, 1)
                angles[start] += float(torch.arccos(cosines).mean(-1).sum()) / math.pi
            inputs.pop(start, None)
            return out

        context.calibration(self.num_samples).predict(context.net, runner)
        first = min(angles, key=angles.get)
        kept = [i for i in range(depth) if not first <= i < first + size]
        means = {str(start): total / self.num_samples for start, total in angles.items()}
        return Choice(tuple(kept), scores={"angular_distance": means})
