"""Flux.1-Lite: drop the blocks whose output differs least from their input.

Shape suffixes: B batch, K blocks that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, Calibration
from tinyfusion.pruners.scored import Scored, measured
from tinyfusion.pruners.selectors import Selector
from tinyfusion.states import States, map_streams, mean_over_entries


def input_output_error(
    net: Backbone, calibration: Calibration, kept: Sequence[int], normalised: bool = False
) -> Tensor:
    """``E mean((h_{i+1} - h_i)^2)`` per block, the mean over tokens and channels.

    Of several streams the mean over all their entries: of streams of equal width, a stream counts
    by its number of tokens.

    Args:
        net: the model.
        calibration: noised inputs.
        kept: the blocks that run.
        normalised: divide by ``E mean(h_i^2)``.

    Returns:
        Shape (K,), float64; 0 for a block that changes nothing.
    """

    def energies_B2(states: States, out: States) -> Tensor:
        changes = map_streams(lambda after, before: (after - before).square(), out, states)
        squares = map_streams(torch.square, states)
        return torch.stack([mean_over_entries(changes), mean_over_entries(squares)], 1)

    change_K, before_K = measured(net, calibration, kept, energies_B2).mean(0).unbind(1)
    # Infinite where the input is zero: all of the output is change.
    return change_K / before_K if normalised else change_K


class FluxLite(Scored):
    """Removal of the blocks of least mean squared error between input and output.

    The error grows with the states, which grow with depth: late blocks look important.

    Args:
        selector: how to go from scores to blocks.
        num_samples: calibration samples.
        protect_last: never remove the last block.
        normalised: divide each block's error by the mean square of its input.
    """

    name: ClassVar[str] = "flux_lite"
    criterion: ClassVar[str] = "input_output_error"

    def __init__(
        self,
        selector: Selector,
        num_samples: int = 1024,
        protect_last: bool = False,
        normalised: bool = False,
    ) -> None:
        super().__init__(selector, num_samples, protect_last)
        self.normalised = normalised

    def scores(self, net: Backbone, calibration: Any, kept: Sequence[int]) -> Tensor:
        """Error between input and output."""
        return input_output_error(net, calibration, kept, self.normalised)
