from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.dit import DiT
from tinyfusion.data.source import ImageSource
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.scheme import Scheme


class Gaussians(ImageSource):
    """Twelve random images."""

    num_classes, channels, size = 3, 1, 4

    def __len__(self) -> int:
        return 12

    def fetch(self, indices: Tensor, augment: object, rows: object) -> tuple[Tensor, Tensor]:
        images = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(5))
        return images[indices], indices % 3

    def held_out(self) -> tuple[Tensor, Tensor]:
        return self.fetch(torch.arange(2), None, None)

    def reference(self) -> Tensor:
        return torch.zeros(12, 1, 4, 4, dtype=torch.uint8)


@pytest.fixture
def net() -> DiT:
    torch.manual_seed(6)
    net = DiT(input_size=4, in_channels=1, hidden_size=16, depth=4, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.fixture
def context(net: DiT, tmp_path: Path) -> Callable[..., PruningContext]:
    """``context(keep=2, seed=0, net=..., scheme=...)``; nothing in it can train."""

    def build(keep: int, seed: int = 0, net: DiT = net, scheme: Scheme | None = None):
        return PruningContext(
            net, GaussianDiffusion(), Gaussians(), scheme, keep, seed, tmp_path, None, None
        )

    return build
