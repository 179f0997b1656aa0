"""A tiny DiT with weights that no block ignores."""

import pytest
import torch

from tinyfusion.backbones.dit import DiT


@pytest.fixture
def net() -> DiT:
    generator = torch.Generator().manual_seed(1)
    net = DiT(
        input_size=8, in_channels=2, hidden_size=48, depth=4, num_heads=4, num_classes=5
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(3, 2, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([0, 3, 5])
