"""Studies as their files in ``conf/study`` have them.

A file names rows, or axes whose product makes the rows. What a row sets are overrides of a command
(``run`` unless it says otherwise), and ``{name}`` in them is the folder of one of the study's
works, which are made first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tinyfusion.errors import InputError
from tinyfusion.settings.commands import COMMANDS
from tinyfusion.settings.overview import choices, conf_folder
from tinyfusion.studies.plans import PRUNED, Row, Study, WorkPlan

GROUP = "study"

_KEYS = {
    "title": str, "paper": dict, "columns": dict, "model": str, "seeds": list, "scales": dict,
    "axes": dict, "rows": list, "works": dict, "report": str, "note": str, "constant": dict,
    "command": str, "composed": bool,
}  # fmt: skip
_SCALE_KEYS = {"all": list, "seeds": list, "needs": list, "note": str, "axes": dict,
    "parameters": list,
}  # fmt: skip
_ROW_KEYS = {
    "is": dict, "paper": dict, "set": (list, dict), "command": str, "model": str, "seeds": list,
    "scales": list, "whole": bool, "choice_seed": int, "group": str,
}  # fmt: skip
_WORK_KEYS = {"command": str, "set": (list, dict), "whole": bool, "seed": int}


REPORT = "tinyfusion.studies.paper_tables.report"


def names(folders: Sequence[Path] = ()) -> list[str]:
    """Names of the studies that there are.

    Args:
        folders: further configuration folders (``--config-dir``).
    """
    return choices(GROUP, folders)


def content_of(name: str, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """A study's file as plain data.

    Raises:
        InputError: there is no such study, or its file is no YAML mapping.
    """
    for folder in (*folders, conf_folder()):
        file = folder / GROUP / f"{name}.yaml"
        if file.is_file():
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise InputError(f"{file} can't be read: {error}") from None
            if not isinstance(content, dict):
                raise InputError(f"{file} holds no mapping; see conf/study/table4.yaml")
            return content
    raise InputError(f"unknown study {name!r}; valid: {', '.join(names(folders))}")


def read_study(name: str, scale: str | None = None, folders: Sequence[Path] = ()) -> Study:
    """A study at one scale.

    Args:
        name: of the study.
        scale: such as ``digits``; ``None`` for the first that its file has.
        folders: further configuration folders (``--config-dir``).

    Raises:
        InputError: there is no such study or scale, or its file has an unknown key, a value of
            another type, or a command that does not exist.
    """
    content = content_of(name, folders)
    where = f"study {name}"
    _check(where, content, _KEYS)
    scales = content.get("scales", {})
    scale = next(iter(scales), "digits") if scale is None else scale
    if scale not in scales:
        raise InputError(f"scale={scale} is not one of {where}; valid: {', '.join(scales)}")
    own = scales[scale] or {}
    _check(f"{where}, scale {scale}", own, _SCALE_KEYS)
    shared = _texts(own.get("all", []))
    works = {
        key: _plan(f"{where}, work {key}", entry, _WORK_KEYS, scale, shared)
        for key, entry in content.get("works", {}).items()
    }
    rows: list[Row] = []
    axes = content.get("axes", {}) | own.get("axes", {})
    default = content.get("model", PRUNED)
    if axes:
        shared_by = WorkPlan(content.get("command", "run"), tuple(shared))
        rows += _crossed(axes, shared_by, content.get("constant", {}), default, "paper" in content)
    for entry in content.get("rows", []):
        named = entry.get("is") if isinstance(entry, dict) else ""
        _check(f"{where}, row {named}", entry, _ROW_KEYS)
        if scale not in entry.get("scales", [scale]):
            continue
        labels = {key: str(value) for key, value in entry.get("is", {}).items()}
        plan = None
        said = entry.get("set", {})
        if isinstance(said, list) or scale in said or "all" in said:
            plan = _plan(f"{where}, row {labels}", entry, _ROW_KEYS, scale, shared)
        seeds = tuple(entry["seeds"]) if "seeds" in entry else None
        model = entry.get("model", default)
        group = entry.get("group", "")
        rows.append(Row(labels, plan, entry.get("paper", {}), model, seeds, group))
    if not rows:
        raise InputError(f"{where} has no rows at scale={scale}")
    return Study(
        name=name,
        scale=scale,
        title=content.get("title", name),
        rows=tuple(rows),
        works=works,
        seeds=tuple(own.get("seeds", content.get("seeds", [0]))),
        columns=content.get("columns", {}),
        paper=content.get("paper", {}),
        report=content.get("report", REPORT),
        needs=tuple(own.get("needs", ())),
        composed=bool(content.get("composed", False)),
        parameters=tuple(own.get("parameters", ())),
        note=" ".join(str(content.get("note", "")).split() + str(own.get("note", "")).split()),
    )


def _crossed(
    axes: Mapping[str, Mapping[Any, Any]],
    shared: WorkPlan,
    constant: Mapping[str, Any],
    model: str,
    in_paper: bool,
) -> list[Row]:
    """One row for each combination of labels; a label's value ``null`` leaves it out."""
    for axis, values in axes.items():
        if not isinstance(values, dict):
            raise InputError(f"axis {axis}={values!r} must be a mapping of labels to overrides")
    options = [
        [(axis, str(label), value) for label, value in values.items() if value is not None]
        for axis, values in axes.items()
    ]
    rows = []
    for combination in product(*options):
        labels = {axis: label for axis, label, _ in combination}
        overrides = [text for _, _, values in combination for text in _texts(values)]
        plan = WorkPlan(shared.command, (*shared.overrides, *overrides))
        paper = {**labels, **constant} if in_paper else {}
        rows.append(Row(labels, plan, paper, model))
    return rows


def _plan(
    where: str, entry: Mapping[str, Any], keys: Mapping[str, Any], scale: str, shared: Sequence[str]
) -> WorkPlan:
    _check(where, entry, keys)
    command = entry.get("command", "run")
    if command not in COMMANDS:
        raise InputError(f"{where}: command={command!r}; valid: {', '.join(COMMANDS)}")
    said = entry.get("set", [])
    if isinstance(said, dict):
        said = [*_texts(said.get("all", [])), *_texts(said.get(scale, []))]
    own = _texts(said)
    # What all runs share is of `run`; the other commands say all of theirs.
    before = list(shared) if command in ("run", "prune") else []
    return WorkPlan(
        command,
        (*before, *own),
        bool(entry.get("whole", False)),
        entry.get("seed"),
        entry.get("choice_seed"),
    )


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list | None):
        raise InputError(f"{values!r} in a study must be a list of overrides")
    return [str(value) for value in values or []]


def _check(where: str, entry: Any, keys: Mapping[str, Any]) -> None:
    """Refuse unknown keys and values of another type.

    Raises:
        InputError: one is there.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {entry!r} must be a mapping with keys of {', '.join(keys)}")
    for key, value in entry.items():
        if key not in keys:
            raise InputError(f"{where}: unknown key {key!r}; valid: {', '.join(keys)}")
        if not isinstance(value, keys[key]):
            raise InputError(f"{where}: {key}={value!r} is a {type(value).__name__}")
        if key == "seeds" and not all(isinstance(seed, int) for seed in value):
            raise InputError(f"{where}: seeds={value} must be whole numbers")
