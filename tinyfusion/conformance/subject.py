"""What forwards are checked on: a copy whose weights all affect the output, and a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.processes.contract import Process
from tinyfusion.seeding import FixedDraws, generator

_STRAY = 0.05
"""How far weights are moved, in their own unit: far enough that zeros at the start are none."""


@dataclass(frozen=True)
class Subject:
    """A backbone and inputs for it.

    Attributes:
        net: copy in eval mode, float32, on the CPU.
        data: inputs of one forward that the process makes; samples differ.
        conditioning: of the same samples.
        process: that made the inputs, if one did.
        batch: what it made of random data, if so.
    """

    net: Backbone
    data: tuple[Tensor, ...]
    conditioning: Conditioning
    process: Process | None
    batch: Any

    @classmethod
    def of(cls, net: Backbone, process: Process | None, count: int) -> Subject:
        """A subject of ``count`` samples; ``net`` is left as it is.

        Raises:
            InputError: the process is not for backbones of this kind.
        """
        twin = copy.deepcopy(net).cpu().float().eval()
        draws = generator("conformance", "weights")
        with torch.no_grad():
            for parameter in twin.parameters():
                if parameter.requires_grad:
                    parameter.add_(_STRAY * torch.randn(parameter.shape, generator=draws))
        draws = generator("conformance", "inputs")
        conditioning = twin.example_conditioning(count, "cpu")
        if process is None:
            examples = twin.example_inputs(count, "cpu")[: -len(conditioning.arguments())]
            data = tuple(_varied(x, draws) for x in examples)
            return cls(twin, data, conditioning, None, None)
        process.check(net)
        size = net.input_size
        clean = torch.randn(count, net.in_channels, size, size, generator=draws)
        batch = process.corrupt(clean, FixedDraws(count, 0, "conformance").part(slice(0, count)))
        return cls(twin, batch.inputs, conditioning, process, batch)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.conditioning)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All inputs of one forward."""
        return *self.data, *self.conditioning.arguments()

    def forward(self, **options: Any) -> Tensor:
        """Output for the inputs, without gradients."""
        with torch.no_grad():
            return self.net(*self.inputs, **options)


def written_to(net: Backbone, before: Mapping[str, Tensor]) -> str | None:
    """Name of a tensor of ``net`` that is not what it was; ``None`` if all are.

    Args:
        net: the network.
        before: its tensors by name, copied.
    """
    state = net.state_dict().items()
    return next((name for name, value in state if not torch.equal(value, before[name])), None)


def _varied(example: Tensor, draws: torch.Generator) -> Tensor:
    """Random values in place of real ones, of which times (B,) stay in 0..1; others stay."""
    if not example.is_floating_point():
        return example
    draw = torch.rand if example.ndim == 1 else torch.randn
    return draw(example.shape, generator=draws)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are equal up to the order in which kernels add."""
    if a.shape != b.shape or not torch.isfinite(a).all():
        return False
    scale = float(b.detach().abs().max())
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(scale, 1e-6))
