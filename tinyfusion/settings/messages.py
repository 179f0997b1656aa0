"""Messages of the configuration libraries, condensed to one line that says what is valid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import OverrideParseException

from tinyfusion.errors import InputError, full_key, one_line
from tinyfusion.settings.commands import COMMANDS, GROUPS
from tinyfusion.settings.overrides import split
from tinyfusion.settings.overview import choices
from tinyfusion.settings.renamed import KEYS

_KEY = re.compile(r"[~+]*[\w$.@:/-]+", re.ASCII)
_MERGING = "Error merging override "
_NO_SUCH_FILE = re.compile(r"Could not (?:find|load) '(?P<group>[\w/]+)/(?P<choice>[^'/]*)'")
_NO_SUCH_KEY = re.compile(r"Could not (?:override|append|delete)[^']*'(?P<key>[^']+)'")
_NO_SUCH_GROUP = re.compile(r"Could not override '(?P<key>[\w/]+)'\.\s*No match in the defaults")


def refuse_bad_choices(overrides: Sequence[str]) -> None:
    """Refuse what can't be the choice of a group, and what Hydra does not say so of.

    Raises:
        InputError: a group that must have a choice is set to ``null`` or to a dictionary.
    """
    for text in overrides:
        group, value = split(text)
        if group in GROUPS and value is not None:
            if value in ("", "null", "None") or value.startswith("{"):
                raise InputError(f"{text}: choose one of {', '.join(choices(group))}")


def explain(error: BaseException, command: str, folders: Sequence[Path] = ()) -> str:
    """One line on what the command line asked for and what would be valid.

    Args:
        error: what Hydra or OmegaConf raised while composing.
        command: the command that was given.
        folders: further configuration folders (``--config-dir``).
    """
    text = str(error)
    if "hydra/sweeper/optuna" in text:
        return "hydra/sweeper=optuna is not installed: pip install 'tinyfusion[optuna]'"
    if isinstance(error, OverrideParseException):
        key, value = split(error.override)
        if value is None or not _KEY.fullmatch(key):
            return f"{error.override!r} can't be read; write KEY=VALUE, such as seed=1"
        return (
            f"{error.override}: the value can't be read; close every quote and bracket, or quote "
            "what is text, such as key='a, b'"
        )
    if text.startswith(_MERGING) and error.__cause__ is not None:
        override = text.removeprefix(_MERGING).strip()
        key, value = split(override)
        if "Cannot merge" not in str(error.__cause__) or value is None:
            return f"{override} can't be: {one_line(error.__cause__)}"
        parts = f"a part at a time, {key}.KEY=VALUE"
        return f"{override} must be given as {parts if value[0] == '[' else 'a list, as [0,1]'}"
    known = list(COMMANDS[command].__dataclass_fields__)
    found = _NO_SUCH_FILE.search(text)
    if found:
        # Of experiment/imagenet/x, all but the first word is the choice.
        group, _, choice = f"{found['group']}/{found['choice']}".partition("/")
        valid = choices(group, folders)
        if valid:
            return f"{group}={choice} is not known; valid: {', '.join(valid)}"
        return f"unknown group {group!r}; valid: {', '.join(known)}"
    found = _NO_SUCH_GROUP.search(text) or _NO_SUCH_KEY.search(text)
    if found:
        # Of key={a:1}, the part that is not known.
        key = full_key(error.__cause__) or found["key"]
        if key in known:  # a group of which nothing is chosen
            key = found["key"]
        if key in KEYS:
            return f"{key}= is {KEYS[key]}= now"
        if "already at" in text:
            return f"+{key}=: the configuration has it; write {key}=... to change it"
        if "." not in key:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return (
                f"unknown key {key!r} for 'tinyfusion {command}'; {hint}"
                f"valid: {', '.join(k for k in sorted(known) if k != 'command')}"
            )
        return (
            f"unknown key {key!r}: the chosen configuration does not have it; "
            f"'tinyfusion {command} --cfg job' prints what there is, +{key}=... adds an argument "
            "that it leaves at its default"
        )
    return one_line(error)
