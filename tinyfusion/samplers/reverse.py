"""What the samplers of a Gaussian diffusion share: the walk from noise to data.

Shape suffixes: B batch, C data channels, H height, W width, S steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.respacing import respaced_times
from tinyfusion.samplers.contract import NoiseSource, OnStep, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.samplers.guided import GuidedNet

Step = Callable[[GaussianDiffusion, Tensor, Tensor, Tensor, NoiseSource], Tensor]
"""``step(chain, out, x, t, draw) -> x``: one step of a respaced chain, given the network output."""


def count_steps(process: GaussianDiffusion, spec: int | str, key: str = "sampler.steps") -> int:
    """Number of steps of ``process`` respaced by ``spec``, which is configured at ``key``.

    Raises:
        InputError: see `respaced_times`.
    """
    return len(respaced_times(spec, process.num_steps, key))


class ChainSampler(ABC):
    """A sampler that walks a respaced chain from its noisiest time down to time 0.

    Args:
        steps: number of steps, or another respacing (see `respaced_times`).
    """

    process_kind = "diffusion"

    def __init__(self, steps: int | str = 250) -> None:
        self.steps = steps

    @abstractmethod
    def step_of(self, chain: GaussianDiffusion) -> Step:
        """The rule of one step of ``chain``, a respaced process."""

    def num_steps(self, process: GaussianDiffusion) -> int:
        """See `Sampler`."""
        return count_steps(process, self.steps)

    @torch.no_grad()
    def __call__(
        self,
        net: Backbone,
        process: GaussianDiffusion,
        noise: NoiseSource,
        conditioning: Conditioning,
        guidance: Guidance = NO_GUIDANCE,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `Sampler`; ``noise`` is called once for the start and as each step asks."""
        check_sampler(self, process, net)
        chain = process.respaced(self.steps)
        step = self.step_of(chain)
        predict = GuidedNet(net, chain, noise, conditioning, guidance)
        x = predict.draw()
        times = range(chain.num_steps)[::-1]
        # All times at once: a step asks the host for nothing but its draw.
        times_SB = torch.tensor(times, device=x.device)[:, None].repeat(1, len(x))
        network_SB = chain.network_time(times_SB.flatten()).view_as(times_SB)
        for index, (time, t, network_t) in enumerate(zip(times, times_SB, network_SB, strict=True)):
            x = step(chain, predict(x, network_t, time), x, t, predict.draw)
            if on_step is not None:
                on_step(index, x)
        return x
