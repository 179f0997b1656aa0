"""Ancestral sampling of DDPM (arXiv 2006.11239, algorithm 2) on a respaced chain."""

from __future__ import annotations

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.contract import NoiseSource, OnStep, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.samplers.reverse import count_steps, walk_back


class AncestralSampler:
    """Draws every state from the Gaussian that the network predicts.

    Args:
        steps: number of steps, or another respacing (see `respaced_times`).
    """

    process_kind = "diffusion"

    def __init__(self, steps: int | str = 250) -> None:
        self.steps = steps

    def num_steps(self, process: GaussianDiffusion) -> int:
        """See `Sampler`."""
        return count_steps(process, self.steps)

    def __call__(
        self,
        net: Backbone,
        process: GaussianDiffusion,
        noise: NoiseSource,
        conditioning: Conditioning,
        guidance: Guidance = NO_GUIDANCE,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `Sampler`; ``noise`` is called once for the start and once per step."""
        check_sampler(self, process, net)
        chain = process.respaced(self.steps)
        return walk_back(ancestral_step, chain, net, noise, conditioning, guidance, on_step)


def ancestral_step(
    chain: GaussianDiffusion, out: Tensor, x: Tensor, t: Tensor, draw: NoiseSource
) -> Tensor:
    """Draw the state before time ``t`` of ``chain``; ``draw`` is called once, even at time 0."""
    reverse = chain.reverse_step(out, x, t)
    # The last step returns the mean; its draw is made all the same, so that the number of
    # draws does not depend on the step.
    weight = (t > 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return reverse.mean + weight * (0.5 * reverse.log_variance).exp() * draw()
