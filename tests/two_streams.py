"""A text-to-image network whose blocks carry two streams, and captioned images; for all tests.

Its image and text tokens have widths of their own and meet in the attention of every block. What
it is told are text embeddings with a mask, no class labels.

Shape suffixes: B batch, T image tokens, L text tokens, D width, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyfusion.backbones.branches import Branch, BranchedBlock
from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain
from tinyfusion.conditioning import Conditioning
from tinyfusion.data.source import ImageSource

TEXT_TOKENS, TEXT_WIDTH = 3, 6
Streams = tuple[Tensor, Tensor]


class Caption(Conditioning):
    """Embeddings (B, L, TEXT_WIDTH) of a text, and a mask (B, L) of the tokens that it has."""

    def null(self, net: TwoStreams) -> Caption:
        """The embedding of the empty text."""
        text, mask = self.arguments()
        first_only = torch.arange(mask.shape[1], device=mask.device) < 1
        return Caption(net.null_text.expand_as(text), first_only.expand_as(mask))


class JointAttention(nn.Module):
    """Attention among the tokens of both streams."""

    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        inner, text_width = widths
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * inner) for width in widths)
        self.out = nn.ModuleList(nn.Linear(inner, width) for width in widths)
        self.shift = nn.Linear(inner, text_width)

    def forward(self, states: Streams, condition: Streams) -> Streams:
        time_BD, mask_BL = condition
        image, text = states
        inputs = (image + time_BD[:, None], text + self.shift(time_BD)[:, None])
        normed = [F.layer_norm(x, x.shape[-1:]) for x in inputs]
        joint = torch.cat([qkv(x) for qkv, x in zip(self.qkv, normed, strict=True)], 1)
        q, k, v = joint.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        keys = F.pad(mask_BL, (image.shape[1], 0), value=True)[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, keys).transpose(1, 2).flatten(2)
        parts = mixed.split([image.shape[1], text.shape[1]], 1)
        image, text = (x + out(y) for x, out, y in zip(states, self.out, parts, strict=True))
        return image, text


class TwoMLPs(nn.Module):
    """An MLP for each stream."""

    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(width, width) for width in widths)

    def forward(self, states: Streams, condition: Streams) -> Streams:
        image, text = (x + f(F.gelu(x)) for f, x in zip(self.linear, states, strict=True))
        return image, text


class JointBlock(BranchedBlock):
    """Joint attention, then the MLPs; the condition is the time (B, D) and the mask (B, L)."""

    branch_names = ("attn", "mlp")

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = width, TEXT_WIDTH
        self.attn, self.mlp = JointAttention(widths), TwoMLPs(widths)
        self.left = list(self.branch_names)

    def branches(self) -> dict[str, Branch]:
        return {name: getattr(self, name) for name in self.left}

    def remove_branch(self, name: str) -> None:
        delattr(self, name)
        self.left.remove(name)


class TwoStreams(Backbone):
    """Predicts the noise in images from patches of 2x2 pixels and a text."""

    in_channels, input_size, num_classes = 1, 4, 0

    def __init__(
        self, depth: int = 4, width: int = 8, removed_branches: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(torch.randn(4, width))
        self.time = nn.Linear(1, width)
        self.blocks = nn.ModuleList(JointBlock(width) for _ in range(depth))
        self.pooled = nn.Linear(TEXT_WIDTH, width)
        self.head = nn.ConvTranspose2d(width, 1, 2, 2)
        self.register_buffer("null_text", torch.linspace(-1, 1, TEXT_WIDTH))
        self.remove_branches(removed_branches)

    def config(self) -> dict[str, Any]:
        removed = list(self.removed_branches)
        return {"depth": self.depth, "width": self.width, "removed_branches": removed}

    def example_conditioning(
        self, count: int = 1, device: torch.device | str | None = None
    ) -> Caption:
        return captions(torch.arange(count, device=device))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        mask: Tensor,
        run_block: BlockRunner = run_plain,
    ) -> Tensor:
        time_BD = torch.sin(self.time(t[:, None].to(x.dtype) / 100))
        grid = self.embed(x)
        states = grid.flatten(2).mT + self.positions, text.to(x.dtype)
        for index, block in enumerate(self.blocks):
            states = run_block(index, block, states, (time_BD, mask))
        image, text = states
        words = (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        image = image + self.pooled(words)[:, None]
        return self.head(image.mT.reshape(grid.shape))


def captions(numbers: Tensor) -> Caption:
    """Another text of 1 to 3 tokens for every number of shape (B,)."""
    places = torch.arange(TEXT_TOKENS * TEXT_WIDTH, device=numbers.device)
    text = torch.sin(numbers[:, None] * 0.7 + places * 1.3).unflatten(1, (TEXT_TOKENS, TEXT_WIDTH))
    lengths = 1 + numbers % TEXT_TOKENS
    return Caption(text, torch.arange(TEXT_TOKENS, device=numbers.device) < lengths[:, None])


class Captioned(ImageSource):
    """32 random images with a text each; the last four are held out."""

    num_classes, channels, size = 0, 1, 4

    def __len__(self) -> int:
        return 28

    def fetch(self, indices: Tensor, augment: object, rows: object) -> tuple[Tensor, Caption]:
        images = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
        return images[indices], captions(indices)

    def held_out(self) -> tuple[Tensor, Caption]:
        return self.fetch(torch.arange(28, 32), None, None)

    def reference(self) -> Tensor:
        return torch.zeros(32, 1, 4, 4, dtype=torch.uint8)


def make_net(depth: int = 4, seed: int = 1) -> TwoStreams:
    """The same weights every time, large enough that every input and block matters."""
    torch.manual_seed(seed)
    net = TwoStreams(depth)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net
