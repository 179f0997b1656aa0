"""Which channels stay in every block: a record that stands alone, as `Decision` does for blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from tinyfusion.decision import FORMAT as DECISION_FORMAT
from tinyfusion.decision import Decision, made_of
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.version import __version__

FORMAT = "tinyfusion-widths"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class WidthDecision:
    """The channels, heads and neurons to keep and how they were chosen; no block goes.

    Attributes:
        kept: units that stay, ascending, 0-based in the source model, by the name of their group
            (`tinyfusion.backbones.width_plan`): residual stream, condition, heads and neurons of
            every block.
        source_units: number of units of each group in the source model.
        widths: what is left, by the constructor argument that says so (``hidden_size``).
        source_widths: the same of the source model.
        parameters: of the pruned model.
        source_parameters: of the source model.
        ratio: share of the parameters that was to go.
        method: name of the pruner.
        scores: evidence by name, such as the losses by time.
        seed: seed of the choice.
        source_sha256: hash of the source's weights; ``None`` if they came from no file.
        config: resolved configuration of the run that decided.
        version: version of this package.

    Raises:
        InputError: groups, indices or numbers that contradict each other.
    """

    kept: dict[str, tuple[int, ...]]
    source_units: dict[str, int]
    widths: dict[str, int]
    source_widths: dict[str, int]
    parameters: int
    source_parameters: int
    ratio: float
    method: str = "widths"
    scores: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    source_sha256: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    version: str = __version__

    file_name: ClassVar[str] = "widths.json"

    def __post_init__(self) -> None:
        _check_numbers("source_units", self.source_units)
        _check_numbers("widths", self.widths)
        _check_numbers("source_widths", self.source_widths)
        for key in ("parameters", "source_parameters"):
            _check_number(key, getattr(self, key))
        if not isinstance(self.kept, Mapping) or self.kept.keys() != self.source_units.keys():
            raise InputError("kept and source_units must name the same groups of channels")
        if self.widths.keys() != self.source_widths.keys():
            raise InputError("widths and source_widths must name the same arguments")
        kept = {
            name: _check_units(name, units, self.source_units[name])
            for name, units in self.kept.items()
        }
        object.__setattr__(self, "kept", kept)
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float):
            raise InputError(f"ratio={self.ratio!r} must be a number")
        if not 0 <= self.ratio < 1:
            raise InputError(f"ratio={self.ratio} must be at least 0 and below 1")

    @property
    def reached(self) -> float:
        """Share of the parameters that goes."""
        return 1 - self.parameters / self.source_parameters

    @property
    def shown(self) -> str:
        """What stays, in words."""
        pairs = (f"{key} {self.source_widths[key]} -> {n}" for key, n in self.widths.items())
        return (
            f"{', '.join(pairs)}; {self.parameters:,} of {self.source_parameters:,} parameters "
            f"({100 * self.reached:.1f} % removed)"
        )

    def summary(self) -> dict[str, Any]:
        """What a model's provenance tells of the decision, as plain data."""
        return {
            "method": self.method,
            "widths": dict(self.widths),
            "source_widths": dict(self.source_widths),
            "parameters": self.parameters,
            "source_parameters": self.source_parameters,
            "ratio": self.ratio,
            "reached": self.reached,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data as written to ``widths.json``."""
        values = asdict(self)
        kept = {name: list(units) for name, units in self.kept.items()}
        last = {"scores": values.pop("scores"), "config": values.pop("config"), "kept": kept}
        values.pop("kept")
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **values, **last}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "width decision") -> WidthDecision:
        """Rebuild a decision from plain data.

        Raises:
            InputError: not a width decision, one of another version of the format, unknown or
                missing keys, or invalid values.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise InputError(f"{where} is not a width decision: it lacks 'format': '{FORMAT}'")
        if values.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{where} has format_version={values.get('format_version')!r}; this version of "
                f"tinyfusion reads {FORMAT_VERSION}"
            )
        known = {k: v for k, v in values.items() if k not in ("format", "format_version")}
        return made_of(cls, known, where, "width decision")

    def save(self, path: Path | str) -> Path:
        """Write the decision as JSON, atomically."""
        return write_json(path, self.to_dict())


def read_decision(path: Path | str) -> Decision | WidthDecision:
    """Read a ``decision.json`` or a ``widths.json``.

    Raises:
        InputError: the file is missing, not JSON, or neither.
    """
    content = read_json(path, "decision")
    where = f"decision file {str(path)!r}"
    found = content.get("format") if isinstance(content, Mapping) else None
    if found == FORMAT:
        return WidthDecision.from_dict(content, where)
    if found == DECISION_FORMAT:
        return Decision.from_dict(content, where)
    raise InputError(
        f"{where} is not a decision: its 'format' is {found!r}; valid: '{DECISION_FORMAT}', "
        f"'{FORMAT}'"
    )


def _check_numbers(key: str, found: Any) -> None:
    """Refuse what is no dictionary of positive integers."""
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{key} must be a dictionary of positive integers")
    for name, value in found.items():
        _check_number(f"{key}[{name}]", value)


def _check_number(key: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"{key}={value!r} must be a positive integer")


def _check_units(name: str, units: Any, count: int) -> tuple[int, ...]:
    """Units of a group that stay, refused unless they ascend within ``count``."""
    wanted = f"ascending integers of 0..{count - 1}, at least one"
    if not isinstance(units, list | tuple) or not units:
        raise InputError(f"kept[{name}] must be a list of {wanted}")
    if any(type(unit) is not int or not 0 <= unit < count for unit in units):
        raise InputError(f"kept[{name}] holds what is not of {wanted}")
    if any(a >= b for a, b in pairwise(units)):
        raise InputError(f"kept[{name}] does not ascend; valid: {wanted}")
    return tuple(units)
