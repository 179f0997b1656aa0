"""Classifier-free guidance (arXiv 2207.12598) as DiT applies it.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone, predict
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """How strongly samples are pushed away from the prediction without conditioning.

    Attributes:
        scale: 1 samples from the model as it is, larger values strengthen the conditioning (a
            class, a text), 0 ignores it.
        channels: how many of the data channels are guided; ``None`` guides all of them. The
            published DiT samples guide the first 3 of 4 latent channels.
        interval: noise levels (see `Process.noise_level`) between which samples are guided: above
            the first, up to the second (arXiv 2404.07724, section 3). Elsewhere they are sampled
            from the model as it is, at half the cost. ``None`` guides at all levels.

    Raises:
        InputError: a negative or infinite scale, fewer than one channel, or an interval that is
            none.
    """

    scale: float = 1.0
    channels: int | None = None
    interval: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise InputError(f"scale={self.scale} must be a finite number >= 0")
        if self.channels is not None and self.channels < 1:
            raise InputError(
                f"channels={self.channels} must be at least 1, or null for all channels"
            )
        if self.interval is not None:
            interval = tuple(float(level) for level in self.interval)
            if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
                raise InputError(
                    f"guidance interval={list(interval)} must be two noise levels, ascending and "
                    "not negative, such as [0.3, 5], or null for all levels"
                )
            object.__setattr__(self, "interval", interval)

    def at(self, noise_level: float) -> Guidance:
        """The guidance at a noise level: this one, or none outside the interval."""
        if self.interval is None or self.interval[0] < noise_level <= self.interval[1]:
            return self
        return NO_GUIDANCE

    def twice(self, net: Backbone, conditioning: Conditioning) -> Conditioning:
        """What guidance tells the network: the conditioning, and the null one behind.

        Raises:
            InputError: ``net`` has no null conditioning.
        """
        return conditioning.cat([conditioning, conditioning.null(net)])

    def predict(
        self,
        net: Backbone,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        twice: Conditioning | None = None,
    ) -> Tensor:
        """Run ``net`` with guidance, once on a batch of both.

        Args:
            net: the denoiser; for scales other than 1 it needs a null conditioning.
            x: noisy input, shape (B, C, H, W).
            t: times of the network, shape (B,).
            conditioning: of B samples, on the device of ``x``.
            twice: what `twice` gave for them, to be made once for many steps.

        Returns:
            The network output, shape (B, C or 2C, H, W). Channels that are not guided and the
            variance values are those of the conditional prediction.

        Raises:
            InputError: ``net`` has no null conditioning, or more channels are to be guided than
                the data has.
        """
        if self.scale == 1:
            return predict(net, (x, t), conditioning)
        self._guided(x.shape[1])
        if twice is None:
            twice = self.twice(net, conditioning)
        out = predict(net, (torch.cat([x, x]), torch.cat([t, t])), twice)
        conditional, null = out.chunk(2)
        return self.combine(conditional, null, channels=x.shape[1])

    def combine(self, conditional: Tensor, null: Tensor, channels: int) -> Tensor:
        """Push predictions with conditioning away from those without.

        Args:
            conditional: shape (B, C or more, ...), the prediction of the data's channels first.
            null: predictions with the null conditioning, same shape.
            channels: data channels C.

        Returns:
            Same shape; what is not guided is that of ``conditional``.

        Raises:
            InputError: more channels are to be guided than the data has.
        """
        guided = self._guided(channels)
        # Classifier-free guidance, equation 6, with scale = 1 + w.
        noise = torch.lerp(null[:, :guided], conditional[:, :guided], self.scale)
        return torch.cat([noise, conditional[:, guided:]], dim=1)

    def _guided(self, available: int) -> int:
        """How many of ``available`` data channels are guided."""
        guided = available if self.channels is None else self.channels
        if guided > available:
            raise InputError(
                f"guidance channels={guided}, but the data has {available} channel(s); "
                f"valid: 1 to {available}, or null for all"
            )
        return guided


NO_GUIDANCE = Guidance()
"""Samples from the model as it is."""
