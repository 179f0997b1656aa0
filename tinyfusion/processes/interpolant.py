"""Stochastic interpolants, the process of SiT (arXiv 2401.08740).

Noise (``t = 0``) and data (``t = 1``) are joined by a path; the network predicts the mean
velocity along it, the noise, or the score. Each gives the drift of the probability-flow ODE and
the score, which is all that samplers ask for.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Draws, Process, mean_flat
from tinyfusion.processes.paths import PATHS, Coefficients

PREDICTIONS = ("velocity", "noise", "score")
LOSS_WEIGHTS = ("velocity", "likelihood")


@dataclass(frozen=True)
class InterpolatedBatch:
    """Clean data, the noise it was mixed with, and the result.

    Attributes:
        clean: data, shape (B, C, H, W).
        noise: standard normal noise, same shape.
        noisy: input of the network, same shape.
        velocity: derivative of ``noisy`` by time, same shape.
        t: times in 0..1, shape (B,).
    """

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    velocity: Tensor
    t: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network is given before its conditioning."""
        return self.noisy, self.t


class Interpolant(Process):
    """Data and noise joined by a path in real time.

    Args:
        path: ``linear`` (published), ``gvp`` or ``vp``, see :mod:`tinyfusion.processes.paths`.
        prediction: what the network predicts: ``velocity`` (published), ``noise`` or ``score``.
        loss_weight: ``None``, or for noise and score ``velocity`` (d / sigma)^2 or ``likelihood``
            d / sigma^2, with the `Coefficients.diffusion` d of the path.
        train_eps: how far training stays away from the ends where something is infinite; default,
            as published: 1e-5 for ``vp``, 1e-3 for noise and score on the other paths, else 0.
        sample_eps: the same for sampling; default: 1e-3 for ``vp``, otherwise as in training.

    Raises:
        InputError: an unknown name, a weighted velocity, or a distance that is too large, or 0
            where something is infinite at an end.
    """

    kind: ClassVar[str] = "interpolant"
    times = "real"
    clean_draw: ClassVar[float] = 1.0

    @classmethod
    def from_training_args(cls, args: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        """See `Process`; as SiT's script records them."""
        found: dict[str, tuple[str, Any]] = {}
        for key, word in {"path": "path_type", "prediction": "prediction"}.items():
            if isinstance(args.get(word), str):
                found[key] = (word, args[word].lower())
        for key in ("loss_weight", "train_eps", "sample_eps"):
            if args.get(key) is not None:  # as published
                found[key] = (key, args[key])
        return found

    def __init__(
        self,
        path: str = "linear",
        prediction: str = "velocity",
        loss_weight: str | None = None,
        train_eps: float | None = None,
        sample_eps: float | None = None,
    ) -> None:
        _check_name("path", path, tuple(PATHS))
        _check_name("prediction", prediction, PREDICTIONS)
        if loss_weight is not None:
            _check_name("loss_weight", loss_weight, LOSS_WEIGHTS, "or null for none")
            if prediction == "velocity":
                raise InputError(
                    f"process.loss_weight={loss_weight!r}: only the predictions noise and score "
                    "are weighted; set process.loss_weight=null or another process.prediction"
                )
        self.path = path
        self.prediction = prediction
        self.loss_weight = loss_weight
        inner = 0.0 if prediction == "velocity" else 1e-3
        self.train_eps = self._eps("train_eps", train_eps, 1e-5 if path == "vp" else inner)
        self.sample_eps = self._eps("sample_eps", sample_eps, 1e-3 if path == "vp" else inner)

    def _eps(self, key: str, value: float | None, default: float) -> float:
        """The user's distance from the ends, or the published one."""
        if value is None:
            return default
        if not 0 <= value < 0.5:
            raise InputError(f"process.{key}={value}: must be at least 0 and below 0.5")
        if value == 0 < default:
            raise InputError(
                f"process.{key}=0: prediction {self.prediction!r} on path {self.path!r} is "
                f"infinite at an end; published: {default}"
            )
        return value

    @property
    def train_interval(self) -> tuple[float, float]:
        """First and last time that training draws."""
        return self._interval(self.train_eps, divides_by_alpha=False, uses_score=False)

    @property
    def ode_interval(self) -> tuple[float, float]:
        """First and last time of the probability-flow ODE."""
        return self._interval(self.sample_eps, divides_by_alpha=False, uses_score=False)

    def sde_interval(self, divides_by_alpha: bool = False) -> tuple[float, float]:
        """First and last time of the reverse SDE.

        Args:
            divides_by_alpha: the SDE's diffusion is infinite where ``alpha`` is 0.
        """
        return self._interval(self.sample_eps, divides_by_alpha, uses_score=True)

    def _interval(
        self, eps: float, divides_by_alpha: bool, uses_score: bool
    ) -> tuple[float, float]:
        # At noise, alpha is 0 but for VP; at data, sigma is 0 and VP's sigma' is infinite.
        inner = self.prediction != "velocity"
        start = eps if self.path != "vp" and (inner or divides_by_alpha) else 0.0
        end = 1.0 - eps if self.path == "vp" or inner or uses_score else 1.0
        return start, end

    def at(self, t: Tensor, like: Tensor) -> Coefficients:
        """The path at times ``t`` of shape (B,), with the dimensions of ``like``."""
        return PATHS[self.path](t.view(-1, *[1] * (like.ndim - 1)))

    def noise_level(self, time: float) -> float:
        """See `Process`."""
        path = PATHS[self.path](torch.tensor(time, dtype=torch.float64))
        return float(path.sigma / path.alpha)

    def corrupt(self, clean: Tensor, draws: Draws) -> InterpolatedBatch:
        """See `Process`; times are uniform over ``train_interval``."""
        start, end = self.train_interval
        t = start + (end - start) * draws.uniform("times")
        return self.add_noise(clean, t, draws.normal("noise", *clean.shape[1:]))

    def add_noise(self, clean: Tensor, t: Tensor, noise: Tensor) -> InterpolatedBatch:
        """Mix clean data with noise to times ``t`` of shape (B,)."""
        path = self.at(t, clean)
        noisy = path.alpha * clean + path.sigma * noise
        return InterpolatedBatch(clean, noise, noisy, path.velocity(clean, noise), t)

    def loss(self, out: Tensor, batch: InterpolatedBatch) -> dict[str, Tensor]:
        """Squared error ``mse`` of the prediction and ``loss``, the same weighted, of shape (B,).

        The score's error is that of ``sigma * score``, whose target is finite everywhere.
        """
        _check_channels(out, batch.clean)
        path = self.at(batch.t, batch.clean)
        if self.prediction == "velocity":
            error = out - batch.velocity
        elif self.prediction == "noise":
            error = out - batch.noise
        else:
            error = path.sigma * out + batch.noise
        mse = mean_flat(error**2)
        if self.loss_weight is None:
            return {"mse": mse, "loss": mse}
        squared = 2 if self.loss_weight == "velocity" else 1
        weight = path.diffusion**squared / path.sigma**2
        return {"mse": mse, "loss": weight.flatten() * mse}

    def distillation_loss(
        self, student_out: Tensor, teacher_out: Tensor, batch: InterpolatedBatch, variance: bool
    ) -> dict[str, Tensor]:
        """Squared distance ``kd_mse`` of the two predictions, which is all of ``kd``, shape (B,).

        The published model has no variance to distil: the output that DiT uses for it is
        discarded.
        """
        assert not variance, "an interpolant learns no variance"
        _check_channels(student_out, batch.clean)
        mse = mean_flat((student_out - teacher_out) ** 2)
        return {"kd_mse": mse, "kd": mse}

    def drift(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Velocity of the probability-flow ODE from a network output.

        Args:
            out: network output, shape (B, C, H, W).
            x: state, same shape.
            t: times within ``ode_interval``, shape (B,).

        Raises:
            InputError: the output has other channels than the data.
        """
        _check_channels(out, x)
        if self.prediction == "velocity":
            return out
        path = self.at(t, x)
        if self.prediction == "noise":
            return path.drift_from_noise(x, out)
        return path.drift_from_score(x, out)

    def score(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of the log-density from a network output.

        Args:
            out: network output, shape (B, C, H, W).
            x: state, same shape.
            t: times below 1, where the density of the data itself has no known gradient, shape
                (B,).

        Raises:
            InputError: the output has other channels than the data.
        """
        _check_channels(out, x)
        if self.prediction == "score":
            return out
        path = self.at(t, x)
        if self.prediction == "noise":
            return -out / path.sigma
        return path.score_from_drift(x, out)


def _check_name(key: str, value: str, valid: tuple[str, ...], more: str = "") -> None:
    if value not in valid:
        raise InputError(
            f"process.{key}={value!r} is not known; valid: {', '.join(valid)} {more}".rstrip()
        )


def _check_channels(out: Tensor, data: Tensor) -> None:
    # One channel would be broadcast against two without an error.
    if out.shape != data.shape:
        raise InputError(
            f"network output has shape {tuple(out.shape)}; an interpolant needs that of the data, "
            f"{tuple(data.shape)}"
        )
