"""Sampling an interpolant along a reverse SDE (arXiv 2401.08740, section 2).

``dx = (drift + w * score) dt + sqrt(2 w) dW`` has the marginals of the path for any diffusion
``w(t) >= 0``, which therefore can be chosen after training.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.samplers.contract import NoiseSource, OnStep, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.samplers.guided import GuidedNet

METHODS = ("euler", "heun")
FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing_decreasing")
LAST_STEPS = ("mean", "tweedie", "euler")


class SDESampler:
    """Integrates the SDE from noise to near data, then takes a last step without noise.

    Args:
        method: ``euler`` (Euler-Maruyama) or ``heun``, which needs two network outputs a step.
        steps: number of steps, the last one included.
        diffusion_form: w(t) for the norm n: ``constant`` n, ``sbdm`` n d(t) (that of score-based
            diffusion, see `Coefficients.diffusion`), ``sigma`` n sigma(t), ``linear`` n (1 - t),
            ``decreasing`` (n cos(pi t) + 1)^2 / 4, ``increasing_decreasing`` n sin(pi t)^2.
        diffusion_norm: n >= 0.
        last_step: ``mean`` (one step of the SDE's drift), ``tweedie`` (mean of the data given the
            state), ``euler`` (one step of the ODE), or ``None``: the SDE goes to the end.
        last_step_size: length of the last step, in (0, 1).

    Raises:
        InputError: an unknown name, or a number out of its range.
    """

    process_kind = "interpolant"

    def __init__(
        self,
        method: str = "euler",
        steps: int = 250,
        diffusion_form: str = "sigma",
        diffusion_norm: float = 1.0,
        last_step: str | None = "mean",
        last_step_size: float = 0.04,
    ) -> None:
        for key, value, valid in (
            ("method", method, METHODS),
            ("diffusion_form", diffusion_form, FORMS),
            ("last_step", last_step, (*LAST_STEPS, None)),
        ):
            if value not in valid:
                names = ", ".join("null" if name is None else name for name in valid)
                raise InputError(f"sampler.{key}={value!r} is not known; valid: {names}")
        least = 1 if last_step is None else 2
        if not isinstance(steps, int) or steps < least:
            raise InputError(
                f"sampler.steps={steps}: must be a whole number, at least {least}"
                + (" with a last step" if last_step else "")
            )
        if not 0 <= diffusion_norm < math.inf:
            raise InputError(
                f"sampler.diffusion_norm={diffusion_norm}: must be a finite number >= 0"
            )
        if last_step is not None and not 0 < last_step_size < 1:
            raise InputError(
                f"sampler.last_step_size={last_step_size}: must be above 0 and below 1 "
                "(no last step: sampler.last_step=null)"
            )
        self.method = method
        self.steps = steps
        self.diffusion_form = diffusion_form
        self.diffusion_norm = diffusion_norm
        self.last_step = last_step
        self.last_step_size = last_step_size

    def num_steps(self, process: Interpolant) -> int:
        """See `Sampler`."""
        self._interval(process)
        return self.steps

    def _interval(self, process: Interpolant) -> tuple[float, float]:
        """Times between which noise is added."""
        start, end = process.sde_interval(divides_by_alpha=self.diffusion_form == "sbdm")
        if self.diffusion_form == "sbdm" and start == 0 and process.path != "vp":
            raise InputError(
                f"sampler.diffusion_form=sbdm is infinite at t=0 of path {process.path!r}: "
                "set process.sample_eps (such as 1e-3) or another form"
            )
        if self.last_step is not None:
            end = 1.0 - self.last_step_size
        if start >= end:
            raise InputError(
                f"sampler.last_step_size={self.last_step_size} leaves nothing of the time "
                f"after t={start} (process.sample_eps)"
            )
        return start, end

    @torch.no_grad()
    def __call__(
        self,
        net: Backbone,
        process: Interpolant,
        noise: NoiseSource,
        conditioning: Conditioning,
        guidance: Guidance = NO_GUIDANCE,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `Sampler`; ``noise`` is called for the start and once for every step but the last."""
        check_sampler(self, process, net)
        predict = GuidedNet(net, process, noise, conditioning, guidance)
        noisy_steps = self.steps if self.last_step is None else self.steps - 1
        start, end = self._interval(process)
        grid = torch.linspace(start, end, noisy_steps + 1, dtype=torch.float64).tolist()
        x = predict.draw()
        for index, (time, time_next) in enumerate(pairwise(grid)):
            x = self._step(process, predict, x, time, time_next)
            if on_step is not None:
                on_step(index, x)
        if self.last_step is not None:
            x = self._finish(process, predict, x, end)
            if on_step is not None:
                on_step(noisy_steps, x)
        return x

    def _step(
        self, process: Interpolant, predict: GuidedNet, x: Tensor, time: float, time_next: float
    ) -> Tensor:
        dt = time_next - time
        t = x.new_full((len(x),), time)
        kick = (2 * dt * self._diffusion(process, x, t)).sqrt() * predict.draw()
        if self.method == "euler":
            return x + self._drift(process, predict, x, time) * dt + kick
        # Karras et al. (arXiv 2206.00364), algorithm 2: the noise first, then Heun's rule.
        x = x + kick
        slope = self._drift(process, predict, x, time)
        if time_next >= 1:
            # At pure data there is no score to average with.
            return x + slope * dt
        ahead = self._drift(process, predict, x + slope * dt, time_next)
        return x + (slope + ahead) / 2 * dt

    def _finish(self, process: Interpolant, predict: GuidedNet, x: Tensor, time: float) -> Tensor:
        if self.last_step == "mean":
            return x + self._drift(process, predict, x, time) * self.last_step_size
        t = x.new_full((len(x),), time)
        out = predict(x, t, time)
        if self.last_step == "euler":
            return x + process.drift(out, x, t) * self.last_step_size
        path = process.at(t, x)
        return (x + path.sigma**2 * process.score(out, x, t)) / path.alpha

    def _drift(self, process: Interpolant, predict: GuidedNet, x: Tensor, time: float) -> Tensor:
        """Drift of the SDE, shape (B, C, H, W)."""
        t = x.new_full((len(x),), time)
        out = predict(x, t, time)
        w = self._diffusion(process, x, t)
        return process.drift(out, x, t) + w * process.score(out, x, t)

    def _diffusion(self, process: Interpolant, x: Tensor, t: Tensor) -> Tensor:
        """The diffusion w at times ``t`` of shape (B,), shape (B, 1, 1, 1)."""
        path, norm = process.at(t, x), self.diffusion_norm
        time = t.view(-1, *[1] * (x.ndim - 1))
        match self.diffusion_form:
            case "constant":
                return torch.full_like(time, norm)
            case "sbdm":
                return norm * path.diffusion
            case "sigma":
                return norm * path.sigma
            case "linear":
                return norm * (1 - time)
            case "decreasing":
                return 0.25 * (norm * (math.pi * time).cos() + 1) ** 2
        return norm * (math.pi * time).sin() ** 2
