"""Paths from noise to data: ``x_t = alpha(t) * data + sigma(t) * noise`` (arXiv 2401.08740).

Time runs from noise (``t = 0``) to data (``t = 1``); rates are derivatives by ``t``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0
"""Noise rates of the VP path at data and at noise (arXiv 2011.13456, appendix C)."""


@dataclass(frozen=True)
class Coefficients:
    """A path at given times, all tensors of one shape.

    Attributes:
        alpha: share of the data.
        alpha_rate: its derivative.
        sigma: share of the noise.
        sigma_rate: its derivative.
    """

    alpha: Tensor
    alpha_rate: Tensor
    sigma: Tensor
    sigma_rate: Tensor

    @property
    def growth(self) -> Tensor:
        """``alpha' / alpha``, how fast a state grows by itself; infinite where ``alpha`` is 0."""
        return self.alpha_rate / self.alpha

    @property
    def diffusion(self) -> Tensor:
        """``growth * sigma^2 - sigma * sigma'``: what the score is multiplied by in the drift."""
        return self.sigma * (self.growth * self.sigma - self.sigma_rate)

    def velocity(self, data: Tensor, noise: Tensor) -> Tensor:
        """Derivative of the state between ``data`` and ``noise``."""
        return self.alpha_rate * data + self.sigma_rate * noise

    def drift_from_noise(self, state: Tensor, noise: Tensor) -> Tensor:
        """Mean velocity of ``state`` from its mean noise; not where ``alpha`` is 0."""
        # The score is -noise / sigma; multiplied out, nothing is divided by sigma.
        return self.growth * state + (self.sigma_rate - self.growth * self.sigma) * noise

    def drift_from_score(self, state: Tensor, score: Tensor) -> Tensor:
        """Mean velocity of ``state`` from its score; not where ``alpha`` is 0."""
        return self.growth * state + self.diffusion * score

    def score_from_drift(self, state: Tensor, drift: Tensor) -> Tensor:
        """Score of ``state`` from its mean velocity; not where ``sigma`` is 0."""
        # The inverse of `drift_from_score` divided by the growth, which is infinite at pure noise.
        inverse = self.alpha / self.alpha_rate
        variance = self.sigma * (self.sigma - inverse * self.sigma_rate)
        return (inverse * drift - state) / variance


def linear(t: Tensor) -> Coefficients:
    """Straight lines: ``alpha = t``, ``sigma = 1 - t``."""
    one = torch.ones_like(t)
    return Coefficients(t, one, 1 - t, -one)


def gvp(t: Tensor) -> Coefficients:
    """Generalised variance-preserving: ``alpha = sin(pi t / 2)``, ``sigma = cos(pi t / 2)``."""
    quarter = math.pi / 2
    alpha, sigma = (quarter * t).sin(), (quarter * t).cos()
    return Coefficients(alpha, quarter * sigma, sigma, -quarter * alpha)


def vp(t: Tensor) -> Coefficients:
    """Variance-preserving diffusion with linear noise rate, whose noise end is only near noise.

    ``log alpha = -(1 - t)^2 (BETA_MAX - BETA_MIN) / 4 - (1 - t) BETA_MIN / 2`` and
    ``sigma^2 = 1 - alpha^2``; ``sigma'`` is infinite at ``t = 1``.
    """
    back = 1 - t
    log_alpha = -(back**2) * (BETA_MAX - BETA_MIN) / 4 - back * BETA_MIN / 2
    alpha = log_alpha.exp()
    # expm1: near data, 1 - alpha^2 would lose its digits.
    sigma = (-torch.expm1(2 * log_alpha)).sqrt()
    alpha_rate = alpha * (BETA_MIN + back * (BETA_MAX - BETA_MIN)) / 2
    return Coefficients(alpha, alpha_rate, sigma, -alpha * alpha_rate / sigma)


PATHS = {"linear": linear, "gvp": gvp, "vp": vp}
"""Path by the name that configurations use."""
