"""Discrete Gaussian diffusion with learned-range variance (arXiv 2006.11239 and 2102.09672).

``t = 0`` is the least noisy step, ``t = num_steps - 1`` the noisiest. Tables are kept in float64
and cast to the type of the data where they are used.

Shape suffixes: B batch, C channels, H height, W width, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyfusion.errors import InputError


@dataclass(frozen=True)
class NoisyBatch:
    """Clean data, the noise added to it, and the result.

    Attributes:
        clean: data, shape (B, C, H, W).
        noise: standard normal noise, same shape.
        noisy: input of the network, same shape.
        t: integer times of the process, shape (B,).
    """

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    t: Tensor


@dataclass(frozen=True)
class ReverseStep:
    """Gaussian of one reverse step and the clean data it implies, all of shape (B, C, H, W)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    clean: Tensor


def mean_flat(x: Tensor) -> Tensor:
    """Mean over everything but the batch, shape (B,)."""
    return x.flatten(1).mean(1)


def gaussian_kl(mean_1: Tensor, log_var_1: Tensor, mean_2: Tensor, log_var_2: Tensor) -> Tensor:
    """KL divergence N(mean_1) || N(mean_2) per element, in nats."""
    return 0.5 * (
        log_var_2
        - log_var_1
        - 1.0
        + torch.exp(log_var_1 - log_var_2)
        + (mean_1 - mean_2) ** 2 * torch.exp(-log_var_2)
    )


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-likelihood in nats of 8-bit data in [-1, 1] under a Gaussian, per element.

    Bins are 2/255 wide and open beyond +-0.999; the normal CDF is approximated by a tanh and
    probabilities are clamped at 1e-12 (arXiv 2006.11239, section 3.3).
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    inverse_std = torch.exp(-log_std)
    upper = cdf(inverse_std * (x - mean + 1.0 / 255.0))
    lower = cdf(inverse_std * (x - mean - 1.0 / 255.0))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1.0 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def respaced_times(spec: int | str, num_steps: int) -> list[int]:
    """Original times that a respaced process keeps, ascending.

    Args:
        spec: a number of steps (spread evenly, end points included), ``"ddimN"`` (fixed integer
            stride from 0) or a comma list such as ``"10,15,25"`` (equal sections, each with its
            own count).
        num_steps: length of the full process.

    Raises:
        InputError: the specification can't be read or asks for more steps than there are.
    """
    text = str(spec).strip()
    if text.startswith("ddim"):
        count = _positive(text[4:], spec)
        for stride in range(1, num_steps):
            if len(range(0, num_steps, stride)) == count:
                return list(range(0, num_steps, stride))
        raise InputError(
            f"sampler steps {spec!r}: no integer stride visits exactly {count} of "
            f"{num_steps} steps; give a plain number instead"
        )
    counts = [_positive(part, spec) for part in text.split(",")]
    size, extra = divmod(num_steps, len(counts))
    start, times = 0, []
    for section, count in enumerate(counts):
        length = size + (1 if section < extra else 0)
        if count > length:
            raise InputError(
                f"sampler steps {spec!r}: {count} steps asked of a section of {length}; "
                f"valid: 1 to {length}"
            )
        stride = 1.0 if count == 1 else (length - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            times.append(start + round(position))
            position += stride
        start += length
    return times


def _positive(text: str, spec: int | str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise InputError(
            f"sampler steps {spec!r} can't be read: give a number such as 50, 'ddim50', or a "
            "comma list such as '10,15,25'"
        )
    return int(text)


class GaussianDiffusion:
    """The 1000-step linear-schedule process of DDPM, as DiT uses it.

    Args:
        num_steps: length of the chain.
        beta_start: first noise variance.
        beta_end: last noise variance.
        clip: whether samplers clamp the predicted clean data to [-1, 1] (pixels: yes,
            latents: no).

    Raises:
        InputError: an empty chain, or variances outside (0, 1).
    """

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        clip: bool = False,
    ) -> None:
        if num_steps < 1 or not 0 < beta_start <= beta_end < 1:
            raise InputError(
                "diffusion needs num_steps >= 1 and 0 < beta_start <= beta_end < 1, got "
                f"{num_steps}, {beta_start}, {beta_end}"
            )
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        self._set(betas, torch.arange(num_steps), num_steps, clip)

    def _set(self, betas_S: Tensor, time_map_S: Tensor, full: int, clip: bool) -> None:
        self.clip = clip
        self.num_train_steps = full
        self.time_map_S = time_map_S
        self.betas_S = betas_S
        alphas_S = 1.0 - betas_S
        self.alphas_cumprod_S = alphas_S.cumprod(0)
        self.alphas_cumprod_prev_S = torch.cat(
            [torch.ones(1, dtype=torch.float64), self.alphas_cumprod_S[:-1]]
        )
        # DDPM, equations 6 and 7.
        one_minus = 1.0 - self.alphas_cumprod_S
        self._posterior_variance_S = betas_S * (1.0 - self.alphas_cumprod_prev_S) / one_minus
        # The variance at t = 0 is zero, so its logarithm is taken from t = 1.
        clipped = self._posterior_variance_S.clone()
        clipped[0] = clipped[1] if len(clipped) > 1 else betas_S[0]
        self._posterior_log_variance_S = clipped.log()
        self._mean_clean_S = betas_S * self.alphas_cumprod_prev_S.sqrt() / one_minus
        self._mean_noisy_S = (1.0 - self.alphas_cumprod_prev_S) * alphas_S.sqrt() / one_minus

    @property
    def num_steps(self) -> int:
        """Number of steps of this (possibly respaced) chain."""
        return len(self.betas_S)

    def respaced(self, spec: int | str) -> GaussianDiffusion:
        """The shorter chain that visits only the times of ``spec`` (see `respaced_times`)."""
        times = torch.tensor(respaced_times(spec, self.num_steps))
        kept = self.alphas_cumprod_S[times]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        shorter = object.__new__(GaussianDiffusion)
        shorter._set(1.0 - kept / previous, self.time_map_S[times], self.num_train_steps, self.clip)
        return shorter

    @staticmethod
    def _at(table_S: Tensor, t: Tensor, like: Tensor) -> Tensor:
        values = table_S.to(like.device)[t].to(like.dtype)
        return values.view(-1, *[1] * (like.ndim - 1))

    def network_time(self, t: Tensor) -> Tensor:
        """Times as the network was trained on them, from times of this chain, shape (B,)."""
        return self.time_map_S.to(t.device)[t]

    def times_from_uniform(self, uniform_B: Tensor) -> Tensor:
        """Map uniform draws in [0, 1) of shape (B,) to training times."""
        return (uniform_B * self.num_steps).long().clamp(max=self.num_steps - 1)

    def add_noise(self, clean: Tensor, t: Tensor, noise: Tensor) -> NoisyBatch:
        """Noise clean data to times ``t`` (DDPM, equation 4)."""
        kept = self._at(self.alphas_cumprod_S.sqrt(), t, clean)
        added = self._at((1.0 - self.alphas_cumprod_S).sqrt(), t, clean)
        return NoisyBatch(clean, noise, kept * clean + added * noise, t)

    def clean_from_noise(self, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Clean data implied by a noise prediction."""
        a = self._at((1.0 / self.alphas_cumprod_S).sqrt(), t, noisy)
        b = self._at((1.0 / self.alphas_cumprod_S - 1.0).sqrt(), t, noisy)
        return a * noisy - b * noise

    def noise_from_clean(self, noisy: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """Noise implied by a prediction of the clean data."""
        a = self._at((1.0 / self.alphas_cumprod_S).sqrt(), t, noisy)
        b = self._at((1.0 / self.alphas_cumprod_S - 1.0).sqrt(), t, noisy)
        return (a * noisy - clean) / b

    def posterior(self, clean: Tensor, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(x_{t-1} | x_t, x_0) (DDPM, equation 7)."""
        mean = self._at(self._mean_clean_S, t, noisy) * clean
        mean = mean + self._at(self._mean_noisy_S, t, noisy) * noisy
        return mean, self._at(self._posterior_log_variance_S, t, noisy).expand_as(mean)

    def split(self, out: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """Network output as noise prediction and variance values (``None`` if not learned).

        Raises:
            InputError: the output has neither ``channels`` nor ``2 * channels`` channels.
        """
        if out.shape[1] == channels:
            return out, None
        if out.shape[1] != 2 * channels:
            raise InputError(
                f"network output has {out.shape[1]} channels; valid for data of {channels} "
                f"channels: {channels} or {2 * channels}"
            )
        return out[:, :channels], out[:, channels:]

    def reverse_step(
        self, out: Tensor, noisy: Tensor, t: Tensor, clip: bool | None = None
    ) -> ReverseStep:
        """Gaussian p(x_{t-1} | x_t) that a network output describes.

        Args:
            out: network output, shape (B, C or 2C, H, W).
            noisy: current state, shape (B, C, H, W).
            t: times of this chain, shape (B,).
            clip: clamp the predicted clean data to [-1, 1]; default: the process's setting.

        Source: Improved DDPM (arXiv 2102.09672), section 3.1: the log-variance is interpolated
        between its two bounds. Without learned variance the larger bound is used.
        """
        noise, values = self.split(out, noisy.shape[1])
        lower = self._at(self._posterior_log_variance_S, t, noisy)
        if values is None:
            # DDPM's "fixed large" variance: beta, but the posterior's at t = 0.
            table = self.betas_S.clone()
            table[0] = self._posterior_log_variance_S[0].exp()
            log_variance = self._at(table.log(), t, noisy).expand_as(noisy)
        else:
            fraction = (values + 1.0) / 2.0
            upper = self._at(self.betas_S.log(), t, noisy)
            log_variance = fraction * upper + (1.0 - fraction) * lower
        clean = self.clean_from_noise(noisy, t, noise)
        if self.clip if clip is None else clip:
            clean = clean.clamp(-1.0, 1.0)
        mean, _ = self.posterior(clean, noisy, t)
        return ReverseStep(mean, log_variance.exp(), log_variance, clean)

    def loss(self, out: Tensor, batch: NoisyBatch) -> dict[str, Tensor]:
        """Hybrid loss per sample: ``mse``, ``vb`` (if variance is learned) and their sum ``loss``.

        ``mse`` is in squared units of the noise, ``vb`` in bits per dimension; each has shape
        (B,). The noise half is detached in ``vb`` (Improved DDPM, section 3.1).
        """
        noise, values = self.split(out, batch.clean.shape[1])
        terms = {"mse": mean_flat((batch.noise - noise) ** 2)}
        terms["loss"] = terms["mse"]
        if values is not None:
            terms["vb"] = self._variational_bound(out, batch, target_out=None)
            terms["loss"] = terms["mse"] + terms["vb"]
        return terms

    def distillation_loss(
        self, student_out: Tensor, teacher_out: Tensor, batch: NoisyBatch, variance: bool
    ) -> dict[str, Tensor]:
        """Output distillation per sample: ``kd_mse``, ``kd_vb`` if asked for, and their sum ``kd``.

        Args:
            student_out: shape (B, C or 2C, H, W).
            teacher_out: same shape, no gradient.
            batch: what both networks saw.
            variance: add KL(teacher || student) of the reverse step in bits per dimension; at
                t = 0 it is the student's decoder likelihood instead (METHODS 2.3).
        """
        channels = batch.clean.shape[1]
        student_noise, values = self.split(student_out, channels)
        teacher_noise, _ = self.split(teacher_out, channels)
        terms = {"kd_mse": mean_flat((student_noise - teacher_noise) ** 2)}
        terms["kd"] = terms["kd_mse"]
        if variance and values is not None:
            terms["kd_vb"] = self._variational_bound(student_out, batch, target_out=teacher_out)
            terms["kd"] = terms["kd_mse"] + terms["kd_vb"]
        return terms

    def _variational_bound(
        self, out: Tensor, batch: NoisyBatch, target_out: Tensor | None
    ) -> Tensor:
        """KL of the reverse step to the posterior (or to another model's), bits per dimension."""
        noise, values = self.split(out, batch.clean.shape[1])
        step = self.reverse_step(
            torch.cat([noise.detach(), values], 1), batch.noisy, batch.t, clip=False
        )
        if target_out is None:
            mean, log_variance = self.posterior(batch.clean, batch.noisy, batch.t)
        else:
            target = self.reverse_step(target_out, batch.noisy, batch.t, clip=False)
            mean, log_variance = target.mean, target.log_variance
        kl = mean_flat(gaussian_kl(mean, log_variance, step.mean, step.log_variance))
        likelihood = discretised_log_likelihood(batch.clean, step.mean, 0.5 * step.log_variance)
        return torch.where(batch.t == 0, -mean_flat(likelihood), kl) / math.log(2.0)


def batch_means(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average every per-sample term over the batch."""
    return {name: value.mean() for name, value in terms.items()}
