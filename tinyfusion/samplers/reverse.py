"""What the samplers of a Gaussian diffusion share: the walk from noise to data.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.respacing import respaced_times
from tinyfusion.samplers.contract import NoiseSource, OnStep
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.samplers.guided import GuidedNet

Step = Callable[[GaussianDiffusion, Tensor, Tensor, Tensor, NoiseSource], Tensor]
"""``step(chain, out, x, t, draw) -> x``: one step of a respaced chain, given the network output."""


def count_steps(process: GaussianDiffusion, spec: int | str, key: str = "sampler.steps") -> int:
    """Number of steps of ``process`` respaced by ``spec``, which is configured at ``key``.

    Raises:
        InputError: see `respaced_times`.
    """
    return len(respaced_times(spec, process.num_steps, key))


@torch.no_grad()
def walk_back(
    step: Step,
    chain: GaussianDiffusion,
    net: Backbone,
    noise: NoiseSource,
    conditioning: Conditioning,
    guidance: Guidance,
    on_step: OnStep | None,
) -> Tensor:
    """Apply ``step`` from the noisiest time of ``chain`` down to time 0.

    Args:
        step: rule of one step.
        chain: a respaced process.
        net: the denoiser.
        noise: see `Sampler`.
        conditioning: of the batch.
        guidance: classifier-free guidance.
        on_step: receives every state.

    Returns:
        The last state, shape (B, C, H, W).
    """
    predict = GuidedNet(net, noise, conditioning, guidance)
    x = predict.draw()
    for index, time in enumerate(reversed(range(chain.num_steps))):
        t = torch.full((len(x),), time, device=x.device)
        out = predict(x, chain.network_time(t))
        x = step(chain, out, x, t, predict.draw)
        if on_step is not None:
            on_step(index, x)
    return x
