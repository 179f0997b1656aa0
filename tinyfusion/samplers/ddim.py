"""DDIM sampling (arXiv 2010.02502) on a respaced chain."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.tables import Tables
from tinyfusion.samplers.contract import NoiseSource
from tinyfusion.samplers.reverse import ChainSampler, Step


class DDIMSampler(ChainSampler):
    """Walks along the predicted noise, with a chosen share of fresh noise.

    Args:
        steps: number of steps, or another respacing (see `respaced_times`).
        eta: 0 is deterministic, 1 adds as much noise as DDPM's posterior variance.

    Raises:
        InputError: ``eta`` lies outside [0, 1].
    """

    def __init__(self, steps: int | str = 50, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise InputError(f"sampler.eta={eta}: must be between 0 and 1")
        super().__init__(steps)
        self.eta = eta

    def step_of(self, chain: GaussianDiffusion) -> Step:
        """See `ChainSampler`; draws once per step if ``eta`` > 0, else never."""
        return partial(self._step, self._coefficients(chain))

    def _coefficients(self, chain: GaussianDiffusion) -> Tables:
        kept_S, kept_next_S = chain.alphas_cumprod_S, chain.alphas_cumprod_prev_S
        # Equation 16, then equation 12.
        variance_S = self.eta**2 * (1 - kept_next_S) / (1 - kept_S) * (1 - kept_S / kept_next_S)
        return Tables(
            clean=kept_next_S.sqrt(),
            predicted_noise=(1 - kept_next_S - variance_S).clamp(min=0).sqrt(),
            fresh_noise=variance_S.sqrt(),
        )

    def _step(
        self,
        coefficients: Tables,
        chain: GaussianDiffusion,
        out: Tensor,
        x: Tensor,
        t: Tensor,
        draw: NoiseSource,
    ) -> Tensor:
        clean = chain.reverse_step(out, x, t).clean
        # Where the clean data was clamped, the noise that belongs to it is another one.
        noise = chain.noise_from_clean(x, t, clean)
        mean = coefficients.at("clean", t, x) * clean
        mean = mean + coefficients.at("predicted_noise", t, x) * noise
        return mean if self.eta == 0 else mean + coefficients.at("fresh_noise", t, x) * draw()
