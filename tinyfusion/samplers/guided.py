"""What every sampler does with a network: guide it, and keep the states precise.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, dtype_of
from tinyfusion.conditioning import Conditioning
from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import NoiseSource
from tinyfusion.samplers.guidance import Guidance


def state_dtype(net: Backbone) -> torch.dtype:
    """Floating type of the states of a sampler of ``net``: at least float32.

    Hundreds of small updates would be lost in half precision: only the network runs in its own
    type.
    """
    return torch.promote_types(dtype_of(net), torch.float32)


class GuidedNet:
    """A network bound to the conditioning, guidance and noise of one batch.

    Args:
        net: the denoiser.
        process: gives the noise level of a time, by which an interval of guidance goes.
        noise: gives the draws, one after the other.
        conditioning: of the batch, on any device.
        guidance: classifier-free guidance.

    Raises:
        InputError: ``net`` has no null conditioning to be guided by.
    """

    def __init__(
        self,
        net: Backbone,
        process: Process,
        noise: NoiseSource,
        conditioning: Conditioning,
        guidance: Guidance,
    ) -> None:
        self.net = net
        self.process = process
        self.guidance = guidance
        self.net_dtype = dtype_of(net)
        self.dtype = state_dtype(net)
        self.device = next(net.parameters()).device
        self.conditioning = conditioning.to(self.device)
        self._twice = None if guidance.scale == 1 else guidance.twice(net, self.conditioning)
        self._noise = noise

    def draw(self) -> Tensor:
        """The next draw where and as precise as the states, shape (B, C, H, W)."""
        return self._noise().to(self.device, self.dtype)

    def __call__(self, x: Tensor, t: Tensor, time: float | Tensor) -> Tensor:
        """Guided output.

        Args:
            x: states, shape (B, C, H, W).
            t: times of the network, shape (B,).
            time: the same as one time of the process; read only for an interval of guidance, as
                reading it from an accelerator waits for it.
        """
        guidance = self.guidance
        if guidance.interval is not None:
            guidance = guidance.at(self.process.noise_level(float(time)))
        x = x.to(self.net_dtype)
        return guidance.predict(self.net, x, t, self.conditioning, self._twice).to(self.dtype)
