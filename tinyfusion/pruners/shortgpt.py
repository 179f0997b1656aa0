"""ShortGPT: drop the blocks that turn their input least (arXiv 2403.03853).

Shape suffixes: B batch, T tokens, D width, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Choice, PruningContext


class Calibration(Protocol):
    """Inputs on which blocks are scored, such as `HeldOutLoss`."""

    def predict(self, net: Backbone, run_block: BlockRunner) -> object:
        """Run ``net`` on all samples, every block through ``run_block``."""


def block_influence(net: Backbone, calibration: Calibration) -> Tensor:
    """``1 - E cos(h_i, h_{i+1})`` per block: cosine per token over channels, then the mean.

    Args:
        net: the model.
        calibration: noised inputs.

    Returns:
        Shape (L,), float64; 0 for a block that leaves its input's direction alone.
    """
    cosine_L = torch.zeros(net.depth, dtype=torch.float64)
    samples = 0

    def runner(index: int, block: nn.Module, states_BTD: Tensor, condition: Any) -> Tensor:
        nonlocal samples
        out_BTD = run_plain(index, block, states_BTD, condition)
        cosine_BT = F.cosine_similarity(out_BTD, states_BTD, dim=-1, eps=1e-8)
        cosine_L[index] += float(cosine_BT.mean(1).double().sum())
        samples += len(states_BTD) if index == 0 else 0
        return out_BTD

    with torch.no_grad():
        calibration.predict(net, runner)
    return 1.0 - cosine_L / samples


def least_important(scores_L: Tensor, drop: int, protected: Sequence[int]) -> tuple[int, ...]:
    """The ``drop`` blocks of lowest score, protected ones left out; first the lowest.

    Raises:
        InputError: too many blocks are protected.
    """
    order = [i for i in scores_L.argsort(stable=True).tolist() if i not in protected]
    if drop > len(order):
        raise InputError(
            f"{drop} blocks are to go but only {len(order)} are not protected; raise keep="
        )
    return tuple(order[:drop])


class ShortGPT:
    """One-shot removal of the blocks of lowest block influence.

    Args:
        num_samples: calibration samples, noised at times spread over the whole schedule.
        protect_last: never remove the last block, as TinyFusion's reference does.
    """

    uses_scheme = False

    def __init__(self, num_samples: int = 1024, protect_last: bool = True) -> None:
        self.num_samples, self.protect_last = num_samples, protect_last

    def choose(self, context: PruningContext) -> Choice:
        """Score all blocks and drop the lowest."""
        depth = context.net.depth
        if not 0 < context.keep < depth:
            raise InputError(f"keep={context.keep} must be between 1 and {depth - 1}")
        scores_L = block_influence(context.net, context.calibration(self.num_samples))
        protected = [depth - 1] if self.protect_last else []
        dropped = least_important(scores_L, depth - context.keep, protected)
        kept = tuple(i for i in range(depth) if i not in dropped)
        return Choice(kept, scores={"block_influence": scores_L.tolist()})
