"""Overrides in Hydra's grammar: quoting a value, taking an override apart, reading what was typed.

To Hydra, ``=``, commas, brackets, quotes and most letters beyond ASCII mean something in a value,
or nothing that it can read; in the name of a folder they are only characters. So what a user typed
is written in Hydra's grammar before Hydra reads it, with paths made absolute. Everything that is
passed on or recorded from there (runs of sweeps, launchers, ``multirun.yaml``, ``command.txt``)
can be read again, anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.settings.commands import COMMANDS, GROUPS
from tinyfusion.settings.paths import absolute, existing, holds_path

_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_RESERVED = ("null", "true", "false", "inf", "nan")
_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")

_TEXTS = {
    field.name
    for command in COMMANDS.values()
    for field in fields(command)
    if field.type in ("str", "str | None")
}
"""Keys of the commands that hold text."""

_LISTS = ("models", "hydra.searchpath")
"""Keys of paths whose value may be a list."""

_ALONE = ("output_root", "hydra")
"""First parts of keys that no sweep runs over."""

_CLOSING = {"[": "]", "{": "}"}

_UNREADABLE = object()


def quote(value: str | Path) -> str:
    """A text as a value that Hydra reads as this text: bare where that is so, else quoted."""
    from hydra.core.override_parser.types import Quote, QuotedString

    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return QuotedString(text, Quote.single).with_quotes()


def split(override: str) -> tuple[str, str | None]:
    """An override's key, with the ``+`` or ``~`` before it, and its value as written.

    The value is ``None`` where there is none.
    """
    key, equals, value = override.partition("=")
    return key, value if equals else None


def text_of(value: str) -> str:
    """What Hydra reads if that is one text; else the value as written."""
    read = _read(value)
    text = getattr(read, "text", read)
    return text if isinstance(text, str) else value


def config_flags(hydra: Any) -> list[str]:
    """The flags that named a user's own configuration folder.

    Args:
        hydra: Hydra's part of a composed configuration.
    """
    sources = hydra.runtime.config_sources
    return [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]


def as_given(hydra: Any) -> tuple[list[str], list[str]]:
    """The overrides of Hydra's own part and those of the command, interpolations as written.

    Args:
        hydra: Hydra's part of a composed configuration.
    """
    from omegaconf import OmegaConf  # what else stands here completion reads at every tab

    found: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
    return found["hydra"], found["task"]


def as_typed(override: str, sweeping: bool = False) -> str:
    """An override as a user typed it, in Hydra's grammar.

    The value of a key that holds text, such as a path, is taken by its characters, unless it is
    quoted, null or an interpolation. In a sweep a comma separates values; not so within what
    exists as a path as a whole. A value that names an existing path is replaced by the absolute
    one, under every key.

    Args:
        override: ``key=value``.
        sweeping: whether it belongs to a sweep.

    Raises:
        InputError: characters that are not text.
    """
    prefixed, raw = split(override)
    if raw is None or prefixed.startswith("~"):
        return override
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{prefixed}={raw.encode(errors='surrogateescape')!r}: the value is not UTF-8; rename "
            "what it names"
        ) from None
    key = prefixed.lstrip("+")
    if key in GROUPS or "/" in key or "@" in key:
        if raw[:1] in ("[", "{", "'", '"') or "(" in raw:
            return override
        names = raw.split(",") if sweeping else [raw]
        return f"{prefixed}={','.join(map(_choice, names))}"
    if sweeping and key.partition(".")[0] not in _ALONE:
        if raw.startswith("choice(") and raw.endswith(")") and existing(key, raw) is None:
            raw = raw.removeprefix("choice(").removesuffix(")")
        return f"{prefixed}={','.join(_one(key, piece) for piece in _pieces(key, raw))}"
    return f"{prefixed}={_one(key, raw)}"


def swept(overrides: Sequence[str]) -> list[str]:
    """Overrides of a sweep, of which values in a group that it runs over are looked at in its runs.

    Hydra first composes what all runs share, which has the group's default choice: a key of
    another choice would be refused there. A sweep over one value is not part of that.

    Args:
        overrides: overrides in Hydra's grammar.
    """
    over = {split(text)[0].lstrip("+") for text in overrides if _several(split(text)[1])}
    found = []
    for text in overrides:
        key, value = split(text)
        inside = key[:1] not in "+~" and key.partition(".")[0] in over & set(GROUPS)
        single = inside and "." in key and value is not None and not _several(value)
        found.append(f"{key}=choice({value})" if single else text)
    return found


def shared(overrides: Sequence[str]) -> list[str]:
    """Keys of what all runs of a sweep have alike, so that their folders need not name it.

    None where the folder of the sweep is given, as another sweep may go there as well, or where
    nothing is known to vary.

    Args:
        overrides: overrides of a sweep in Hydra's grammar, before `swept`.
    """
    keys = [split(text)[0].lstrip("+~") for text in overrides]
    over = [key for key, text in zip(keys, overrides, strict=True) if _several(split(text)[1])]
    searches = {"hparams_search", "hydra/sweeper"} & set(keys)
    if "hydra.sweep.dir" in keys or not (over or searches):
        return []
    return sorted({key for key in keys if not key.startswith("hydra")} - set(over))


def _several(value: str | None) -> bool:
    """Whether a value is a sweep to Hydra, such as ``a,b``."""
    from hydra.core.override_parser.types import Sweep

    return value is not None and isinstance(_read(value), Sweep)


def is_text(key: str) -> bool:
    """Whether the value of a key is one text, in which brackets are characters like any other."""
    return key in _TEXTS or (holds_path(key) and key not in _LISTS)


def _choice(name: str) -> str:
    """A choice of a group: a name, which to Hydra a number is not."""
    read = _read(name)
    return quote(name) if read is _UNREADABLE or isinstance(read, int | float) else name


def _one(key: str, raw: str) -> str:
    """One value, which is not several of a sweep."""
    if raw.strip().lower() in ("", "null"):
        return raw
    read, plain = _read(raw), is_text(key)
    is_other = read is None or isinstance(read, bool | int | float)
    # A folder may be named 2024 or true; under a key of numbers, that is none.
    found = existing(key, raw) if plain or not is_other else None
    if found is not None:
        return quote(found)
    if "${" in raw:
        return quote(raw) if read is _UNREADABLE else raw
    if hasattr(read, "quote"):
        found = absolute(key, read.text)
        return raw if found is None else quote(found)
    if not plain:
        inside = _inside(key, raw)
        return inside or (quote(raw) if read is _UNREADABLE and raw[0] not in "[{'\"" else raw)
    if hasattr(read, "simple_form") and not (read.simple_form and absolute(key, raw)):
        return raw  # several values, which Hydra says are for sweeps
    text = _ESCAPED.sub(r"\1", raw) if isinstance(read, str) else raw
    found = absolute(key, text) or existing(key, text.strip())
    return quote(text if found is None else found)


def _inside(key: str, raw: str) -> str | None:
    """A list or dictionary whose parts are written anew; ``None`` for what is neither."""
    brackets = raw[0] + raw[-1]
    if brackets not in ("[]", "{}") or len(raw) < 2:
        return None
    separator = ":" if brackets == "{}" else ""
    written, found = [], False
    for piece in _pieces(key, raw[1:-1], separator):
        name, colon, value = piece.partition(separator) if separator else ("", "", piece)
        one = _one(key, value)
        found = found or (one != value and existing(key, text_of(one)) is not None)
        written.append(f"{name}{colon}{one}")
    inside = f"{raw[0]}{','.join(written)}{raw[-1]}"
    return inside if found and _read(inside) is not _UNREADABLE else None


def _pieces(key: str, raw: str, separator: str = "") -> Iterator[str]:
    """Divide at commas, but not within what exists as a path, is quoted, escaped or in brackets."""
    atoms = raw.split(",")
    start = 0
    while start < len(atoms):
        end = _end(key, atoms, start, separator)
        yield ",".join(atoms[start:end])
        start = end


def _end(key: str, atoms: Sequence[str], start: int, separator: str) -> int:
    """Where the piece that begins at an atom ends."""
    for end in range(len(atoms), start + 1, -1):
        whole = ",".join(atoms[start:end])
        if existing(key, whole.partition(separator)[2] if separator else whole) is not None:
            return end
    first = atoms[start].lstrip()
    bracket = first[:1] if first[:1] in ("[", "{") and not is_text(key) else ""
    if bracket or first[:1] in ("'", '"') or "(" in first or first.endswith("\\"):
        for end in range(start + 1, len(atoms) + 1):
            whole = ",".join(atoms[start:end])
            if bracket and whole.count(bracket) == whole.count(_CLOSING[bracket]):
                return end
            read = _read(whole)
            if read is not _UNREADABLE and not getattr(read, "simple_form", False):
                return end
    return start + 1


def first_text(value: str) -> str | None:
    """What Hydra reads first in a list, or the one text; ``None`` for anything else."""
    read = _read(value)
    if isinstance(read, list) and read:
        read = read[0]
    text = getattr(read, "text", read)
    return text if isinstance(text, str) else None


def _read(raw: str) -> Any:
    """What Hydra reads in a value; ``_UNREADABLE`` if nothing."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={raw}")._value
    except (HydraException, ValueError):
        return _UNREADABLE
