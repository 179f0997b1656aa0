"""Runs as reports know them: plain records, and curves that are read when they are asked for."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinyfusion.errors import InputError

BENCHMARK_FILE = "benchmark.json"
DECISION_SEED = "decision_seed"
RESULTS = ("recovered", "pruned", "model", "images")
"""Models whose figures are the result of a run: the first that it has."""
REFERENCE = "source"
"""The model that a run began with, by its name among the figures."""

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """What a run's folder tells.

    Attributes:
        folder: its folder.
        command: such as ``"run"``; ``""`` where an earlier version did not record it.
        state: ``"failed"`` if its log ends in an error, ``"unfinished"`` if it was interrupted or
            is still running.
        reason: the last line of the log of a run that is not finished.
        command_line: the command that made it; ``""`` if it was not recorded.
        config: resolved configuration. If the decision came from a file, the keys of
            `DECIDING` are those of the run that made it, where the file holds them.
        models: figures by model: ``source``, ``pruned``, ``recovered`` and so on, ``model`` of a
            command that scores one, ``images`` of scored images.
        decision: method, kept units and so on, see `Decision.summary`; empty if none was made.
        protocol: how the samples were drawn.
        floor: FID between halves of the real data.
        times: seconds by phase.
        seconds: how long it took; ``None`` if it was not recorded.
        finished: when, ISO 8601.
        version: of this package.
        libraries: versions of the libraries that compute.
        recorded: curves of a run that is known from a record alone, see `curves`.
    """

    folder: Path
    command: str = ""
    state: Literal["finished", "unfinished", "failed"] = "finished"
    reason: str = ""
    command_line: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    floor: Mapping[str, float] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    finished: str = ""
    version: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    recorded: Mapping[str, Points] = field(default_factory=dict)

    def setting(self, path: str) -> Any:
        """A value of the configuration by its dotted path; ``None`` if it has none."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def choices(self) -> dict[str, str]:
        """Files of the configuration that its command line names: ``{"recovery": "kd"}``."""
        try:
            words = shlex.split(self.command_line)
        except ValueError:  # written by hand
            return {}
        pairs = (word.partition("=") for word in words)
        return {
            key: value
            for key, _, value in pairs
            if value.isidentifier() and isinstance(self.config.get(key), Mapping)
        }

    @property
    def result(self) -> Mapping[str, Any]:
        """Figures of the model that the run made or scored; empty if it has none."""
        return next((self.models[name] for name in RESULTS if name in self.models), {})

    @property
    def reference(self) -> Mapping[str, Any]:
        """Figures of the model that it began with; empty if it has none."""
        return self.models.get(REFERENCE, {})

    @property
    def kept(self) -> tuple[int, ...] | None:
        """Blocks that stayed; ``None`` if no depth was cut."""
        kept = self.decision.get("kept")
        if isinstance(kept, list) and all(isinstance(unit, int) for unit in kept):
            return tuple(kept)
        return None

    def curves(self) -> dict[str, Points]:
        """Figures over steps, by phase and name such as ``recover/train/loss``.

        A resumed phase has several logs; each is taken from its first step on in place of what
        the earlier ones say of these steps, which were repeated.

        Raises:
            InputError: a log can't be read.
        """
        found: dict[str, Points] = dict(self.recorded)
        files = sorted(
            self.folder.glob("**/log/version_*/metrics.csv"),
            key=lambda file: (file.parts[:-2], _number(file.parent.name)),
        )
        for file in files:
            phase = "/".join(file.relative_to(self.folder).parts[:-3])
            curves = _curves(file)
            begin = min((points[0][0] for points in curves.values()), default=0)
            mine = [name for name in found if name.startswith(f"{phase}/")]
            for name in mine:
                found[name] = [point for point in found[name] if point[0] < begin]
            for name, points in curves.items():
                found.setdefault(f"{phase}/{name}", []).extend(points)
        return {name: points for name, points in found.items() if points}

    def picture(self, name: str) -> Path | None:
        """A picture that the run left, such as ``samples.png``, in its folder or a phase's."""
        found = [self.folder / name, *sorted(self.folder.glob(f"*/{name}"))]
        return next((file for file in found if file.is_file()), None)


def _curves(file: Path) -> dict[str, Points]:
    curves: dict[str, Points] = {}
    try:
        with open(file, encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                for name, text in row.items():
                    if name not in ("step", "epoch") and text:
                        value = float(text)
                        if math.isfinite(value):
                            curves.setdefault(name, []).append((int(row["step"]), value))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{file} can't be read: {error}") from None
    return curves


def _number(version: str) -> int:
    digits = version.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0
