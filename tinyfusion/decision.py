"""What of a model stays, by which method and evidence; applies to a fresh checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tinyfusion.changes import Replacement, Resizing, check_removed
from tinyfusion.decision_files import (
    DECISION_FILE,
    FORMAT,
    WIDTHS_FILE,
    decision_values,
    record_of,
)
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.scheme import Scheme, parse_scheme
from tinyfusion.units import Unit
from tinyfusion.version import __version__


def check_kept(kept: Iterable[Any], depth: int, key: str = "kept") -> tuple[int, ...]:
    """Validate block indices and return them in ascending order.

    Args:
        kept: indices of the blocks that stay.
        depth: number of blocks of the model.
        key: name of the list in messages, as the user gave it.

    Raises:
        InputError: an index that is no integer, out of range or doubled, or an empty list.
    """
    kept = list(kept)
    given = f"{key}={str(kept).replace(' ', '')}"
    wrong = [i for i in kept if not isinstance(i, int) or isinstance(i, bool)]
    if wrong:
        raise InputError(f"{given}: {wrong[0]!r} is not a block index")
    if not kept:
        raise InputError(f"{given} keeps no block; give at least one of 0..{depth - 1}")
    outside = [i for i in kept if not 0 <= i < depth]
    if outside:
        raise InputError(
            f"{given}: block {outside[0]} does not exist; the model has blocks 0..{depth - 1}"
        )
    doubled = sorted({i for i in kept if kept.count(i) > 1})
    if doubled:
        raise InputError(f"{given}: block {doubled[0]} is listed more than once")
    return tuple(sorted(kept))


@dataclass(frozen=True)
class Decision:
    """What of a model stays and how it was chosen.

    Attributes:
        kept: indices of the blocks that stay as they are, ascending, 0-based in the source model;
            ``None`` if no block goes.
        source_depth: number of blocks of the source model; ``None`` if it is not known and no
            block goes.
        method: name of the pruner.
        scheme: groups as ``[[keep, size], ...]``, or ``None`` for a choice without groups.
        probabilities: per group the probability of every keep-pattern in lexicographic order;
            ``None`` where nothing was learned.
        scores: further evidence by name (block scores, calibration loss, the live decision).
        seed: seed of the choice.
        source_sha256: hash of the source's weights; ``None`` if they came from no file.
        config: resolved configuration of the run that decided.
        version: version of this package.
        removed: branches that go from blocks that stay, by name in the source model
            (``"blocks.3.attn"``).
        replaced: intervals of blocks for each of which one block stands; disjoint, ascending.
        resized: the channels that stay; ``None`` if all do.
        budget: limits of the choice by name, such as ``{"keep": 14}``.

    Raises:
        InputError: nothing is decided; indices out of range or doubled; a scheme of another depth;
            a group of which another number of blocks stays than its scheme says; probabilities
            that don't belong to the scheme's patterns; names that are no branch's; or blocks that
            are both kept and replaced.
    """

    kept: tuple[int, ...] | None = None
    source_depth: int | None = None
    method: str = "indices"
    scheme: list[list[int]] | None = None
    probabilities: list[list[float]] | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    source_sha256: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    removed: tuple[str, ...] = ()
    replaced: tuple[Replacement, ...] = ()
    resized: Resizing | None = None
    budget: dict[str, Any] = field(default_factory=dict)

    file_name: ClassVar[str] = DECISION_FILE

    def __post_init__(self) -> None:
        changes = (self.removed, self.replaced, self.resized)
        if self.kept is None and not any(changes):
            raise InputError("nothing is decided: give kept, removed, replaced or resized")
        object.__setattr__(self, "removed", check_removed(self.removed))
        replaced = sorted(self.replaced, key=lambda interval: interval.start)
        object.__setattr__(self, "replaced", tuple(replaced))
        depth = self.source_depth
        if depth is None and (self.kept is not None or replaced):
            raise InputError("source_depth is missing: blocks are counted in a model of that depth")
        if depth is not None:
            if type(depth) is not int or depth < 1:
                raise InputError(f"source_depth={depth!r} must be a positive integer")
            object.__setattr__(self, "kept", _check_blocks(self.kept, self.replaced, depth))
        if self.scheme is not None:
            if depth is None:
                raise InputError(f"scheme={self.scheme} lies over blocks, but no block goes")
            self._check_groups(parse_scheme(self.scheme, depth))
        _check_budget(self.budget)

    def _check_groups(self, scheme: Scheme) -> None:
        for group in scheme.groups:
            inside = [i for i in self.origins if i in group.blocks]
            if len(inside) != group.keep:
                raise InputError(
                    f"kept={list(self.origins)}: {len(inside)} blocks of {group.blocks[0]}.."
                    f"{group.blocks[-1]} stay, but scheme={scheme} keeps {group.keep} there"
                )
        if self.probabilities is None:
            return
        found = [len(values) for values in self.probabilities]
        wanted = [group.num_choices for group in scheme.groups]
        if found != wanted:
            raise InputError(
                f"probabilities of {found} patterns don't belong to scheme={scheme}, whose groups "
                f"have {wanted}"
            )

    @property
    def is_about_blocks(self) -> bool:
        """Whether it chooses among blocks; otherwise all of them stay."""
        return self.kept is not None

    @property
    def origins(self) -> tuple[int, ...]:
        """For each block that is left, the block of the source whose weights it starts with.

        Raises:
            AssertionError: the decision is not about blocks.
        """
        assert self.kept is not None, "all blocks stay"
        return tuple(sorted((*self.kept, *(interval.block for interval in self.replaced))))

    @property
    def dropped(self) -> tuple[int, ...]:
        """Indices of the blocks that go and that nothing stands for."""
        if self.kept is None or self.source_depth is None:
            return ()
        stay = {*self.kept, *(block for interval in self.replaced for block in interval.blocks)}
        return tuple(i for i in range(self.source_depth) if i not in stay)

    def kept_units(self, units: Sequence[Unit]) -> tuple[int, ...]:
        """Numbers of the units that stay whole, of a list of the source model's."""
        stay = None if self.kept is None else set(self.kept)
        return tuple(
            number
            for number, unit in enumerate(units)
            if unit.name not in self.removed and (stay is None or unit.index in stay)
        )

    @property
    def groups(self) -> Scheme | None:
        """The scheme laid over the source model, if there was one."""
        if self.scheme is None or self.source_depth is None:
            return None
        return parse_scheme(self.scheme, self.source_depth)

    @property
    def description(self) -> str:
        """What stays, in words."""
        words = [] if self.kept is None else [str(list(self.kept))]
        if self.removed:
            words = [f"{words[0] if words else 'all blocks'}, without {', '.join(self.removed)}"]
        words += [
            f"block {interval.block} for {interval.start}..{interval.stop - 1}"
            for interval in self.replaced
        ]
        words += [] if self.resized is None else [self.resized.description]
        return "; ".join(words)

    def summary(self) -> dict[str, Any]:
        """The part of the decision that a model's provenance records, as plain data."""
        facts: dict[str, Any] = {"method": self.method}
        if self.kept is not None:
            facts |= {
                "scheme": self.scheme,
                "kept": list(self.kept),
                "source_depth": self.source_depth,
            }
        if self.replaced:
            facts["replaced"] = [asdict(interval) for interval in self.replaced]
        if self.removed:
            facts["removed"] = list(self.removed)
        if self.budget and self.resized is None and set(self.budget) != {"keep"}:
            # What each unit costs is evidence, which the decision's file holds.
            facts["budget"] = {
                key: value for key, value in self.budget.items() if key not in ("costs", "measured")
            }
        if self.resized is not None:
            facts |= self.resized.summary() | {"ratio": self.budget.get("ratio")}
        return facts

    def to_dict(self) -> dict[str, Any]:
        """Plain data as written to ``decision.json``."""
        values = asdict(self)
        head = {
            "format": FORMAT,
            "kept": None if self.kept is None else list(self.kept),
            "dropped": list(self.dropped),
        }
        return head | {k: v for k, v in values.items() if k != "kept"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "decision") -> Decision:
        """Rebuild a decision from plain data, also that of a ``widths.json`` of version 0.1.0.

        Raises:
            InputError: not a decision, unknown or missing keys, invalid indices, or lists of kept
                and dropped blocks that contradict each other.
        """
        values = decision_values(values, where)
        known = {name: values[name] for name in values if name not in ("format", "dropped")}
        if known.get("kept") is not None and "source_depth" not in known:
            raise InputError(f"{where} is not a valid decision: it lacks 'source_depth'")
        if known.get("resized") is not None:
            known["resized"] = record_of(Resizing, known["resized"], where, "resizing")
        if "replaced" in known:
            if not isinstance(known["replaced"], list | tuple):
                raise InputError(f"{where}: replaced={known['replaced']!r} must be a list")
            known["replaced"] = tuple(
                record_of(Replacement, interval, where, "replacement")
                for interval in known["replaced"]
            )
        decision = record_of(cls, known, where, "decision")
        dropped = values.get("dropped", list(decision.dropped))
        if dropped != list(decision.dropped):
            raise InputError(
                f"{where}: dropped={dropped} contradicts kept="
                f"{None if decision.kept is None else list(decision.kept)} of "
                f"{decision.source_depth} blocks; correct one of them, or leave dropped out"
            )
        return decision

    def save(self, path: Path | str) -> Path:
        """Write the decision as JSON, atomically."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> Decision:
        """Read a ``decision.json``, or a ``widths.json`` of version 0.1.0.

        Raises:
            InputError: the file is missing, not JSON, or not a decision.
        """
        return cls.from_dict(read_json(path, "decision"), where=f"decision file {str(path)!r}")


def find_decision(folder: Path) -> Path | None:
    """The file of a run's folder that holds its decision, if there is any."""
    files = (folder / name for name in (DECISION_FILE, WIDTHS_FILE))
    return next((file for file in files if file.is_file()), None)


