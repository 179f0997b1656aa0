"""Short names of runs, by what tells them apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyfusion.report.differences import heading, shown
from tinyfusion.report.runs import DECISION_SEED, Run

SEEDS = ("seed", DECISION_SEED)
"""What runs may differ in that are one row."""


def common_folder(runs: Sequence[Run]) -> Path:
    """The deepest folder that all runs lie below."""
    if not runs:
        return Path.cwd()
    return Path(os.path.commonpath([run.folder.absolute().parent for run in runs]))


def run_name(run: Run, below: Path) -> str:
    """A run's folder, relative to one that all lie below."""
    return os.path.relpath(run.folder.absolute(), below)


def labels_of(runs: Sequence[Run], settings: Sequence[str]) -> list[str]:
    """A short name for each run, by the settings that tell them apart: ``learned, keep=14``.

    Args:
        runs: the runs.
        settings: keys of columns, see `RunTable.settings`; those that are not needed to tell the
            runs apart are left out, the last first.
    """
    below, found = common_folder(runs), []
    methods = [run.decision.get("method") for run in runs]
    last = [key for key in SEEDS if key in settings]
    keys = [*(key for key in settings if key not in ("run", "method", *SEEDS)), *last]
    cells = {key: [shown(run, key) for run in runs] for key in keys}
    needed = ["command", *needed_keys({"method": methods, **cells})]
    cells = {key: values for key, values in cells.items() if key in needed}
    ends = [heading(key).split(".")[-1] for key in cells]
    for place, run in enumerate(runs):
        parts = [str(methods[place])] if methods[place] else []
        for key, name in zip(cells, ends, strict=True):
            value = cells[key][place]
            if key == "command":
                parts.append(str(value))
            elif value is not None:
                name = name if ends.count(name) == 1 else heading(key)
                parts.append(f"{name}={value}")
        found.append(", ".join(parts) or run_name(run, below))
    numbered: dict[str, int] = {}
    for place, label in enumerate(found):
        numbered[label] = numbered.get(label, 0) + 1
        if numbered[label] > 1:
            found[place] = f"{label} ({numbered[label]})"
    return found


def needed_keys(cells: Mapping[str, Sequence[Any]]) -> list[str]:
    """Keys, in their order, without those that tell no more rows apart than the ones before."""
    needed: list[str] = []
    kinds = 1
    for key in cells:
        more = len({str(line) for line in zip(*(cells[k] for k in [*needed, key]), strict=True)})
        if more > kinds:
            needed, kinds = [*needed, key], more
    return needed
