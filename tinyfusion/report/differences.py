"""What tells runs apart: the keys of their configurations that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tinyfusion.report.runs import Run

IRRELEVANT = (
    "output_root", "name", "resume", "logger", "callbacks", "dry_run", "dry_run_probe",
    "trainer.progress", "trainer.log_every", "trainer.resume_every", "trainer.threads",
    "trainer.num_workers",
)  # fmt: skip
"""Keys, with all below them, that results do not depend on."""

TARGET = "_target_"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as values by dotted path; lists are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{path}.")
        else:
            found[path] = value
    return found


def varying(runs: Sequence[Run]) -> list[str]:
    """Dotted paths of what differs between runs of one command, the shortest first.

    Where another class was chosen (``_target_``), its own arguments are not listed one by one, nor
    are keys of a file of the configuration that the command lines name (``recovery=kd``): its key
    is (``recovery``). Of keys that take the same values, as one refers to the other, the first is
    listed. First comes ``command`` if there are several.

    Args:
        runs: runs whose configuration is known.
    """
    configs = [flat(run.config) for run in runs]
    commands = [run.command for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if _is_relevant(key) and _differs(key, configs, commands)]
    differing = _by_choice(differing, configs, runs)
    chosen = [key.removesuffix(TARGET) for key in differing if key.endswith(TARGET)]
    found: dict[tuple[str, ...], str] = {}
    for key in sorted(differing, key=lambda key: key.count(".") - key.endswith(TARGET)):
        within = [prefix for prefix in chosen if key.startswith(prefix)]
        if any(key != f"{prefix}{TARGET}" for prefix in within):
            continue
        found.setdefault(tuple(_text(_cell(run, key)) for run in runs), key)
    several = ["command"] if len(set(commands)) > 1 else []
    return several + [key for key in found.values() if key != "command"]


def shown(run: Run, key: str) -> Any:
    """A run's setting as a cell of a table: classes and files by the last part of their names."""
    value = _cell(run, key)
    if isinstance(value, str) and key.endswith(TARGET):
        return value.rpartition(".")[2]
    if isinstance(value, str) and value.startswith("/"):
        return "/".join(value.split("/")[-2:])
    return json.dumps(value) if isinstance(value, list | dict | tuple) else value


def heading(key: str) -> str:
    """How a key is headed: ``pruner`` for ``pruner._target_``."""
    return key.removesuffix(f".{TARGET}")


def _is_relevant(key: str) -> bool:
    folder = key.endswith("features_folder")
    return not folder and not any(key == name or key.startswith(f"{name}.") for name in IRRELEVANT)


def _cell(run: Run, key: str) -> Any:
    """The value of a key: of one that a file was chosen for, that file's name."""
    value = run.setting(key)
    return run.choices.get(key, value) if isinstance(value, Mapping) else value


def _by_choice(
    keys: Sequence[str], configs: Sequence[Mapping[str, Any]], runs: Sequence[Run]
) -> list[str]:
    """Keys with those that follow from the choice of a file replaced by its own key."""
    found = list(keys)
    choices = [run.choices for run in runs]
    for group in dict.fromkeys(key.split(".")[0] for key in keys if "." in key):
        below = [key for key in keys if key.startswith(f"{group}.")]
        have = [isinstance(run.setting(group), Mapping) for run in runs]
        own = [choice.get(group, "") for choice in choices]
        known = {choice for choice, has in zip(own, have, strict=True) if has}
        if len(below) > 1 and len(known) > 1 and "" not in known:
            follow = [key for key in below if not _differs(key, configs, own)]
            found.insert(found.index(below[0]), group)
            found = [key for key in found if key not in follow]
    return found


def _differs(key: str, configs: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> bool:
    """Whether a value differs between configurations of one kind."""
    values: dict[str, set[str]] = {}
    for config, kind in zip(configs, kinds, strict=True):
        values.setdefault(kind, set()).add(_text(config.get(key)))
    return any(len(found) > 1 for found in values.values())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
