"""Discrete Gaussian diffusion with learned-range variance (arXiv 2006.11239 and 2102.09672).

``t = 0`` is the least noisy step, ``t = num_steps - 1`` the noisiest. Tables are kept in float64
and cast to the type of the data where they are used.

Shape suffixes: B batch, C channels, H height, W width, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Draws, Process, mean_flat
from tinyfusion.processes.likelihood import discretised_log_likelihood, gaussian_kl
from tinyfusion.processes.respacing import respaced_times
from tinyfusion.processes.tables import Tables

SCHEDULES = ("linear", "squared_cosine")


@dataclass(frozen=True)
class NoisyBatch:
    """Clean data, the noise added to it, and the result.

    Attributes:
        clean: data, shape (B, C, H, W).
        noise: standard normal noise, same shape.
        noisy: input of the network, same shape.
        t: integer times of the process, shape (B,).
        network_t: the same times as the network was trained on them, shape (B,).
    """

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    t: Tensor
    network_t: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network is given before its conditioning."""
        return self.noisy, self.network_t


@dataclass(frozen=True)
class ReverseStep:
    """Gaussian of one reverse step and the clean data it implies, all of shape (B, C, H, W)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    clean: Tensor


MAX_STEPS = 1_000_000
"""Longest chain: tables hold a number for each of its steps."""


class GaussianDiffusion(Process):
    """The 1000-step process of DDPM; its linear schedule is that of DiT.

    Args:
        num_steps: length of the chain.
        beta_start: first noise variance of the linear schedule.
        beta_end: last noise variance of the linear schedule.
        clip: whether samplers clamp the predicted clean data to [-1, 1] (pixels: yes,
            latents: no).
        schedule: ``linear``, or ``squared_cosine`` (Improved DDPM, arXiv 2102.09672, equation 17),
            which has no use for the two variances.

    Raises:
        InputError: an empty chain, variances outside (0, 1), or an unknown schedule.
    """

    kind: ClassVar[str] = "diffusion"
    times = "whole"
    learns_variance: ClassVar[bool] = True

    @classmethod
    def from_training_args(cls, args: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        """See `Process`; as scripts of the ADM family record them."""
        steps, schedule = args.get("diffusion_steps"), args.get("noise_schedule")
        known = {"linear": "linear", "squaredcos_cap_v2": "squared_cosine"}
        found: dict[str, tuple[str, Any]] = {}
        if type(steps) is int:
            found["num_steps"] = ("diffusion_steps", steps)
        if isinstance(schedule, str):
            found["schedule"] = ("noise_schedule", known.get(schedule, schedule))
        return found

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        clip: bool = False,
        schedule: str = "linear",
    ) -> None:
        if schedule not in SCHEDULES:
            raise InputError(
                f"process.schedule={schedule!r} is not known; valid: {', '.join(SCHEDULES)}"
            )
        if not 1 <= num_steps <= MAX_STEPS or not 0 < beta_start <= beta_end < 1:
            raise InputError(
                f"diffusion needs num_steps of 1 to {MAX_STEPS} and 0 < beta_start <= beta_end "
                f"< 1, got {num_steps}, {beta_start}, {beta_end}"
            )
        if schedule == "linear":
            betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        else:
            betas = _squared_cosine_betas(num_steps)
        self._set(betas, torch.arange(num_steps), clip)

    def _set(self, betas_S: Tensor, time_map_S: Tensor, clip: bool) -> None:
        self.clip = clip
        self.time_map_S = time_map_S
        self.betas_S = betas_S
        alphas_S = 1.0 - betas_S
        kept_S = self.alphas_cumprod_S = alphas_S.cumprod(0)
        kept_before_S = torch.cat([torch.ones(1, dtype=torch.float64), kept_S[:-1]])
        self.alphas_cumprod_prev_S = kept_before_S
        # DDPM, equations 6 and 7.
        variance_S = betas_S * (1.0 - kept_before_S) / (1.0 - kept_S)
        # The variance at t = 0 is zero, so its logarithm is taken from t = 1.
        variance_S[0] = variance_S[1] if len(variance_S) > 1 else betas_S[0]
        # DDPM's "fixed large" variance: beta, but the posterior's at t = 0.
        fixed_S = torch.cat([variance_S[:1], betas_S[1:]])
        self._tables = Tables(
            time=time_map_S,
            clean_in_noisy=kept_S.sqrt(),
            noise_in_noisy=(1.0 - kept_S).sqrt(),
            noisy_in_clean=(1.0 / kept_S).sqrt(),
            noise_in_clean=(1.0 / kept_S - 1.0).sqrt(),
            clean_in_mean=betas_S * kept_before_S.sqrt() / (1.0 - kept_S),
            noisy_in_mean=(1.0 - kept_before_S) * alphas_S.sqrt() / (1.0 - kept_S),
            least_log_variance=variance_S.log(),
            largest_log_variance=betas_S.log(),
            fixed_log_variance=fixed_S.log(),
        )

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
        shorter._set(1.0 - kept / previous, self.time_map_S[times], self.clip)
        return shorter

    def network_time(self, t: Tensor) -> Tensor:
        """Times as the network was trained on them, from times of this chain, shape (B,)."""
        return self._tables.at("time", t, t)

    def noise_level(self, time: float) -> float:
        """See `Process`; of a time of this chain."""
        kept = float(self.alphas_cumprod_S[int(time)])
        return math.sqrt(1.0 / kept - 1.0)

    def corrupt(self, clean: Tensor, draws: Draws) -> NoisyBatch:
        """See `Process`; times are uniform over the chain."""
        t = self.times_from_uniform(draws.uniform("times"))
        return self.add_noise(clean, t, draws.normal("noise", *clean.shape[1:]))

    def times_from_uniform(self, uniform_B: Tensor) -> Tensor:
        """Map uniform draws in [0, 1) of shape (B,) to training times."""
        return (uniform_B * self.num_steps).long().clamp(max=self.num_steps - 1)

    def add_noise(self, clean: Tensor, t: Tensor, noise: Tensor) -> NoisyBatch:
        """Noise clean data to times ``t`` (DDPM, equation 4)."""
        kept = self._tables.at("clean_in_noisy", t, clean)
        added = self._tables.at("noise_in_noisy", t, clean)
        return NoisyBatch(clean, noise, kept * clean + added * noise, t, self.network_time(t))

    def clean_from_noise(self, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Clean data implied by a noise prediction."""
        a = self._tables.at("noisy_in_clean", t, noisy)
        b = self._tables.at("noise_in_clean", t, noisy)
        return a * noisy - b * noise

    def noise_from_clean(self, noisy: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """Noise implied by a prediction of the clean data."""
        a = self._tables.at("noisy_in_clean", t, noisy)
        b = self._tables.at("noise_in_clean", t, noisy)
        return (a * noisy - clean) / b

    def posterior(self, clean: Tensor, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(x_{t-1} | x_t, x_0) (DDPM, equation 7)."""
        mean = self._tables.at("clean_in_mean", t, noisy) * clean
        mean = mean + self._tables.at("noisy_in_mean", t, noisy) * noisy
        return mean, self._tables.at("least_log_variance", t, noisy).expand_as(mean)

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
        if values is None:
            log_variance = self._tables.at("fixed_log_variance", t, noisy).expand_as(noisy)
        else:
            fraction = (values + 1.0) / 2.0
            lower = self._tables.at("least_log_variance", t, noisy)
            upper = self._tables.at("largest_log_variance", t, noisy)
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
                t = 0 it is the student's decoder likelihood of the clean
                data instead, as in the reference implementation of TinyFusion.
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
        channels = batch.clean.shape[1]
        noise_detached = torch.cat([out[:, :channels].detach(), out[:, channels:]], 1)
        step = self.reverse_step(noise_detached, batch.noisy, batch.t, clip=False)
        if target_out is None:
            mean, log_variance = self.posterior(batch.clean, batch.noisy, batch.t)
        else:
            target = self.reverse_step(target_out, batch.noisy, batch.t, clip=False)
            mean, log_variance = target.mean, target.log_variance
        kl = mean_flat(gaussian_kl(mean, log_variance, step.mean, step.log_variance))
        likelihood = discretised_log_likelihood(batch.clean, step.mean, 0.5 * step.log_variance)
        return torch.where(batch.t == 0, -mean_flat(likelihood), kl) / math.log(2.0)


def _squared_cosine_betas(num_steps: int) -> Tensor:
    """Improved DDPM, equation 17 and the bound below it, in float64, shape (S,)."""
    s = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    kept = ((s + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
