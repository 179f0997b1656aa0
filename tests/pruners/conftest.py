from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, BlockRunner, run_plain
from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.source import ImageSource
from tinyfusion.processes.contract import Process
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.units import BLOCKS


class Gaussians(ImageSource):
    """Twelve random images."""

    num_classes, channels, size = 3, 1, 4

    def __len__(self) -> int:
        return 12

    def fetch(self, indices: Tensor, augment: object, rows: object) -> tuple[Tensor, ClassLabels]:
        images = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(5))
        return images[indices], ClassLabels(indices % 3)

    def held_out(self) -> tuple[Tensor, ClassLabels]:
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
    """``context(keep=2, seed=0, net=..., process=..., scheme=...)``; nothing in it can train."""

    def build(
        keep: int | None,
        seed: int = 0,
        net: Backbone = net,
        process: Process | None = None,
        kind: str = BLOCKS,
        **further: Any,
    ) -> PruningContext:
        return PruningContext(
            net,
            process or GaussianDiffusion(),
            Gaussians(),
            None if keep is None else Budget.of(net.units(kind), keep, **further),
            seed,
            tmp_path,
            None,
        )

    return build


class Block(nn.Module):
    """Applies a function to the states; has parameters, but no use for them."""

    def __init__(self, function: Callable[[Tensor], Tensor], parameters: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(parameters))

    def forward(self, states: Tensor, condition: Any) -> Tensor:
        return self.function(states)


class Stack(Backbone):
    """Blocks by their functions; hidden states are images as single tokens, or tokens as such."""

    in_channels, input_size, num_classes = 1, 4, 3

    def __init__(
        self, *functions: Callable[[Tensor], Tensor], parameters: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        sizes = parameters or (1,) * len(functions)
        self.blocks = nn.ModuleList(map(Block, functions, sizes))

    def config(self) -> dict[str, Any]:
        return {}

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, run_block: BlockRunner = run_plain
    ) -> Tensor:
        states = x.flatten(1)[:, None] if x.ndim == 4 else x
        for index, block in enumerate(self.blocks):
            states = run_block(index, block, states, None)
        return states.view_as(x)


@pytest.fixture
def stack() -> type[Stack]:
    """``stack(function, function, ...)``: a backbone of these blocks."""
    return Stack


class Batches:
    """Calibration inputs (x, t, y) that are noised already."""

    def __init__(self, *batches: tuple[Tensor, Tensor, Tensor]) -> None:
        self.batches = batches

    def predict(self, net: Backbone, run_block: BlockRunner) -> None:
        for batch in self.batches:
            net(*batch, run_block=run_block)


@pytest.fixture
def batches() -> type[Batches]:
    """``batches((x, t, y), ...)``: calibration inputs as they are."""
    return Batches


@pytest.fixture
def golden_scores(golden) -> tuple[DiT, list[tuple[Tensor, ...]], dict[str, Tensor]]:
    """Model, calibration batches and numbers of ``golden("bi_score")``."""
    data = golden("bi_score")
    net = DiT(8, hidden_size=32, depth=8, num_heads=4, num_classes=10)
    net.load_state_dict({k[3:]: v for k, v in data.items() if k.startswith("sd.")})
    return net, [tuple(data[f"b{b}.{name}"] for name in "xty") for b in range(3)], data
