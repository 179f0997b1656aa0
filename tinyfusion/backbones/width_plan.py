"""The widths of a backbone that can be cut: where sets of coupled channels begin.

Which tensors such a set runs through is found by `tinyfusion.backbones.coupling`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WidthGroup:
    """A set of channels of which some may go, in every tensor that they run through.

    Attributes:
        name: of the group, unique in its plan.
        argument: constructor argument that counts the group's units. Groups of one argument keep
            equally many, each its own.
        module: name of a linear layer or convolution at which the channels begin.
        inputs: they are that module's inputs, not its outputs.
        unit: neighbouring channels that stay or go together: those of an attention head.
    """

    name: str
    argument: str
    module: str
    inputs: bool = False
    unit: int = 1


@dataclass(frozen=True)
class WidthPlan:
    """The widths of a network that can be cut.

    Attributes:
        groups: the sets of channels.
        fixed: constructor arguments that keep these values, though they would follow from others
            if they were left out.
        tables: parameters that the forward uses by themselves rather than in a module's forward,
            such as position tables, with the axis that holds their channels.
    """

    groups: tuple[WidthGroup, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)


def block_groups(block: str, head_dim: int, branches: Collection[str]) -> list[WidthGroup]:
    """Heads and MLP neurons of a transformer block with the names of this package's layers.

    Args:
        block: name of the block in its network.
        head_dim: channels of a head.
        branches: those that the block has, of ``attn`` and ``mlp``.
    """
    heads = WidthGroup(f"{block}.heads", "num_heads", f"{block}.attn.proj", True, head_dim)
    neurons = WidthGroup(f"{block}.neurons", "mlp_width", f"{block}.mlp.fc1")
    return [group for name, group in (("attn", heads), ("mlp", neurons)) if name in branches]
