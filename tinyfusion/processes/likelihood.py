"""Terms of the variational bound: KL of two Gaussians, and likelihood of 8-bit data."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
