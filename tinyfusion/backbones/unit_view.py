"""A network seen as a chain of units of another kind, so that what knows blocks works on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tinyfusion.backbones.contract import Backbone, run_plain
from tinyfusion.backbones.unit_weights import OwnParameter
from tinyfusion.units import BLOCKS, Unit


class UnitView(Backbone):
    """A network whose units take the place of its blocks.

    Block runners are called with the number of a unit. The network is shared, not copied; it can't
    be rebuilt or cut through the view.

    Args:
        net: the network.
        units: all its units of one kind that run one after the other, such as branches.
    """

    def __init__(self, net: Backbone, units: Sequence[Unit]) -> None:
        super().__init__()
        self.net, self.seen = net, tuple(units)
        self.in_channels, self.input_size = net.in_channels, net.input_size
        self.num_classes, self.process_kind = net.num_classes, net.process_kind

    @property
    def depth(self) -> int:
        """Number of units."""
        return len(self.seen)

    @property
    def borders(self) -> tuple[int, ...]:
        """Numbers of the first units of stacks."""
        first = [unit.index or 0 for unit in self.seen]
        return tuple(
            next(number for number, index in enumerate(first) if index >= border)
            for border in self.net.borders
            if first[-1] >= border
        )

    def config(self) -> dict[str, Any]:
        """That of the network."""
        return self.net.config()

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """That of the network, every unit through ``run_block``."""
        run_block = options.pop("run_block", run_plain)
        return self.net(*inputs, run_block=self.net.run_units(self.seen, run_block), **options)

    def example_inputs(self, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        """Those of the network."""
        return self.net.example_inputs(*args, **options)

    def example_conditioning(self, *args: Any, **options: Any) -> Any:
        """That of the network."""
        return self.net.example_conditioning(*args, **options)

    def condition_rows(self, condition: Any, rows: slice | Tensor) -> Any:
        """Those of the network."""
        return self.net.condition_rows(condition, rows)

    @property
    def null_label(self) -> int:
        """That of the network."""
        return self.net.null_label

    def units(self, kind: str = BLOCKS, macs: bool = False) -> tuple[Unit, ...]:
        """The units that stand for blocks; of other kinds those of the network."""
        return self.seen if kind == BLOCKS and not macs else self.net.units(kind, macs)

    def own_parameters(self, unit: Unit) -> dict[str, OwnParameter]:
        """Those of the unit in the network."""
        return self.net.own_parameters(unit)


def seen_as_blocks(net: Backbone, units: Sequence[Unit]) -> Backbone:
    """The network with these units in place of its blocks; itself if they are its blocks."""
    return net if units[0].kind == BLOCKS else UnitView(net, units)
