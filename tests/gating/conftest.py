from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.units import BLOCKS, Place, Unit


@pytest.fixture
def net() -> DiT:
    """Six blocks, all of which matter."""
    torch.manual_seed(3)
    net = DiT(input_size=4, in_channels=2, hidden_size=16, depth=6, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.fixture
def inputs() -> tuple[tuple[torch.Tensor, torch.Tensor], ClassLabels]:
    """x and t of eight samples, and their labels."""
    torch.manual_seed(4)
    x, t = torch.randn(8, 2, 4, 4), torch.randint(0, 1000, (8,))
    return (x, t), ClassLabels(torch.randint(0, 4, (8,)))


def units_of(count: int) -> tuple[Unit, ...]:
    """Blocks of ten parameters each."""
    return tuple(Unit(BLOCKS, Place("blocks", i, i + 1), i, 10) for i in range(count))
