"""A command's configuration as far as its files say it, put together without Hydra.

Good enough to know which keys there are: interpolations stay as they are written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyfusion.settings.commands import WHOLE
from tinyfusion.settings.overview import conf_folder
from tinyfusion.settings.written import written_in

_PACKAGE = re.compile(r"^# @package (\S+)", re.M)
_LATE = ("backbone", *WHOLE)
"""Groups whose files win over the command's own."""


def first_comment(group: str, name: str, folders: Sequence[Path] = ()) -> str:
    """What a configuration file says of itself: its first comment, up to the first full stop.

    Args:
        group: the file's group.
        name: the choice.
        folders: further configuration folders.
    """
    lines = [
        line.lstrip("# ")
        for line in _text(group, name, folders).splitlines()
        if line.startswith("#") and not line.startswith("# @")
    ]
    return re.split(r"[.:;](?:\s|$)", lines[0])[0] if lines else ""


def chosen_groups(
    command: str, given: Sequence[str], folders: Sequence[Path]
) -> dict[str, list[str]]:
    """Choices of every group of a command, in the order in which their files are merged.

    Args:
        command: name of the command.
        given: overrides; they win over what backbones and experiments choose.
        folders: further configuration folders.
    """
    chosen = _defaults(written_in("", command, folders))
    typed = {}
    for text in given:
        group, _, value = text.lstrip("+~").partition("=")
        if group in chosen:
            typed[group] = value.strip("[]").split(",")
    for group, names in {**chosen, **typed}.items():
        for name in names:
            for other, choice in _defaults(written_in(group, name, folders), inner=True).items():
                if other in chosen:
                    chosen[other] = choice
    return chosen | typed


def written_tree(
    command: str, chosen: dict[str, list[str]], folders: Sequence[Path]
) -> dict[str, Any]:
    """Keys and values of a command's configuration, as written.

    Args:
        command: name of the command.
        chosen: see `chosen_groups`.
        folders: further configuration folders.
    """
    own = written_in("", command, folders)
    own.pop("defaults", None)
    tree: dict[str, Any] = {}
    for group in (group for group in chosen if group not in _LATE):
        for name in chosen[group]:
            _merge(tree, _file(group, name, folders))
    _merge(tree, own)
    for group in (group for group in chosen if group in _LATE):
        for name in chosen[group]:
            _merge(tree, _file(group, name, folders))
    return tree


def _file(group: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Content of a choice, with what it builds on, where its package puts it."""
    content = written_in(group, name, folders)
    tree: dict[str, Any] = {}
    for item in content.pop("defaults", None) or ():
        if isinstance(item, str) and item != "_self_":
            _merge(tree, _file(group, item.lstrip("/"), folders))
    found = _PACKAGE.search(_text(group, name, folders))
    package = found[1] if found else group
    for part in [] if package == "_global_" else reversed(package.split(".")):
        content = {part: content}
    return _merge(tree, content)


def _defaults(content: dict[str, Any], inner: bool = False) -> dict[str, list[str]]:
    """Groups that a file's defaults choose; ``inner`` for one that is no command's."""
    found: dict[str, list[str]] = {}
    for item in content.get("defaults") or ():
        for key, value in item.items() if isinstance(item, dict) else ():
            name = str(key).removeprefix("override ").strip("/ ")
            if not inner or str(key).startswith("override"):
                found[name] = [str(value)] if value is not None else []
    return found


def _merge(tree: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value
    return tree


def _text(group: str, name: str, folders: Sequence[Path]) -> str:
    for folder in (*folders, conf_folder()):
        file = folder / group / f"{name}.yaml"
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
    return ""
