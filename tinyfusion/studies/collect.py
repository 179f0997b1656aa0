"""Reading the folders of finished runs into rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from tinyfusion.errors import InputError
from tinyfusion.files import read_json
from tinyfusion.text import shell_word

METRICS_FILE, CONFIG_FILE = "metrics.json", "config.yaml"


@dataclass(frozen=True)
class FinishedRun:
    """One finished `tinyfusion run`.

    Attributes:
        folder: its folder.
        method: the pruner that decided.
        kept: the blocks it kept.
        removed: branches that went from these.
        seed: the run's seed.
        config: resolved configuration.
        models: figures by model: ``source``, ``pruned``, ``recovered``, ``recovered (live
            weights)``.
        protocol: how the samples were drawn.
        floor: FID between halves of the real data.
        times: seconds by part of the run, such as ``prune``.
    """

    folder: Path
    method: str
    kept: tuple[int, ...]
    removed: tuple[str, ...]
    seed: int
    config: dict[str, Any]
    models: dict[str, dict[str, float]]
    protocol: dict[str, Any]
    floor: dict[str, float]
    times: dict[str, float]

    def setting(self, path: str) -> Any:
        """A value of the configuration by its dotted path; ``None`` if it has none."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(folder: Path | str) -> FinishedRun:
    """Read one run's folder.

    Raises:
        InputError: the run is not finished, or the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder} holds no run: {CONFIG_FILE} is missing")
    if not (folder / METRICS_FILE).is_file():
        raise InputError(
            f"{folder} is not finished; resume it with: tinyfusion run "
            f"{shell_word('resume', folder.absolute())}"
        )
    metrics = read_json(folder / METRICS_FILE, "metrics")
    config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    times = folder / "times.json"
    return FinishedRun(
        folder=folder,
        method=metrics.get("decision", {}).get("method", ""),
        kept=tuple(metrics.get("decision", {}).get("kept", ())),
        removed=tuple(metrics.get("decision", {}).get("removed", ())),
        seed=config["seed"],
        config=config,
        models=metrics.get("models", {}),
        protocol=metrics.get("protocol", {}),
        floor=metrics.get("floor", {}),
        times=read_json(times, "times") if times.is_file() else {},
    )


def read_sweep(folder: Path | str) -> list[FinishedRun]:
    """Read every finished run below a folder, at any depth, in the order of their names.

    Raises:
        InputError: no run below the folder is finished.
    """
    folder = Path(folder)
    found = sorted(file.parent for file in folder.rglob(METRICS_FILE))
    # `prune` and `recover` leave figures of their own, but no scored student.
    runs = [run for run in map(read_run, found) if "recovered" in run.models and run.protocol]
    if not runs:
        raise InputError(f"{folder} holds no finished run (no {METRICS_FILE} below it)")
    return runs


def summarise(
    runs: Iterable[FinishedRun], by: Sequence[str], figures: Sequence[str], model: str = "recovered"
) -> list[dict[str, Any]]:
    """Mean and standard deviation of figures over the runs that agree in some settings.

    Args:
        runs: finished runs.
        by: dotted paths into the configuration, or ``method``.
        figures: names such as ``fid``.
        model: which of a run's models.

    Returns:
        One row per combination, in order of first appearance: the settings, ``runs`` (their
        number), and for each figure ``(mean, standard deviation)``, or the value of a single run.
    """
    grouped: dict[tuple[Any, ...], list[FinishedRun]] = {}
    for run in runs:
        key = tuple(run.method if path == "method" else _plain(run.setting(path)) for path in by)
        grouped.setdefault(key, []).append(run)
    rows = []
    for key, members in grouped.items():
        row: dict[str, Any] = dict(zip(by, key, strict=True)) | {"runs": len(members)}
        for figure in figures:
            values = [run.models[model][figure] for run in members if figure in run.models[model]]
            if len(values) > 1:
                row[figure] = (mean(values), stdev(values))
            elif values:
                row[figure] = values[0]
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value
