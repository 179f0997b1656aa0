"""How much of a network may stay: a number of units, or a share of what users pay for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.scheme import Scheme, evenly_spaced
from tinyfusion.text import readable_amount
from tinyfusion.units import BLOCKS, Unit

KEEP = "keep"
"""Measure of a budget that counts units."""


@dataclass(frozen=True)
class Minimum:
    """At least ``count`` of some units stay, such as those of one stack."""

    units: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Budget:
    """Which sets of units may stay.

    Units are numbered in the order in which they run, 0..n-1.

    Attributes:
        units: what there is to choose among.
        costs: cost of each unit; not negative.
        limit: what the units that stay may cost together, at most.
        measure: what is counted: `KEEP`, for which every cost is 1, or a quantity such as
            ``"parameters"``.
        protected: units that must stay.
        minimums: how many of some units must stay.
        scheme: groups to decide within, for a selector that needs them.
        rest: what the network costs besides its units; messages and records count it in.
        said: the budget as it was asked for, such as ``"0.5"``, for messages.

    Raises:
        InputError: no set of units meets the budget, or all units together do.
    """

    units: tuple[Unit, ...]
    costs: tuple[float, ...]
    limit: float
    measure: str = KEEP
    protected: frozenset[int] = frozenset()
    minimums: tuple[Minimum, ...] = ()
    scheme: Scheme | None = None
    rest: float = 0.0
    said: str = ""

    @classmethod
    def of(
        cls,
        units: Sequence[Unit],
        keep: int,
        protected: Iterable[int] = (),
        minimums: Iterable[Minimum] = (),
        scheme: Scheme | None = None,
    ) -> Budget:
        """The budget of exactly ``keep`` units."""
        costs = (1.0,) * len(units)
        return cls(tuple(units), costs, keep, KEEP, frozenset(protected), tuple(minimums), scheme)

    def __post_init__(self) -> None:
        assert len(self.costs) == len(self.units) and min(self.costs, default=0) >= 0
        if self.counts and not 0 < self.limit < self.count:
            raise InputError(f"keep={self.limit:g} must be between 1 and {self.count - 1}")
        if sum(self.costs) <= self.limit:
            raise InputError(f"{self} would remove nothing; give less than the whole network has")
        if min(self.costs) > self.limit:
            least, whole = min(self.costs) + self.rest, sum(self.costs) + self.rest
            raise InputError(
                f"{self} can't be met: with one unit alone, the cheapest, the network has "
                f"{readable_amount(least)} (a share of {least / whole:.4f}), the nearest"
            )
        self._check_held()

    def _check_held(self) -> None:
        """Refuse constraints that the limit does not allow.

        The minimum of some units has to fit whichever of them it is made of.
        """
        held = sum(self.costs[unit] for unit in self.protected)
        words = [f"{len(self.protected)} protected"] if self.protected else []
        for minimum in self.minimums:
            free = [self.costs[unit] for unit in minimum.units if unit not in self.protected]
            count = minimum.count - (len(minimum.units) - len(free))
            if count > len(free):
                raise InputError(
                    f"at least {minimum.count} of {self._named(minimum.units)} are to stay, but "
                    f"there are {len(minimum.units)}"
                )
            held += math.fsum(sorted(free)[len(free) - count :]) if count > 0 else 0.0
            words += [f"{minimum.count} of {self._named(minimum.units)}"]
        if held > self.limit:
            raise InputError(
                f"{self}: with what must stay ({', '.join(words)}) it is {self._with(held)}, the "
                "nearest; raise the budget, or protect less"
            )

    def _named(self, units: Sequence[int]) -> str:
        return f"{self.units[units[0]].name}..{self.units[units[-1]].name}"

    def _with(self, cost: float) -> str:
        """The whole network's cost with units that cost so much."""
        return readable_amount(cost + self.rest)

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def counts(self) -> bool:
        """Whether units are counted, so that exactly ``limit`` of them stay."""
        return self.measure == KEEP

    @property
    def keep(self) -> int:
        """Number of units that stay, where they are counted."""
        assert self.counts
        return int(self.limit)

    @property
    def drop(self) -> int:
        """Number of units that go, where they are counted."""
        return self.count - self.keep

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Units that are not protected."""
        return tuple(unit for unit in range(self.count) if unit not in self.protected)

    @cached_property
    def keep_free(self) -> int | None:
        """How many units stay of those that are not protected, if these all cost the same."""
        if len({self.costs[unit] for unit in self.free}) != 1:
            return None
        if self.counts:
            return self.keep - len(self.protected)
        each = self.costs[self.free[0]]
        return math.floor((self.limit - self.cost(self.protected)) / each) if each else None

    @property
    def constraints(self) -> list[str]:
        """What else is asked for, as configurations call it."""
        asked = {"protected": self.protected, "minimum": self.minimums}
        return [key for key, value in asked.items() if value]

    def cost(self, units: Iterable[int]) -> float:
        """What some units cost together."""
        return math.fsum(self.costs[unit] for unit in units)

    def allows(self, kept: Iterable[int]) -> bool:
        """Whether these units may stay and no other."""
        kept = set(kept)
        return (
            self.cost(kept) <= self.limit
            and self.protected <= kept
            and all(len(kept & set(m.units)) >= m.count for m in self.minimums)
        )

    def can_go(self, unit: int, kept: Iterable[int]) -> bool:
        """Whether a unit may go from those that are still kept, as far as constraints say."""
        left = set(kept) - {unit}
        return unit not in self.protected and all(
            unit not in m.units or len(left & set(m.units)) >= m.count for m in self.minimums
        )

    def fill(self, order: Sequence[int]) -> tuple[int, ...]:
        """Take units in an order as long as they fit, what must stay first.

        A unit that does not fit is passed over, so that what is left of the budget is used by the
        next one that does.

        Args:
            order: all units, the most important first.

        Returns:
            The units that stay, ascending.
        """
        taken: list[int] = [*self.protected]
        for minimum in self.minimums:
            there = len(set(taken) & set(minimum.units))
            own = [unit for unit in order if unit in minimum.units and unit not in taken]
            taken += own[: max(0, minimum.count - there)]
        for unit in order:
            if unit not in taken and self.cost([*taken, unit]) <= self.limit:
                taken.append(unit)
        return tuple(sorted(taken))

    def record(self) -> dict[str, Any]:
        """What a decision records, as plain data."""
        found: dict[str, Any] = {self.measure: self.keep if self.counts else self.limit + self.rest}
        if not self.counts:
            found["rest"] = self.rest
            found["costs"] = {
                unit.name: cost for unit, cost in zip(self.units, self.costs, strict=True)
            }
        if self.units[0].kind != BLOCKS:
            found["units"] = self.units[0].kind
        if self.protected:
            found["protected"] = [self.units[unit].name for unit in sorted(self.protected)]
        if self.minimums:
            found["minimums"] = [
                {"units": self._named(m.units), "at_least": m.count} for m in self.minimums
            ]
        return found

    def __str__(self) -> str:
        if self.counts:
            return f"keep={self.keep}"
        amount = self._with(self.limit)
        return f"budget.{self.measure}={f'{self.said} ({amount})' if self.said else amount}"


def placeholders(budget: Budget) -> tuple[int, ...]:
    """Units that meet a budget, for what only counts: the first of each group, or evenly spaced."""
    if budget.scheme is not None:
        return budget.scheme.first_of_each
    for size in range(budget.keep if budget.counts else budget.count - 1, 0, -1):
        units = evenly_spaced(budget.count, size)
        if budget.allows(units):
            return budget.fill([*units, *range(budget.count)])
    return budget.fill(sorted(range(budget.count), key=budget.costs.__getitem__))
