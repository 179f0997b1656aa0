"""Masked autoregression with a diffusion loss per token (MAR, arXiv 2406.11838).

A picture is a row of tokens. Training hides a random set of them; the network makes a condition
for every token from those that are left, and its head denoises the hidden tokens, each by itself
given its condition: the head learns the distribution of one token by a Gaussian diffusion whose
data are single tokens.

Shape suffixes: B batch, R repeats of the head, T tokens, M hidden tokens, Ct entries of a token,
C channels, H height, W width, N tokens of all samples and repeats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.tokens import patchify
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Draws, Process
from tinyfusion.processes.gaussian import GaussianDiffusion, NoisyBatch


@dataclass(frozen=True)
class MaskedBatch:
    """Clean data, which of its tokens are hidden, and noised tokens for the head.

    Attributes:
        clean: data, shape (B, C, H, W); the network looks at the tokens that are not hidden.
        tokens: the same data, once per repeat, shape (B, R, T, Ct).
        hidden: indices of the hidden tokens, shape (B, M).
        noise: standard normal noise, shape (B, R, T, Ct).
        noisy: tokens with the noise added, same shape.
        t: integer times of the head's diffusion, shape (B, R, T).
    """

    clean: Tensor
    tokens: Tensor
    hidden: Tensor
    noise: Tensor
    noisy: Tensor
    t: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network is given before its conditioning."""
        return self.clean, self.hidden, self.noisy, self.t

    def at_hidden(self, values: Tensor) -> Tensor:
        """Rows of the hidden tokens, shape (N, ...), N = B * R * M, of values (B, R, T, ...).

        The others are left out rather than weighted by zero, so that nothing that overflows
        there can reach the loss.
        """
        index = self.hidden.view(len(self.hidden), 1, -1, *[1] * (values.ndim - 3))
        return values.take_along_dim(index, dim=2).flatten(0, 2)


