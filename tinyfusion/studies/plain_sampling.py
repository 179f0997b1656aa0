"""Guided ancestral sampling as the formulas and the code of DiT say, one statement after the other.

What `tinyfusion.samplers` is tested and timed against; see `tinyfusion.studies.plain_steps`.

Source: DDPM (arXiv 2006.11239), algorithm 2; classifier-free guidance (arXiv 2207.12598).

Shape suffixes: B batch, C data channels, H height, W width, S steps of the chain.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, dtype_of
from tinyfusion.conditioning import Conditioning
from tinyfusion.processes.gaussian import GaussianDiffusion


@torch.no_grad()
def guided_samples(
    net: Backbone,
    process: GaussianDiffusion,
    noise: Callable[[], Tensor],
    conditioning: Conditioning,
    scale: float,
    channels: int | None,
    steps: int,
) -> Tensor:
    """Ancestral sampling with classifier-free guidance.

    The state is held twice, its second half under the null conditioning, and both halves take
    every step; the second is left out at the end.

    Args:
        net: the denoiser, which predicts a variance, in eval mode.
        process: the process that it was trained on.
        noise: gives the next standard normal draw (B, C, H, W): of the start, then of each step.
        conditioning: of the B samples, on the device of ``net``.
        scale: guidance scale.
        channels: how many of the C data channels are guided; ``None`` for all.
        steps: steps of the respaced chain, at least 2.

    Returns:
        Shape (B, C, H, W).
    """
    chain = process.respaced(steps)
    kept_S, beta_S = chain.alphas_cumprod_S, chain.betas_S
    before_S = torch.cat([kept_S.new_ones(1), kept_S[:-1]])
    # DDPM, equation 7. The variance is 0 at the last step, so its logarithm begins a step earlier.
    least_S = beta_S * (1 - before_S) / (1 - kept_S)
    least_S[0] = least_S[1]
    tables = (
        (1 / kept_S).sqrt(),
        (1 / kept_S - 1).sqrt(),
        beta_S * before_S.sqrt() / (1 - kept_S),
        (1 - before_S) * (1 - beta_S).sqrt() / (1 - kept_S),
        least_S.log(),
        beta_S.log(),
    )
    told = conditioning.cat([conditioning, conditioning.null(net)])
    device = next(net.parameters()).device

    def draw() -> Tensor:
        return noise().to(device, dtype_of(net)).repeat(2, 1, 1, 1)

    x = draw()
    guided = x.shape[1] if channels is None else channels
    for time in reversed(range(len(beta_S))):
        t_B = torch.full((len(x),), time)
        noisy_in_clean, noise_in_clean, clean_in_mean, noisy_in_mean, least, largest = (
            table_S[t_B].to(x)[:, None, None, None] for table_S in tables
        )
        half, _ = x.chunk(2)
        out = net(torch.cat([half, half]), chain.time_map_S[t_B].to(x.device), *told.arguments())
        noise_out, variance_out = out.chunk(2, dim=1)
        conditional, null = noise_out[:, :guided].chunk(2)
        eps = null + scale * (conditional - null)
        eps = torch.cat([torch.cat([eps, eps]), noise_out[:, guided:]], dim=1)
        clean = noisy_in_clean * x - noise_in_clean * eps
        clean = clean.clamp(-1, 1) if chain.clip else clean
        mean = clean_in_mean * clean + noisy_in_mean * x
        # Improved DDPM (arXiv 2102.09672), section 3.1: between the two bounds.
        share = (variance_out + 1) / 2
        log_variance = share * largest + (1 - share) * least
        x = mean + float(time > 0) * (0.5 * log_variance).exp() * draw()
    samples, _ = x.chunk(2)
    return samples
