"""DDIM sampling (arXiv 2010.02502) on a respaced chain."""

from __future__ import annotations

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.samplers.reverse import NoiseSource, OnStep, count_steps, walk_back


class DDIMSampler:
    """Walks along the predicted noise, with a chosen share of fresh noise.

    Args:
        steps: number of steps, or another respacing (see `respaced_times`).
        eta: 0 is deterministic, 1 adds as much noise as DDPM's posterior variance.

    Raises:
        InputError: ``eta`` lies outside [0, 1].
    """

    def __init__(self, steps: int | str = 50, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise InputError(f"sampler eta={eta}: must be between 0 and 1")
        self.steps = steps
        self.eta = eta

    def num_steps(self, process: GaussianDiffusion) -> int:
        """See `Sampler`."""
        return count_steps(process, self.steps)

    def __call__(
        self,
        net: Backbone,
        process: GaussianDiffusion,
        noise: NoiseSource,
        labels: Tensor,
        guidance: Guidance = NO_GUIDANCE,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `Sampler`; ``noise`` is called for the start and, if ``eta`` > 0, once per step."""
        chain = process.respaced(self.steps)
        return walk_back(self._step, chain, net, noise, labels, guidance, on_step)

    def _step(
        self, chain: GaussianDiffusion, out: Tensor, x: Tensor, t: Tensor, draw: NoiseSource
    ) -> Tensor:
        clean = chain.reverse_step(out, x, t).clean
        # Where the clean data was clamped, the noise that belongs to it is another one.
        noise = chain.noise_from_clean(x, t, clean)
        shape = (-1, *[1] * (x.ndim - 1))
        kept = chain.alphas_cumprod_S.to(x.device)[t].view(shape)
        kept_next = chain.alphas_cumprod_prev_S.to(x.device)[t].view(shape)
        # Equation 16, then equation 12.
        variance = self.eta**2 * (1 - kept_next) / (1 - kept) * (1 - kept / kept_next)
        towards_x = (1 - kept_next - variance).clamp(min=0).sqrt()
        mean = kept_next.sqrt().to(x.dtype) * clean + towards_x.to(x.dtype) * noise
        return mean if self.eta == 0 else mean + variance.sqrt().to(x.dtype) * draw()
