"""Changes of units that neither stay as they are nor go: blocks replaced, channels resized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.units import Place


@dataclass(frozen=True)
class Replacement:
    """An interval of blocks that one block replaces.

    Attributes:
        start: index of the interval's first block in the source model.
        stop: index of the block behind its last one.
        block: the block of the interval whose weights the new one starts from.

    Raises:
        InputError: fewer than two blocks, or weights of a block outside.
    """

    start: int
    stop: int
    block: int

    def __post_init__(self) -> None:
        numbers = (self.start, self.stop, self.block)
        if any(type(number) is not int for number in numbers) or self.start < 0:
            raise InputError(f"replaced={numbers}: start, stop and block must be block indices")
        if self.stop < self.start + 2:
            raise InputError(
                f"replaced={numbers}: an interval of at least two blocks is replaced; valid: a "
                f"stop of {self.start + 2} or more"
            )
        if self.block not in self.blocks:
            raise InputError(
                f"replaced={numbers}: block {self.block} is not in the interval; valid: "
                f"{self.start}..{self.stop - 1}"
            )

    @property
    def blocks(self) -> range:
        """Indices of the blocks that are replaced."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class Resizing:
    """The channels, heads and neurons that stay, by group of channels.

    Attributes:
        kept: members that stay, ascending, 0-based in the source model, by the name of their group
            (`tinyfusion.backbones.width_plan`): residual stream, condition, heads and neurons of
            every block.
        source_sizes: number of members of each group in the source model.
        widths: units per group that stay, by constructor argument (``hidden_size``).
        source_widths: the same of the source model.
        parameters: of the pruned model.
        source_parameters: of the source model.

    Raises:
        InputError: groups, indices or numbers that contradict each other.
    """

    kept: dict[str, tuple[int, ...]]
    source_sizes: dict[str, int]
    widths: dict[str, int]
    source_widths: dict[str, int]
    parameters: int
    source_parameters: int

    def __post_init__(self) -> None:
        for key in ("source_sizes", "widths", "source_widths"):
            _check_numbers(key, getattr(self, key))
        for key in ("parameters", "source_parameters"):
            _check_number(key, getattr(self, key))
        if not isinstance(self.kept, Mapping) or self.kept.keys() != self.source_sizes.keys():
            raise InputError("kept and source_sizes must name the same groups of channels")
        if self.widths.keys() != self.source_widths.keys():
            raise InputError("widths and source_widths must name the same arguments")
        kept = {
            name: _check_members(name, members, self.source_sizes[name])
            for name, members in self.kept.items()
        }
        object.__setattr__(self, "kept", kept)

    @property
    def reached(self) -> float:
        """Share of the parameters that goes."""
        return 1 - self.parameters / self.source_parameters

    @property
    def description(self) -> str:
        """What stays, in words."""
        pairs = (f"{key} {self.source_widths[key]} -> {n}" for key, n in self.widths.items())
        return (
            f"{', '.join(pairs)}; {self.parameters:,} of {self.source_parameters:,} parameters "
            f"({100 * self.reached:.1f} % removed)"
        )

    def summary(self) -> dict[str, Any]:
        """The part that a model's provenance records, as plain data."""
        return {
            "widths": dict(self.widths),
            "source_widths": dict(self.source_widths),
            "parameters": self.parameters,
            "source_parameters": self.source_parameters,
            "reached": self.reached,
        }


def check_removed(removed: Iterable[Any]) -> tuple[str, ...]:
    """Names of branches, in the order given.

    Raises:
        InputError: no list of names, a name that is no branch's, or one that stands twice.
    """
    if isinstance(removed, str):
        raise InputError(f"removed={removed!r} must be a list of names of branches")
    removed = tuple(removed)
    for name in removed:
        place = Place.parse(name)
        if not place.stack or not place.part or place.stop != place.start + 1:
            raise InputError(
                f"removed: {name!r} is the name of no branch; valid: names such as 'blocks.3.attn'"
            )
    doubled = [name for name in removed if removed.count(name) > 1]
    if doubled:
        raise InputError(f"removed: {doubled[0]!r} is listed more than once")
    return removed


def _check_numbers(key: str, found: Any) -> None:
    """Refuse what is no dictionary of positive integers."""
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{key} must be a dictionary of positive integers")
    for name, value in found.items():
        _check_number(f"{key}[{name}]", value)


def _check_number(key: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"{key}={value!r} must be a positive integer")


def _check_members(name: str, members: Any, count: int) -> tuple[int, ...]:
    """Members of a group that stay, refused unless they ascend within ``count``."""
    wanted = f"ascending integers of 0..{count - 1}, at least one"
    if not isinstance(members, list | tuple) or not members:
        raise InputError(f"kept[{name}] must be a list of {wanted}")
    if any(type(member) is not int or not 0 <= member < count for member in members):
        raise InputError(f"kept[{name}] holds what is not of {wanted}")
    if any(a >= b for a, b in pairwise(members)):
        raise InputError(f"kept[{name}] does not ascend; valid: {wanted}")
    return tuple(members)
