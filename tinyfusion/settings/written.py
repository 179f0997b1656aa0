"""Configuration files as they are written: what they choose, and which of them describes a record.

Read without Hydra, to find out what a command line lacks before it is composed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tinyfusion.settings.commands import GROUPS, OPTIONAL_GROUPS, WHOLE
from tinyfusion.settings.overrides import text_of
from tinyfusion.settings.overview import choices, conf_folder

_WORD = re.compile(r"[A-Za-z_][\w.-]*")


def chosen_by(given: Sequence[str], folders: Sequence[Path]) -> set[str]:
    """Groups that overrides choose and values that they set, also through an experiment.

    Args:
        given: overrides.
        folders: further configuration folders.

    Returns:
        Keys, such as ``process`` and ``process.clip``.
    """
    chosen: set[str] = set()
    for text in given:
        key, _, value = text.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        chosen.add(key)
        if key in WHOLE:
            for name in text_of(value).strip("[]").split(","):
                chosen |= _chosen_in(key, name.strip(), folders)
    return chosen


def _chosen_in(group: str, name: str, folders: Sequence[Path]) -> set[str]:
    content = written_in(group, name, folders)
    chosen: set[str] = set()
    for key in content.keys() & GROUPS.keys():
        values = content[key] if isinstance(content[key], dict) else {"_target_": None}
        # With a class of its own it is no matter of values in what was chosen.
        chosen |= {key} if "_target_" in values else {f"{key}.{part}" for part in values}
    for item in content.get("defaults") or ():
        if isinstance(item, str) and item != "_self_":
            chosen |= _chosen_in(group, item, folders)
        elif isinstance(item, dict):
            chosen |= {str(key).removeprefix("override ").strip("/ ") for key in item}
    return chosen


def written_in(group: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """A configuration file as it is written; empty if there is none."""
    for folder in (*folders, conf_folder()):
        file = folder / group / f"{name}.yaml"
        if file.is_file():
            return deepcopy(_content_of(file, file.stat().st_mtime_ns))
    return {}


@cache
def _content_of(file: Path, _: int) -> dict[str, Any]:
    """A file's content, read once for each time that it was written."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}  # composing it says what is wrong
    return content if isinstance(content, dict) else {}


def kept_when_left_out(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Overrides, of which values in a group that may be left out are taken whatever it has.

    ``evaluation=none`` has no key for ``evaluation.num_samples=100`` to change, and Hydra would
    refuse it; a script that gives both means that there is nothing to score.

    Args:
        overrides: overrides in Hydra's grammar.
        folders: further configuration folders.
    """
    choosing = [text.partition("=")[::2] for text in overrides]
    left_out = {
        group
        for group, value in choosing
        if group in OPTIONAL_GROUPS
        for name in value.removeprefix("choice(").rstrip(")").split(",")
        if written_in(group, name.strip("'\""), folders).get("_target_", "") is None
    }
    return [
        f"++{text}" if "." in key and key.partition(".")[0] in left_out else text
        for text, (key, _) in zip(overrides, choosing, strict=True)
    ]


def backbone_in(name: str, folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """Class and arguments of a backbone's configuration, and the groups that it chooses."""
    content = written_in("backbone", name, folders)
    node: dict[str, Any] = {}
    groups: dict[str, str] = {}
    for item in content.pop("defaults", None) or ():
        if isinstance(item, str) and item != "_self_":
            inner, chosen = backbone_in(item, folders)
            node |= inner
            groups |= chosen
        elif isinstance(item, dict):
            for key, value in item.items():
                groups[str(key).removeprefix("override ").strip("/ ")] = str(value)
    # With "@package _global_" its own keys are one level further in.
    own = content.get("backbone") if isinstance(content.get("backbone"), dict) else content
    return node | dict(own or {}), groups


def as_overrides(
    group: str, node: Mapping[str, Any], default: str, folders: Sequence[Path]
) -> list[str] | None:
    """A recorded group by the choice that is most like it, and what differs from that.

    Args:
        group: the group.
        node: class and arguments, as a file records them.
        default: the command's own choice.
        folders: further configuration folders.

    Returns:
        Overrides, none if it is the default; ``None`` if no configuration has its class.
    """
    best: tuple[int, str, dict[str, Any]] | None = None
    for name in sorted(choices(group, folders), key=lambda name: name != default):
        base = written_in(group, name, folders)
        if base.get("_target_") != node.get("_target_"):
            continue
        differing = {k: v for k, v in node.items() if base.get(k) != v and _is_plain(v)}
        if best is None or len(differing) < best[0]:
            best = (len(differing), name, differing)
    if best is None:
        return None
    _, name, differing = best
    values = [f"++{group}.{key}={_written(value)}" for key, value in differing.items()]
    return [*([f"{group}={name}"] if name != default else []), *values]


def _is_plain(value: Any) -> bool:
    """Whether a value may be taken from a file: no object, and no text that means more."""
    return isinstance(value, bool | int | float | None) or (
        isinstance(value, str) and bool(_WORD.fullmatch(value))
    )


def _written(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
