from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.dit import DiT


@pytest.fixture(scope="session")
def golden_dit(golden) -> DiT:
    tensors = golden("dit")
    net = DiT(input_size=8, hidden_size=48, depth=4, num_heads=4, num_classes=10)
    net.load_state_dict({k[3:]: v for k, v in tensors.items() if k.startswith("sd.")})
    return net.eval()


@pytest.fixture
def tiny() -> DiT:
    """A one-channel model with weights large enough that every input matters."""
    torch.manual_seed(1)
    net = DiT(input_size=4, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.fixture
def replay() -> Callable[[Iterable[Tensor]], Callable[[], Tensor]]:
    """``replay(tensors)`` is a noise source that gives them one by one."""

    def build(tensors: Iterable[Tensor]) -> Callable[[], Tensor]:
        iterator = iter(tensors)
        return lambda: next(iterator)

    return build
