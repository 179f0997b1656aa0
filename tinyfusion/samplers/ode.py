"""Sampling an interpolant along its probability-flow ODE, with solvers of torchdiffeq.

Shape suffixes: B batch, C data channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.errors import InputError
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.samplers.contract import NoiseSource, OnStep, check_sampler
from tinyfusion.samplers.guidance import NO_GUIDANCE, Guidance
from tinyfusion.samplers.guided import GuidedNet

# Multi-step methods are left out: they need the slopes of several steps before.
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


class ODESampler:
    """Integrates the drift from noise to data; the start is the only random draw.

    The size of adaptive steps follows from the error over the whole batch: with those methods
    sample i depends on its batch, within the tolerances.

    Args:
        method: a solver of torchdiffeq with equal steps (``euler``, ``midpoint``, ``heun2``,
            ``heun3``, ``rk4``) or with steps by tolerance (``dopri5``, as published, ``dopri8``,
            ``bosh3``, ``fehlberg2``, ``adaptive_heun``).
        steps: number of equal steps, >= 1; not used by adaptive methods. The published scripts
            count grid points, one more than steps.
        atol: absolute tolerance of adaptive methods, in units of the data.
        rtol: relative tolerance of adaptive methods.

    Raises:
        InputError: an unknown method, less than one step, or a tolerance that is not positive.
    """

    process_kind = "interpolant"

    def __init__(
        self, method: str = "dopri5", steps: int = 50, atol: float = 1e-6, rtol: float = 1e-3
    ) -> None:
        if method not in (*FIXED, *ADAPTIVE):
            raise InputError(
                f"sampler.method={method!r} is not known; valid: {', '.join(FIXED)} (equal steps), "
                f"{', '.join(ADAPTIVE)} (adaptive)"
            )
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"sampler.steps={steps}: must be a whole number, at least 1")
        for key, value in (("atol", atol), ("rtol", rtol)):
            if not 0 < value < math.inf:
                raise InputError(f"sampler.{key}={value}: must be a finite number above 0")
        self.method = method
        self.steps = steps
        self.atol = atol
        self.rtol = rtol

    def num_steps(self, process: Interpolant) -> int:
        """See `Sampler`; 1 for adaptive methods, whose steps are not known beforehand."""
        return 1 if self.method in ADAPTIVE else self.steps

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
        """See `Sampler`; ``noise`` is called once.

        Raises:
            InputError: the network's output stops being finite under an adaptive method.
        """
        from torchdiffeq import odeint  # imports scipy

        check_sampler(self, process, net)
        predict = GuidedNet(net, process, noise, conditioning, guidance)
        adaptive = self.method in ADAPTIVE

        def slope(time: Tensor, x: Tensor) -> Tensor:
            t = time.expand(len(x))
            drift = process.drift(predict(x, t, time), x, t)
            if adaptive and not drift.isfinite().all():
                # The solver would shorten its step until it fails.
                raise InputError(
                    f"the model's drift is not finite at t={float(time):.4g}; a model that is "
                    "not fully trained or a lower precision may be why; sampler.method=euler "
                    "continues regardless"
                )
            return drift

        x = predict.draw()
        grid = torch.linspace(
            *process.ode_interval,
            self.num_steps(process) + 1,
            device=predict.device,
            dtype=predict.dtype,
        )
        # The last step ends at the interval's end instead of being interpolated from beyond it,
        # where a path may not exist.
        options = {"step_t": grid[-1:]} if adaptive else None
        settings = {"method": self.method, "atol": self.atol, "rtol": self.rtol, "options": options}
        # Step by step: states are reported, and none but the last is kept.
        for index in range(len(grid) - 1):
            x = odeint(slope, x, grid[index : index + 2], **settings)[-1]
            if on_step is not None:
                on_step(index, x)
        return x
