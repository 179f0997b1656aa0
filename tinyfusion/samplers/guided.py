"""What every sampler does with a network: guide it, and keep the states precise.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, dtype_of
from tinyfusion.conditioning import Conditioning
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
        noise: gives the draws, one after the other.
        conditioning: of the batch, on any device.
        guidance: classifier-free guidance.
    """

    def __init__(
        self, net: Backbone, noise: NoiseSource, conditioning: Conditioning, guidance: Guidance
    ) -> None:
        self.net = net
        self.guidance = guidance
        self.net_dtype = dtype_of(net)
        self.dtype = state_dtype(net)
        self.device = next(net.parameters()).device
        self.conditioning = conditioning.to(self.device)
        self._noise = noise

    def draw(self) -> Tensor:
        """The next draw where and as precise as the states, shape (B, C, H, W)."""
        return self._noise().to(self.device, self.dtype)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Guided output for states of shape (B, C, H, W) and network times of shape (B,)."""
        out = self.guidance.predict(self.net, x.to(self.net_dtype), t, self.conditioning)
        return out.to(self.dtype)
