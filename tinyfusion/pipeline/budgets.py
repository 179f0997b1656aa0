"""From what a user asks for to the budget that a pruner meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.budget import Budget, Minimum
from tinyfusion.errors import InputError
from tinyfusion.metrics.latency import LatencyTable
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.pipeline.amounts import MACS, MEASURES, PARAMETERS, amount_of, share_of
from tinyfusion.pruners.contract import Pruner, method_of
from tinyfusion.scheme import EVEN, Scheme, check_keep, even_scheme, group_sizes, parse_scheme
from tinyfusion.units import BLOCKS, BRANCHES, Unit

DEFAULT_BATCH_SIZE = 64
"""Samples per forward whose latency is measured."""


@dataclass(frozen=True)
class Wanted:
    """How much is to stay, as a user says it; with nothing said, half of the units.

    Attributes:
        scheme: groups to decide within (`parse_scheme`), or ``"even"`` for the smallest equal
            groups that keep ``keep`` blocks.
        keep: number of units that stay.
        units: kind of the units to choose among.
        parameters: parameters of the pruned network, embedding and head included: a share of those
            of the whole one below 1, or a number, also as text such as ``"340M"``.
        macs: multiply-accumulates of one forward of one sample, likewise.
        latency: seconds of one forward of a batch, likewise; absolute as text such as ``"20ms"``.
        batch_size: samples per forward whose latency is measured; ``None`` for
            `DEFAULT_BATCH_SIZE`.
        table: file of latencies that were measured before; ``None`` measures them.
        protected: units that must stay, by name, or blocks by number; the name of a block means
            all its branches where these are the units.
        minimum: how many units of each stack must stay at least, or a list of ``[at least, size]``
            of consecutive groups of units.

    Raises:
        InputError: a value of the wrong kind, or a table or batch size without a budget of latency.
    """

    scheme: Any = None
    keep: int | None = None
    units: str = BLOCKS
    parameters: Any = None
    macs: Any = None
    latency: Any = None
    batch_size: int | None = None
    table: str | None = None
    protected: Sequence[int | str] = ()
    minimum: Any = 0

    @classmethod
    def of(
        cls, scheme: Any, keep: int | None, units: str, budget: Mapping[str, Any] | None
    ) -> Wanted:
        """From the keys of a configuration.

        Args:
            scheme: see above.
            keep: see above.
            units: see above.
            budget: everything else, by name.

        Raises:
            InputError: see above, or a name that there is none of.
        """
        if not isinstance(budget, Mapping | None):
            raise InputError(f'budget={budget!r} must be a mapping, such as {{"macs": 0.5}}')
        others = [f.name for f in fields(cls) if f.name not in ("scheme", "keep", "units")]
        for key in budget or {}:
            if key not in others:
                raise InputError(f"budget.{key} is not known; valid: {', '.join(others)}")
        return cls(scheme, keep, units, **(budget or {}))

    def __post_init__(self) -> None:
        for key in ("keep", "batch_size"):
            value = getattr(self, key)
            if type(value) is not int and value is not None:
                name = key if key == "keep" else f"budget.{key}"
                raise InputError(f"{name}={value!r} must be a whole number")
        for measure, value in self.amounts.items():
            amount_of(measure, value, 1.0)
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"budget.batch_size={self.batch_size} must be at least 1")
        for key in ("table", "batch_size"):
            if getattr(self, key) is not None and self.latency is None:
                raise InputError(
                    f"budget.{key}={getattr(self, key)} is of latencies, but the budget is not; "
                    "give budget.latency=, or leave it out"
                )
        if isinstance(self.protected, str) or not isinstance(self.protected, Sequence):
            raise InputError(
                f"budget.protected={self.protected} must be a list of units, such as [0,blocks.5]"
            )
        if not isinstance(self.minimum, int | Sequence) or isinstance(self.minimum, bool | str):
            raise InputError(
                f"budget.minimum={self.minimum} must be a number of units, or a list of [at least, "
                "size], such as [[2,14],[4,14]]"
            )

    @property
    def amounts(self) -> dict[str, Any]:
        """What is given by cost, by measure."""
        return {name: value for name in MEASURES if (value := getattr(self, name)) is not None}

    @property
    def said(self) -> list[str]:
        """Budgets that are given, as the user typed them; more than one contradict each other."""
        given = [f"budget.{name}={value}" for name, value in self.amounts.items()]
        return given + ([] if self.keep is None else [f"keep={self.keep}"])

    def ignored(self, pruner: Pruner) -> list[str]:
        """What is given and changes nothing with a pruner, or less than it says; a line each."""
        method = method_of(pruner)
        if not getattr(pruner, "uses_keep", True):
            other = {"scheme": self.scheme, "units": self.units if self.units != BLOCKS else None}
            other |= {"budget.protected": self.protected, "budget.minimum": self.minimum}
            given = self.said + [f"{key}={value}" for key, value in other.items() if value]
            why = f"not used, as pruner={method} says itself what stays"
            return [f"{', '.join(given)}: {why}"] if given else []
        if self.scheme is None or getattr(pruner, "uses_scheme", False):
            return []
        instead = "selector=grouped does" if hasattr(pruner, "selector") else "pruner=learned does"
        means = "is not used" if self.scheme == EVEN else "says no more than how many blocks stay"
        return [
            f"scheme={self.scheme} {means}: pruner={method} does not choose within groups "
            f"({instead})"
        ]

    def unmeasured(self) -> Wanted:
        """The same with MACs in the place of a latency, for what can't measure, such as a dry run.

        A share of the latency is taken for that share of the MACs, a time for half of them.
        """
        if self.latency is None:
            return self
        share = share_of(self.latency)
        return replace(
            self, latency=None, batch_size=None, table=None, macs=0.5 if share is None else share
        )

    def check(self, pruner: Pruner) -> None:
        """Refuse what contradicts itself, or what the pruner can't do; needs no network.

        Raises:
            InputError: two budgets, a scheme beside a budget by cost or for branches, or a kind of
                units that the pruner does not choose among.
        """
        given = self.said
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} are two budgets; give one of them")
        if self.scheme == EVEN and self.amounts:
            raise InputError(
                f"scheme={EVEN} makes equal groups that keep keep= blocks, which {given[0]} does "
                "not say; give keep= instead, or scheme=null"
            )
        if self.scheme is not None and self.amounts:
            raise InputError(
                f"scheme={self.scheme} says how many blocks stay, and so does {given[0]}; give one "
                "of them (scheme=null takes back what an experiment= sets)"
            )
        if self.scheme is not None and self.units != BLOCKS:
            raise InputError(
                f"scheme={self.scheme} groups blocks, but units={self.units}; give keep= or a "
                "budget instead"
            )
        kinds = getattr(pruner, "kinds", (BLOCKS,))
        if self.units not in (BLOCKS, BRANCHES) or self.units not in kinds:
            raise InputError(
                f"units={self.units}: {type(pruner).__name__} chooses among {' or '.join(kinds)}"
            )

    def budget(
        self, net: Backbone, pruner: Pruner, latency: LatencyTable | None = None
    ) -> Budget | None:
        """The budget, of the units of a network.

        A scheme that the pruner does not use says only how many blocks stay. One that it needs and
        that is not given follows from ``keep`` (see `even_scheme`).

        Args:
            net: the network.
            pruner: the pruner.
            latency: seconds of each unit, for a budget of latency.

        Returns:
            ``None`` for a pruner whose numbers are its own.

        Raises:
            InputError: see `check`; or a budget that does not fit the network.
        """
        if not getattr(pruner, "uses_keep", True):
            return None
        self.check(pruner)
        units = net.units(self.units, macs=self.macs is not None)
        protected = frozenset(self._protected(units))
        minimums = tuple(self._minimums(net, units))
        if not self.amounts:
            scheme, keep = self._groups(net, pruner, len(units))
            return Budget.of(units, keep, protected, minimums, scheme)
        ((measure, value),) = self.amounts.items()
        costs, whole = _costs(measure, net, units, latency)
        limit = amount_of(measure, value, whole)
        fixed = max(0.0, whole - sum(costs))
        return Budget(
            *(tuple(units), costs, limit - fixed, measure, protected, minimums),
            rest=fixed,
            said=str(value),
        )

    def _groups(self, net: Backbone, pruner: Pruner, count: int) -> tuple[Scheme | None, int]:
        keep, laid = self.keep, None
        uses = getattr(pruner, "uses_scheme", False)
        even = self.scheme == EVEN or (getattr(pruner, "needs_scheme", False) and not self.scheme)
        if self.scheme is not None and self.scheme != EVEN:
            laid = parse_scheme(self.scheme, net.depth, net.borders)
            keep = check_keep(laid, laid.keep if keep is None else keep).keep
        keep = max(1, count // 2) if keep is None else keep
        if not 0 < keep < count:
            raise InputError(f"keep={keep} must be between 1 and {count - 1}")
        if not uses:
            return None, keep
        if laid is None and even:
            laid = even_scheme(keep, net.depth, net.borders)
        return laid, keep

    def _protected(self, units: Sequence[Unit]) -> Iterator[int]:
        named: dict[str | int, list[int]] = {}
        for number, unit in enumerate(units):
            named.setdefault(unit.name, []).append(number)
            if self.units == BLOCKS:
                named[number] = [number]
            else:
                named.setdefault(unit.block_name, []).append(number)
        for entry in self.protected:
            if isinstance(entry, bool) or entry not in named:
                valid = f"names such as {units[0].name}"
                if self.units == BLOCKS:
                    valid = f"0..{len(units) - 1}, or {valid}"
                else:
                    valid += f", or {units[0].block_name} for all of a block"
                raise InputError(f"budget.protected: there is no unit {entry!r}; valid: {valid}")
            yield from named[entry]

    def _minimums(self, net: Backbone, units: Sequence[Unit]) -> Iterator[Minimum]:
        if isinstance(self.minimum, int) and not isinstance(self.minimum, bool):
            if self.minimum < 0:
                raise InputError(f"budget.minimum={self.minimum} must not be negative")
            for start, end in pairwise(sorted({0, *net.borders, net.depth})):
                inside = [n for n, unit in enumerate(units) if unit.index in range(start, end)]
                if inside and self.minimum:
                    yield Minimum(tuple(inside), self.minimum)
            return
        start = 0
        for least, size in group_sizes(self.minimum, "budget.minimum", "at least"):
            inside = list(range(start, start + size))
            start += size
            if not 0 <= least <= size:
                raise InputError(
                    f"budget.minimum: [{least},{size}] asks for {least} of {size} {self.units}; "
                    f"valid: 0..{size}"
                )
            if start > len(units):
                raise InputError(
                    f"budget.minimum: [{least},{size}] ends with number {start - 1}, but the last "
                    f"of the {self.units} is number {len(units) - 1}"
                )
            if least:
                yield Minimum(tuple(inside), least)


def _costs(
    measure: str, net: Backbone, units: Sequence[Unit], latency: LatencyTable | None
) -> tuple[tuple[float, ...], float]:
    """Cost of each unit and of the whole network."""
    if measure == PARAMETERS:
        return tuple(float(unit.parameters or 0) for unit in units), float(parameters(net))
    if measure == MACS:
        return tuple(float(unit.macs or 0) for unit in units), float(macs(net))
    assert latency is not None, "measured before"
    return latency.of(units), latency.whole
