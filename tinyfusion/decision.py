"""Which blocks stay: a record that stands alone and applies to a fresh checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.scheme import Scheme, parse_scheme
from tinyfusion.version import __version__

FORMAT = "tinyfusion-decision"

Record = TypeVar("Record")


def check_kept(kept: Iterable[Any], depth: int, key: str = "kept") -> tuple[int, ...]:
    """Validate block indices and return them in ascending order.

    Args:
        kept: indices of the blocks that stay.
        depth: number of blocks of the model.
        key: how the user calls the list, for the message.

    Raises:
        InputError: an index that is no integer, out of range or doubled, or an empty list.
    """
    kept = list(kept)
    shown = f"{key}={str(kept).replace(' ', '')}"
    wrong = [i for i in kept if not isinstance(i, int) or isinstance(i, bool)]
    if wrong:
        raise InputError(f"{shown}: {wrong[0]!r} is not a block index")
    if not kept:
        raise InputError(f"{shown} keeps no block; give at least one of 0..{depth - 1}")
    outside = [i for i in kept if not 0 <= i < depth]
    if outside:
        raise InputError(
            f"{shown}: block {outside[0]} does not exist; the model has blocks 0..{depth - 1}"
        )
    doubled = sorted({i for i in kept if kept.count(i) > 1})
    if doubled:
        raise InputError(f"{shown}: block {doubled[0]} is listed more than once")
    return tuple(sorted(kept))


def made_of(kind: type[Record], values: Mapping[str, Any], where: str, what: str) -> Record:
    """Make a record of plain data.

    Args:
        kind: its dataclass, which checks values itself.
        values: fields by name.
        where: what holds the values, for messages.
        what: what they are to be, for messages.

    Raises:
        InputError: unknown or missing fields, or invalid values.
    """
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    unknown = [repr(name) for name in values if name not in known]
    missing = [repr(name) for name, required in known.items() if required and name not in values]
    for fault, names in (("has the unknown", unknown), ("lacks", missing)):
        if names:
            raise InputError(f"{where} is not a valid {what}: it {fault} {', '.join(names)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where} is not a valid {what}: {error}") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Decision:
    """The blocks to keep and how they were chosen.

    Attributes:
        kept: indices of the blocks that stay, ascending, 0-based in the source model.
        source_depth: number of blocks of the source model.
        method: name of the pruner.
        scheme: groups as ``[[keep, size], ...]``, or ``None`` for a choice without groups.
        probabilities: per group the probability of every keep-pattern in lexicographic order;
            ``None`` where nothing was learned.
        scores: further evidence by name (block scores, calibration loss, the live decision).
        seed: seed of the choice.
        source_sha256: hash of the source's weights; ``None`` if they came from no file.
        config: resolved configuration of the run that decided.
        version: version of this package.

    Raises:
        InputError: indices out of range or doubled, a scheme of another depth, a group of which
            another number of blocks stays than its scheme says, or probabilities that don't
            belong to the scheme's patterns.
    """

    kept: tuple[int, ...]
    source_depth: int
    method: str = "indices"
    scheme: list[list[int]] | None = None
    probabilities: list[list[float]] | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    source_sha256: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    version: str = __version__

    file_name: ClassVar[str] = "decision.json"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", check_kept(self.kept, self.source_depth))
        if self.scheme is not None:
            self._check_groups(parse_scheme(self.scheme, self.source_depth))

    def _check_groups(self, scheme: Scheme) -> None:
        for group in scheme.groups:
            inside = [i for i in self.kept if i in group.blocks]
            if len(inside) != group.keep:
                raise InputError(
                    f"kept={list(self.kept)}: {len(inside)} blocks of {group.blocks[0]}.."
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
    def dropped(self) -> tuple[int, ...]:
        """Indices of the blocks that go."""
        return tuple(i for i in range(self.source_depth) if i not in self.kept)

    @property
    def groups(self) -> Scheme | None:
        """The scheme laid over the source model, if there was one."""
        return None if self.scheme is None else parse_scheme(self.scheme, self.source_depth)

    @property
    def shown(self) -> str:
        """What stays, in words."""
        return str(list(self.kept))

    def summary(self) -> dict[str, Any]:
        """What a model's provenance tells of the decision, as plain data."""
        return {
            "method": self.method,
            "scheme": self.scheme,
            "kept": list(self.kept),
            "source_depth": self.source_depth,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data as written to ``decision.json``."""
        values = asdict(self)
        head = {"format": FORMAT, "kept": list(self.kept), "dropped": list(self.dropped)}
        return head | {k: v for k, v in values.items() if k != "kept"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "decision") -> Decision:
        """Rebuild a decision from plain data.

        Raises:
            InputError: not a decision, unknown or missing keys, invalid indices, or lists of kept
                and dropped blocks that contradict each other.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise InputError(f"{where} is not a decision: it lacks 'format': '{FORMAT}'")
        known = {name: values[name] for name in values if name not in ("format", "dropped")}
        decision = made_of(cls, known, where, "decision")
        dropped = values.get("dropped", list(decision.dropped))
        if dropped != list(decision.dropped):
            raise InputError(
                f"{where}: dropped={dropped} contradicts kept={list(decision.kept)} of "
                f"{decision.source_depth} blocks; correct one of them, or leave dropped out"
            )
        return decision

    def save(self, path: Path | str) -> Path:
        """Write the decision as JSON, atomically."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> Decision:
        """Read a ``decision.json``.

        Raises:
            InputError: the file is missing, not JSON, or not a decision.
        """
        return cls.from_dict(read_json(path, "decision"), where=f"decision file {str(path)!r}")