class MaskedDiffusion(Process):
    """The training of MAR; the defaults are the published ones.

    Args:
        patch_size: side of a token in pixels (or latent positions); that of the network.
        mask_ratio_min: smallest share of hidden tokens, in (0, 1].
        mask_ratio_std: standard deviation of the normal distribution around 1 from which the
            share is drawn, truncated to [mask_ratio_min, 1].
        head_repeats: how many noised versions of each token the head is trained on per step.
        num_steps: length of the head's diffusion, with the squared-cosine schedule.
        clip: whether samplers clamp predicted clean tokens to [-1, 1] (pixels: yes, latents: no).

    Raises:
        InputError: a setting out of range.

    Source: arXiv 2406.11838, section 3.2 (diffusion loss), section 3.4 (random orders and mask
    ratio), and the published training settings.
    """

    kind: ClassVar[str] = "masked"
    learns_variance: ClassVar[bool] = True
    # The share of hidden tokens is one for the whole batch.
    strata: ClassVar[int] = 16

    @classmethod
    def from_training_args(cls, args: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        """See `Process`; as MAR's script records them."""
        words = {
            "patch_size": "patch_size",
            "mask_ratio_min": "mask_ratio_min",
            "head_repeats": "diffusion_batch_mul",
        }
        found = {key: (word, args.get(word)) for key, word in words.items()}
        return {key: pair for key, pair in found.items() if type(pair[1]) in (int, float)}

    def __init__(
        self,
        patch_size: int = 1,
        mask_ratio_min: float = 0.7,
        mask_ratio_std: float = 0.25,
        head_repeats: int = 4,
        num_steps: int = 1000,
        clip: bool = False,
    ) -> None:
        for key, value in {"patch_size": patch_size, "head_repeats": head_repeats}.items():
            if value < 1:
                raise InputError(f"process.{key}={value}: must be at least 1")
        if not 0 < mask_ratio_min <= 1:
            raise InputError(
                f"process.mask_ratio_min={mask_ratio_min}: must be above 0 and at most 1"
            )
        if not (mask_ratio_std > 0 and math.isfinite(mask_ratio_std)):
            raise InputError(f"process.mask_ratio_std={mask_ratio_std}: must be a number above 0")
        self.patch_size = patch_size
        self.mask_ratio_min = mask_ratio_min
        self.mask_ratio_std = mask_ratio_std
        self.head_repeats = head_repeats
        self.diffusion = GaussianDiffusion(num_steps, clip=clip, schedule="squared_cosine")
        """The head's process; its data are single tokens, shape (N, Ct)."""

    @property
    def num_steps(self) -> int:
        """Number of steps of the head's diffusion."""
        return self.diffusion.num_steps

    @property
    def clip(self) -> bool:
        """Whether samplers clamp predicted clean tokens to [-1, 1]."""
        return self.diffusion.clip

    def check(self, net: Backbone, name: str = "the model") -> None:
        """See `Process`; the network has to cut its tokens as the process does."""
        super().check(net, name)
        found = getattr(net, "patch_size", self.patch_size)
        if found != self.patch_size:
            raise InputError(
                f"{name} has patch_size={found}, but process.patch_size={self.patch_size}; give "
                f"process.patch_size={found}"
            )

    def mask_ratio(self, uniform: float) -> float:
        """Share of hidden tokens for one uniform draw in [0, 1): the inverse of its CDF."""
        lowest = (self.mask_ratio_min - 1.0) / self.mask_ratio_std
        # The distribution ends at its centre, where the CDF of the whole normal is a half.
        below = torch.special.ndtr(torch.tensor(lowest, dtype=torch.float64))
        standard = torch.special.ndtri(below + uniform * (0.5 - below))
        # Rounding, and an empty tail where the deviation is tiny, must not lead outside.
        return min(1.0, max(self.mask_ratio_min, 1.0 + self.mask_ratio_std * float(standard)))

    def corrupt(self, clean: Tensor, draws: Draws) -> MaskedBatch:
        """See `Process`; all samples of a batch hide equally many tokens."""
        count, entries = patchify(clean, self.patch_size).shape[1:]
        hidden = math.ceil(count * self.mask_ratio(draws.shared("mask_ratio")))
        # Stable, so that the order of two equal draws is no matter of the device.
        orders = draws.uniform("order", count).argsort(dim=1, stable=True)
        t = self.diffusion.times_from_uniform(draws.uniform("times", self.head_repeats, count))
        noise = draws.normal("noise", self.head_repeats, count, entries)
        return self.add_noise(clean, orders[:, :hidden], t, noise)

    def add_noise(self, clean: Tensor, hidden: Tensor, t: Tensor, noise: Tensor) -> MaskedBatch:
        """Hide some tokens and noise every token to given times.

        Args:
            clean: data, shape (B, C, H, W).
            hidden: indices of the tokens to hide, shape (B, M).
            t: times, shape (B, R, T).
            noise: standard normal noise, shape (B, R, T, Ct).
        """
        tokens = patchify(clean, self.patch_size).unsqueeze(1).expand_as(noise)
        noised = self.diffusion.add_noise(tokens.flatten(0, 2), t.flatten(), noise.flatten(0, 2))
        return MaskedBatch(clean, tokens, hidden, noise, noised.noisy.view_as(noise), t)

    def loss(self, out: Tensor, batch: MaskedBatch) -> dict[str, Tensor]:
        """Diffusion loss of the hidden tokens, averaged over them and the repeats of a sample.

        ``mse`` is in squared units of the noise, ``vb`` (if the head predicts a variance) in bits
        per dimension, ``loss`` is their sum; each has shape (B,).

        Args:
            out: predictions for all tokens, shape (B, R, T, Ct or 2Ct).
            batch: what `corrupt` gave.
        """
        terms = self.diffusion.loss(batch.at_hidden(out), self._noised(batch))
        return _per_sample(terms, len(batch.clean))

    def distillation_loss(
        self, student_out: Tensor, teacher_out: Tensor, batch: MaskedBatch, variance: bool
    ) -> dict[str, Tensor]:
        """Distance of two heads' predictions for the hidden tokens, averaged as in `loss`.

        The teacher's output is what its head predicts for the same noised tokens under the
        teacher's own conditions: the noise, and with ``variance`` the variance of the reverse
        step. TinyFusion (arXiv 2412.01199) distils "outputs" without saying which they are in
        MAR. Ours: the head's prediction, because it is the one output that training judges and
        sampling uses, and because it makes the term that of DiT, with tokens for pictures. The
        conditions are no output but hidden states, to which feature distillation attends.

        Args:
            student_out: shape (B, R, T, Ct or 2Ct).
            teacher_out: same shape, no gradient.
            batch: what both networks saw.
            variance: see `GaussianDiffusion.distillation_loss`.

        Returns:
            ``kd_mse``, ``kd_vb`` if asked for, and their sum ``kd``, each of shape (B,).
        """
        student, teacher = batch.at_hidden(student_out), batch.at_hidden(teacher_out)
        terms = self.diffusion.distillation_loss(student, teacher, self._noised(batch), variance)
        return _per_sample(terms, len(batch.clean))

    def _noised(self, batch: MaskedBatch) -> NoisyBatch:
        """The hidden tokens of all samples and repeats as the data of the head's diffusion."""
        t = batch.at_hidden(batch.t)
        clean, noise, noisy = map(batch.at_hidden, (batch.tokens, batch.noise, batch.noisy))
        return NoisyBatch(clean, noise, noisy, t, self.diffusion.network_time(t))


def _per_sample(terms: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Mean of terms (N,) over the tokens and repeats of each of ``count`` samples."""
    return {name: value.view(count, -1).mean(1) for name, value in terms.items()}
