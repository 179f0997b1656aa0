"""From what a user asks for to the budget that a pruner meets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.budget import Budget, Minimum
from tinyfusion.errors import InputError
from tinyfusion.metrics.latency import LatencyTable
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.pruners.contract import Pruner
from tinyfusion.scheme import EVEN, Scheme, check_keep, even_scheme, group_sizes, parse_scheme
from tinyfusion.units import BLOCKS, BRANCHES, Unit

PARAMETERS, MACS, LATENCY = "parameters", "macs", "latency"
MEASURES = (PARAMETERS, MACS, LATENCY)
"""What a budget can be given in, besides a number of units."""

_FACTORS = {
    PARAMETERS: {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9},
    MACS: {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    LATENCY: {"s": 1.0, "ms": 1e-3, "us": 1e-6},
}
"""Units of absolute amounts, in small letters."""

_EXAMPLES = {
    PARAMETERS: "a share such as 0.5, or a number such as 340M",
    MACS: "a share such as 0.5, or a number such as 60G",
    LATENCY: "a share such as 0.5, or a time such as 20ms",
}


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
        batch_size: samples per forward whose latency is measured.
        table: file of latencies that were measured before; ``None`` measures them.
        protected: units that must stay, by number or name.
        minimum: how many units of each stack must stay at least, or a list of ``[at least, size]``
            of consecutive groups of units.

    Raises:
        InputError: a value of the wrong kind, or a table without a budget of latency.
    """

    scheme: Any = None
    keep: int | None = None
    units: str = BLOCKS
    parameters: Any = None
    macs: Any = None
    latency: Any = None
    batch_size: int = 64
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
            if type(value) is not int and (key, value) != ("keep", None):
                name = key if key == "keep" else f"budget.{key}"
                raise InputError(f"{name}={value!r} must be a whole number")
        for measure, value in self.amounts.items():
            _amount(measure, value, 1.0)
        if self.batch_size < 1:
            raise InputError(f"budget.batch_size={self.batch_size} must be at least 1")
        if self.table is not None and self.latency is None:
            raise InputError(
                f"budget.table={self.table} is of latencies, but the budget is not; give "
                "budget.latency=, or leave it out"
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

    @property
    def unused(self) -> list[str]:
        """All that is given, as the user typed it: what a pruner ignores that says it itself."""
        other = {"scheme": self.scheme, "units": self.units if self.units != BLOCKS else None}
        other |= {"budget.protected": self.protected, "budget.minimum": self.minimum}
        return self.said + [f"{key}={value}" for key, value in other.items() if value]

    def unmeasured(self) -> Wanted:
        """The same with MACs in the place of a latency, for what can't measure, such as a dry run.

        A share of the latency is taken for that share of the MACs, a time for half of them.
        """
        if self.latency is None:
            return self
        share = self.latency if isinstance(self.latency, float) else 0.5
        return replace(self, latency=None, macs=share)

    def check(self, pruner: Pruner) -> None:
        """Refuse what contradicts itself, or what the pruner can't do; needs no network.

        Raises:
            InputError: two budgets, a scheme beside a budget by cost or for branches, or a kind of
                units that the pruner does not choose among.
        """
        given = self.said
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} are two budgets; give one of them")
        if self.scheme is not None and self.amounts:
            raise InputError(
                f"scheme={self.scheme} says how many blocks stay, and so does {given[0]}; give one "
                "of them"
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
        limit = _amount(measure, value, whole)
        return _within(measure, units, costs, limit, whole, protected, minimums)

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
        names = {unit.name: number for number, unit in enumerate(units)}
        for entry in self.protected:
            number = names.get(entry) if isinstance(entry, str) else entry
            if type(number) is not int or not 0 <= number < len(units):
                raise InputError(
                    f"budget.protected: there is no unit {entry!r}; valid: 0..{len(units) - 1}, or "
                    f"names such as {units[0].name}"
                )
            yield number

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
        for least, size in group_sizes(self.minimum, "budget.minimum"):
            inside = list(range(start, start + size))
            start += size
            if start > len(units) or not 0 <= least <= size:
                raise InputError(
                    f"budget.minimum: [{least},{size}] ends behind the last of {len(units)} "
                    f"{self.units}, or asks for more than there are in it"
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


def _amount(measure: str, value: Any, whole: float) -> float:
    """What a network may cost, from a share of the whole or an absolute amount.

    Raises:
        InputError: neither.
    """
    given = f"budget.{measure}={value}"
    refused = InputError(f"{given} is neither: valid is {_EXAMPLES[measure]}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise refused
    if not isinstance(value, str):
        if 0 < value < 1:
            return value * whole
        if measure == LATENCY or value <= 0:
            raise refused
        return float(value)
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", value.lower())
    factor = None if found is None else _FACTORS[measure].get(found[2])
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        raise refused from None
    if factor is None or number <= 0:
        raise refused
    return number * factor


def _within(
    measure: str,
    units: Sequence[Unit],
    costs: tuple[float, ...],
    limit: float,
    whole: float,
    protected: frozenset[int],
    minimums: tuple[Minimum, ...],
) -> Budget:
    """The budget of what is left for units when the rest of the network is paid for.

    Raises:
        InputError: less than the rest and one unit cost, or at least as much as everything.
    """
    fixed = max(0.0, whole - sum(costs))
    least = fixed + min(costs)
    said = f"budget.{measure}: {limit:,.6g} ({limit / whole:.1%} of {whole:,.6g})"
    if limit < least:
        raise InputError(
            f"{said} can't be met: what is not among the units costs {fixed:,.6g}, and with the "
            f"cheapest unit it is {least:,.6g}, a share of {least / whole:.4f}, the nearest"
        )
    if limit >= whole:
        raise InputError(f"{said} would remove nothing; give less than the whole network costs")
    return Budget(tuple(units), costs, limit - fixed, measure, protected, minimums, rest=fixed)
