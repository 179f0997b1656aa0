"""What the samplers of a Gaussian diffusion share: the walk from noise to data.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, dtype_of
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.respacing import respaced_times
from tinyfusion.samplers.contract import NoiseSource, OnStep
from tinyfusion.samplers.guidance import Guidance

Step = Callable[[int, Tensor], object]
"""``on_step(i, state)``: receives the state after step i, i = 0 being the noisiest step."""

Step = Callable[[GaussianDiffusion, Tensor, Tensor, Tensor, NoiseSource], Tensor]
"""``step(chain, out, x, t, draw) -> x``: one step of a respaced chain, given the network output."""


def count_steps(process: GaussianDiffusion, spec: int | str) -> int:
    """Number of steps of ``process`` respaced by ``spec``.

    Raises:
        InputError: see `respaced_times`.
    """
    return len(respaced_times(spec, process.num_steps))


@torch.no_grad()
def walk_back(
    step: Step,
    chain: GaussianDiffusion,
    net: Backbone,
    noise: NoiseSource,
    labels: Tensor,
    guidance: Guidance,
    on_step: OnStep | None,
) -> Tensor:
    """Apply ``step`` from the noisiest time of ``chain`` down to time 0.

    Args:
        step: rule of one step.
        chain: a respaced process.
        net: the denoiser.
        noise: see `Sampler`.
        labels: shape (B,).
        guidance: classifier-free guidance.
        on_step: receives every state.

    Returns:
        The last state, shape (B, C, H, W).
    """
    device, net_dtype = next(net.parameters()).device, dtype_of(net)
    # Hundreds of small updates would be lost in half precision: only the network runs in it.
    state_dtype = torch.promote_types(net_dtype, torch.float32)

    def draw() -> Tensor:
        return noise().to(device, state_dtype)

    x = draw()
    labels = labels.to(device)
    for index, time in enumerate(reversed(range(chain.num_steps))):
        t = torch.full((len(x),), time, device=device)
        out = guidance.predict(net, x.to(net_dtype), chain.network_time(t), labels)
        x = step(chain, out.to(state_dtype), x, t, draw)
        if on_step is not None:
            on_step(index, x)
    return x
