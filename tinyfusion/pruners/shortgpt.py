"""ShortGPT: drop the blocks that turn their input least (arXiv 2403.03853).

Shape suffixes: B batch, T tokens, D width, N samples, K blocks that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyfusion.backbones.contract import (
    Backbone,
    BlockRunner,
    Calibration,
    evaluating,
    predict,
)
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.scored import Scored, measured
from tinyfusion.pruners.selectors import Selection, Selector
from tinyfusion.seeding import generator
from tinyfusion.states import States, map_streams, mean_over_entries

CLEAN_TIMES = 250
"""The reference draws times of a chain of 250 steps and does not map them to those of the model."""


def block_influence(
    net: Backbone, calibration: Calibration, kept: Sequence[int] | None = None
) -> Tensor:
    """``1 - E cos(h_i, h_{i+1})`` per block: cosine per token over channels, then the mean.

    Of several streams the mean over the tokens of all: a stream counts by its number of tokens.

    Args:
        net: the model.
        calibration: noised inputs.
        kept: the blocks that run; default: all.

    Returns:
        Shape (K,), float64; 0 for a block that leaves its input's direction alone.
    """
    return _influence_by_sample(net, calibration, range(net.depth) if kept is None else kept).mean(
        0
    )


def _influence_by_sample(net: Backbone, calibration: Calibration, kept: Sequence[int]) -> Tensor:
    def cosine_B(states: States, out: States) -> Tensor:
        cosines_BT = map_streams(partial(F.cosine_similarity, dim=-1, eps=1e-8), out, states)
        return mean_over_entries(cosines_BT)

    return 1.0 - measured(net, calibration, kept, cosine_B)


class ShortGPT(Scored):
    """Removal of the blocks of lowest block influence.

    Args:
        selector: how to go from scores to blocks.
        num_samples: calibration samples; ``None``: 1,024, or the reference's 128 with ``clean``.
        protect_last: never remove the last block, as TinyFusion's reference does.
        clean: do as that reference does: no noise is added, and times are whole numbers drawn
            from 0..249 although they mean steps out of 1,000 to the model. Needs a process whose
            times are whole steps.
        bins: record the influence in this many ranges of times of equally many samples, too;
            0 for none. Not with ``clean``, nor where the network is not told times.

    Raises:
        InputError: no samples, or a negative number of bins.
    """

    name: ClassVar[str] = "shortgpt"
    criterion: ClassVar[str] = "block_influence"

    def __init__(
        self,
        selector: Selector,
        num_samples: int | None = None,
        protect_last: bool = True,
        clean: bool = False,
        bins: int = 4,
    ) -> None:
        default = 128 if clean else 1024
        super().__init__(selector, default if num_samples is None else num_samples, protect_last)
        if bins < 0:
            raise InputError(f"pruner.bins={bins} must be at least 0")
        self.clean, self.bins = clean, bins
        self._whole_NK: Tensor | None = None

    def calibration(self, context: PruningContext) -> Any:
        """See `Scored`.

        Raises:
            InputError: ``clean`` with a process of other times, or of fewer than 250 steps.
        """
        if not self.clean:
            return super().calibration(context)
        if context.process.times != "whole":
            raise InputError(
                "pruner.clean=true needs a process whose times are whole steps, as those of kind "
                f"'diffusion'; this one is of kind {context.process.kind!r}; valid: "
                "pruner.clean=false"
            )
        steps = getattr(context.process, "num_steps", CLEAN_TIMES)
        if steps < CLEAN_TIMES:
            raise InputError(
                f"pruner.clean=true draws times from 0..{CLEAN_TIMES - 1} but the process has "
                f"{steps} steps; valid: pruner.clean=false"
            )
        images, conditioning = context.calibration_images(self.num_samples)
        times = torch.randint(
            CLEAN_TIMES, (self.num_samples,), generator=generator(context.seed, "clean_times")
        )
        return CleanInputs(images, times, conditioning)

    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """Block influence."""
        influence_NK = _influence_by_sample(net, calibration, kept)
        if len(kept) == net.depth:
            # For the evidence, which need not run the model again.
            self._whole_NK = influence_NK
        return influence_NK.mean(0)

    def evidence(
        self, context: PruningContext, calibration: Any, selection: Selection
    ) -> dict[str, Any]:
        """Block influence by time: each bin's first and last time, and its scores."""
        if self.clean or context.process.times is None or not self.bins:
            return {"clean": self.clean}
        assert self._whole_NK is not None, "every selector scores the whole model first"
        times_N = torch.cat([corrupted.inputs[1] for _, corrupted in calibration.parts])
        parts = times_N.argsort().chunk(self.bins)
        return {
            "clean": False,
            "bins": [
                {
                    "times": [times_N[rows].min().item(), times_N[rows].max().item()],
                    self.criterion: self._whole_NK[rows].mean(0).tolist(),
                }
                for rows in parts
            ],
        }


class CleanInputs:
    """Images without noise, at given times.

    Args:
        images: clean data, shape (N, C, H, W).
        times: times as the network is given them, shape (N,).
        conditioning: of the N images.
        batch_size: images per forward pass.
    """

    def __init__(
        self, images: Tensor, times: Tensor, conditioning: Conditioning, batch_size: int = 512
    ) -> None:
        self.inputs, self.conditioning = (images, times), conditioning
        self.batch_size = batch_size

    def predict(self, net: Backbone, run_block: BlockRunner) -> None:
        """Run ``net`` on all images in evaluation mode."""
        device = next(net.parameters()).device
        with evaluating(net):
            for first in range(0, len(self.conditioning), self.batch_size):
                rows = slice(first, first + self.batch_size)
                inputs = [value[rows].to(device) for value in self.inputs]
                predict(net, inputs, self.conditioning[rows].to(device), run_block)
