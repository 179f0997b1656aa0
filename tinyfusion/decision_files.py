"""The formats of decision files, and how their content becomes a record."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from tinyfusion.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DECISION_FILE = "decision.json"
FORMAT = "tinyfusion-decision"

# Until version 0.1.0 decisions about channels had a record and a file of their own.
WIDTHS_FILE = "widths.json"
_WIDTHS_FORMAT = "tinyfusion-widths"
_WIDTHS_KEYS = {
    "kept": "kept",
    "source_units": "source_sizes",
    "widths": "widths",
    "source_widths": "source_widths",
    "parameters": "parameters",
    "source_parameters": "source_parameters",
}

Record = TypeVar("Record", bound="DataclassInstance")


def is_decision(content: Any) -> bool:
    """Whether the content of a JSON file says that it is a decision, of this version or 0.1.0."""
    return isinstance(content, Mapping) and content.get("format") in (FORMAT, _WIDTHS_FORMAT)


def decision_values(values: Any, where: str) -> dict[str, Any]:
    """The content of a ``decision.json``; that of a ``widths.json`` of version 0.1.0 is converted.

    Raises:
        InputError: neither of these formats, or a ``widths.json`` with another version number,
            unknown keys or missing keys.
    """
    if not is_decision(values):
        raise InputError(f"{where} is not a decision: it lacks 'format': '{FORMAT}'")
    return _of_widths(values, where) if values["format"] == _WIDTHS_FORMAT else dict(values)


def _of_widths(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content of a ``widths.json`` of version 0.1.0 as that of a ``decision.json``.

    Raises:
        InputError: another version of that format, or unknown or missing keys.
    """
    if values.get("format_version") != 1:
        raise InputError(
            f"{where} has format_version={values.get('format_version')!r}; this version of "
            "tinyfusion reads 1"
        )
    wanted = (*_WIDTHS_KEYS, "ratio")
    known = (*wanted, "method", "scores", "seed", "source_sha256", "config", "version")
    given = {k: v for k, v in values.items() if k not in ("format", "format_version")}
    _check_names(given, known, wanted, where, "decision")
    resized = {_WIDTHS_KEYS[key]: given.pop(key) for key in _WIDTHS_KEYS}
    budget = {"ratio": given.pop("ratio")}
    return {"format": FORMAT, **given, "resized": resized, "budget": budget}


def record_of(kind: type[Record], values: Any, where: str, what: str) -> Record:
    """Make a record of plain data.

    Args:
        kind: its dataclass, which checks values itself.
        values: fields by name.
        where: what holds the values, for messages.
        what: what they are to be, for messages.

    Raises:
        InputError: unknown or missing fields, or invalid values.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is not valid: a {what} must be a dictionary, not {values!r}")
    known = fields(kind)
    required = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    _check_names(values, [f.name for f in known], required, where, what)
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where} is not a valid {what}: {error}") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check_names(
    found: Collection[str],
    known: Collection[str],
    required: Collection[str],
    where: str,
    what: str,
) -> None:
    unknown = [repr(name) for name in found if name not in known]
    missing = [repr(name) for name in required if name not in found]
    for fault, names in (("has the unknown", unknown), ("lacks", missing)):
        if names:
            raise InputError(f"{where} is not a valid {what}: it {fault} {', '.join(names)}")
