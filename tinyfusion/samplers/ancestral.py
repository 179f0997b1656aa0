"""Ancestral sampling of DDPM (arXiv 2006.11239, algorithm 2) on a respaced chain."""

from __future__ import annotations

from torch import Tensor

from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.contract import NoiseSource
from tinyfusion.samplers.reverse import ChainSampler, Step


class AncestralSampler(ChainSampler):
    """Draws every state from the Gaussian that the network predicts."""

    def step_of(self, chain: GaussianDiffusion) -> Step:
        """See `ChainSampler`; draws once per step."""
        return ancestral_step


def ancestral_step(
    chain: GaussianDiffusion, out: Tensor, x: Tensor, t: Tensor, draw: NoiseSource
) -> Tensor:
    """Draw the state before time ``t`` of ``chain``; ``draw`` is called once, even at time 0."""
    reverse = chain.reverse_step(out, x, t)
    # The last step returns the mean; its draw is made all the same, so that the number of
    # draws does not depend on the step.
    weight = (t > 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return reverse.mean + weight * (0.5 * reverse.log_variance).exp() * draw()
