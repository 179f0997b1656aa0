from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.sit import SiT
from tinyfusion.processes.interpolant import Interpolant


@pytest.fixture(scope="session")
def golden_dit(golden) -> DiT:
    tensors = golden("dit")
    net = DiT(input_size=8, hidden_size=48, depth=4, num_heads=4, num_classes=10)
    net.load_state_dict({k[3:]: v for k, v in tensors.items() if k.startswith("sd.")})
    return net.eval()


@pytest.fixture(scope="session")
def golden_sit(golden) -> SiT:
    tensors = golden("sit")
    net = SiT(input_size=8, hidden_size=40, depth=4, num_heads=4, num_classes=10)
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


MEAN, STD = 0.7, 0.4


class GaussianNet(torch.nn.Module):
    """The perfect prediction for data whose entries are normal with MEAN and STD."""

    process_kind = "interpolant"

    def __init__(self, process: Interpolant) -> None:
        super().__init__()
        self.process = process
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.times: list[float] = []

    def marginal(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the states at times ``t``."""
        path = self.process.at(t, x)
        return path.alpha * MEAN, (path.alpha**2 * STD**2 + path.sigma**2).sqrt()

    def forward(self, x: Tensor, t: Tensor, y: Tensor, run_block=None) -> Tensor:
        self.times.append(t[0].item())
        path, (mean, std) = self.process.at(t, x), self.marginal(t, x)
        score = (mean - x) / std**2
        noise = -path.sigma * score
        # Bayes' rule for the data, written without a division by alpha.
        data = MEAN - path.alpha * STD**2 * score
        return {"score": score, "noise": noise, "velocity": path.velocity(data, noise)}[
            self.process.prediction
        ]


@pytest.fixture
def gaussian_net() -> Callable[[Interpolant], GaussianNet]:
    return GaussianNet