def _check_blocks(
    kept: Iterable[Any] | None, replaced: tuple[Replacement, ...], depth: int
) -> tuple[int, ...] | None:
    """Blocks that stay, none of them in an interval that is replaced."""
    taken: set[int] = set()
    for interval in replaced:
        if interval.stop > depth or taken & set(interval.blocks):
            raise InputError(
                f"replaced: the interval {interval.start}..{interval.stop - 1} overlaps another "
                f"one or ends behind block {depth - 1}, the last"
            )
        taken |= set(interval.blocks)
    if kept is None:
        return tuple(i for i in range(depth) if i not in taken) if replaced else None
    kept = list(kept)
    checked = check_kept(kept, depth) if kept or not replaced else ()
    both = [i for i in checked if i in taken]
    if both:
        raise InputError(
            f"kept={list(checked)}: block {both[0]} is in an interval that is replaced"
        )
    return checked


def _check_budget(budget: Any) -> None:
    if not isinstance(budget, Mapping) or any(not isinstance(key, str) for key in budget):
        raise InputError(f"budget={budget!r} must be a dictionary of limits by name")
    if "ratio" not in budget:
        return
    ratio = budget["ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise InputError(f"ratio={ratio!r} must be a number")
    if not 0 <= ratio < 1:
        raise InputError(f"ratio={ratio} must be at least 0 and below 1")
