"""MAR's diffusion head: a small network that denoises each token on its own.

It is the residual MLP of "Autoregressive Image Generation without Vector Quantization"
(arXiv 2406.11838, section 4.1), conditioned on the transformer's output for the token.

Shape suffixes: N tokens (any number of axes), C values of a token, W width of the head,
D width of the transformer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.backbones.kernels import Linear
from tinyfusion.backbones.layers import NORM_EPS, TimestepEmbedder, init_linears


class ResidualMlpBlock(nn.Module):
    """Residual two-layer MLP with adaLN-Zero conditioning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def forward(self, x_NW: Tensor, condition_NW: Tensor) -> Tensor:
        """Run the block on every token; shape unchanged."""
        shift, scale, gate = self.adaLN_modulation(condition_NW).chunk(3, dim=-1)
        mapped_NW = self.mlp(torch.addcmul(shift, self.in_ln(x_NW), 1 + scale))
        return torch.addcmul(x_NW, gate, mapped_NW)


class OutputLayer(nn.Module):
    """Modulated norm and the projection to the predictions."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.linear = Linear(width, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x_NW: Tensor, condition_NW: Tensor) -> Tensor:
        """Map (N, W) to (N, out_channels)."""
        shift, scale = self.adaLN_modulation(condition_NW).chunk(2, dim=-1)
        normed_NW = F.layer_norm(x_NW, x_NW.shape[-1:], eps=NORM_EPS)
        return self.linear(torch.addcmul(shift, normed_NW, 1 + scale))


class DiffusionHead(nn.Module):
    """Residual MLP that predicts the noise in each token.

    Args:
        token_channels: values of a token.
        out_channels: predictions per token.
        condition_width: width D of the conditions.
        width: width W of the MLP.
        depth: number of residual blocks.
    """

    def __init__(
        self, token_channels: int, out_channels: int, condition_width: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = Linear(condition_width, width)
        self.input_proj = Linear(token_channels, width)
        self.res_blocks = nn.ModuleList(ResidualMlpBlock(width) for _ in range(depth))
        self.final_layer = OutputLayer(width, out_channels)
        self._initialise()

    def _initialise(self) -> None:
        # As DiT: Xavier everywhere, then zeros where a block is to start as the identity.
        init_linears(self)
        self.time_embed.init_weights()
        for owner in (*self.res_blocks, self.final_layer):
            nn.init.zeros_(owner.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, noisy: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """Predict noise (and variance values) of every token.

        Args:
            noisy: noisy tokens, shape (..., C).
            t: integer times, shape (...).
            conditions: outputs of the transformer for the tokens, shape (..., D); axes of
                length 1 serve all tokens along them and are embedded once.

        Returns:
            Shape (..., out_channels).
        """
        condition_NW = self.time_embed(t) + self.cond_embed(conditions)
        x_NW = self.input_proj(noisy)
        for block in self.res_blocks:
            x_NW = block(x_NW, condition_NW)
        return self.final_layer(x_NW, condition_NW)
