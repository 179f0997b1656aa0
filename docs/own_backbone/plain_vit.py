"""A plain vision transformer that predicts the noise in an image: 12 blocks for 8x8 digits."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain

PATCH, HEAD_WIDTH = 2, 8


class Block(nn.Module):
    """Attention, then an MLP, each added to the states: without the block these stay the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map states (B, T, D) and whatever else the network gives its blocks to new states."""
        qkv = self.qkv(self.norm1(x) + condition).unflatten(-1, (3, -1, HEAD_WIDTH))
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x) + condition)))


class PlainViT(Backbone):
    """Tokens of patches with learned positions; time and class are added in every block."""

    def __init__(self, input_size: int = 8, in_channels: int = 1, num_classes: int = 10,
                 width: int = 32, depth: int = 12, class_dropout_prob: float = 0.1):  # fmt: skip
        super().__init__()
        self.input_size, self.in_channels, self.num_classes = input_size, in_channels, num_classes
        self.width, self.class_dropout_prob = width, class_dropout_prob
        self.embed = nn.Conv2d(in_channels, width, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn((input_size // PATCH) ** 2, width))
        frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width)  # the last one means "no class"
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.ConvTranspose2d(width, in_channels, PATCH, PATCH)

    def config(self) -> dict[str, int | float]:
        """Constructor arguments; pruning changes ``self.blocks``, and with it ``self.depth``."""
        names = "input_size in_channels num_classes width depth class_dropout_prob"
        return {name: getattr(self, name) for name in names.split()}

    @property
    def null_label(self) -> int:
        """Label of no class."""
        return self.num_classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor, run_block: BlockRunner = run_plain):
        """Predict the noise in images x (B, C, H, W) at times t (B,) with labels y (B,)."""
        angles = t.unsqueeze(1) * self.frequencies
        condition = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(y)
        grid = self.embed(x)
        states = grid.flatten(2).mT + self.positions
        for index, block in enumerate(self.blocks):
            states = run_block(index, block, states, condition.unsqueeze(1))
        return self.head(states.mT.reshape(grid.shape))
