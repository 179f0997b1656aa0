"""What is known of a finished work, small enough to be committed: figures, decision, versions.

A file of records has one JSON object a line. Versions of modules, which most records share, stand
in it once, as lines of their own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyfusion.decision import Decision, find_decision
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_text
from tinyfusion.report.reading import read_run
from tinyfusion.report.runs import Run
from tinyfusion.runtime.folder import FINISHED_FILE
from tinyfusion.studies.harvest import curves_of, results_of, rounded
from tinyfusion.studies.identity import digest_of_folder
from tinyfusion.version import changed_modules

TIMES_FILE = "times.json"
OUTPUTS = ("recovered", "recovered_live", "model", "model_live", "pruned")
"""Folders of models that other works may read."""


@dataclass(frozen=True)
class Record:
    """A finished work.

    Attributes:
        identity: see `studies.identity.identity`.
        command: the command.
        overrides: its command line, without folders.
        results: content of its ``metrics.json``, without figures of models that no row shows.
        decision: what was kept, and by whom; empty where nothing was decided.
        outputs: digests of the models that it wrote, by folder.
        curves: figures over steps, ``[[step, value], ...]`` by name.
        seconds: how long it took.
        finished: when, ISO 8601.
        version: of this package.
        code: key of the versions of the modules it imported.
        libraries: versions of the libraries that compute.
    """

    identity: str
    command: str
    overrides: tuple[str, ...]
    results: Mapping[str, Any]
    decision: Mapping[str, Any]
    outputs: Mapping[str, str]
    seconds: float
    finished: str
    version: str
    code: str
    curves: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)

    def figures(self, model: str) -> Mapping[str, float]:
        """Figures of one of its models; empty if it has none of that name."""
        models = self.results.get("models", {"model": self.results.get("model", {})})
        return models.get(model, {})


class Records:
    """Records by identity, and the versions of modules that they came from.

    Args:
        files: files of records; those that are not there are none.

    Raises:
        InputError: one can't be read.
    """

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self._records: dict[str, Record] = {}
        self.code: dict[str, dict[str, str]] = {}
        for file in files:
            self._read(file)

    def _read(self, file: Path) -> None:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values = json.loads(line)
                if "modules" in values:
                    self.code[values["code"]] = values["modules"]
                    continue
                values["overrides"] = tuple(values["overrides"])
                record = Record(**values)
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{file}, line {number} is no record: {error}") from None
            self._records[record.identity] = record

    def __iter__(self) -> Iterator[str]:
        """Identities of all records."""
        return iter(self._records)

    def get(self, identity: str) -> Record | None:
        """The record of a work, if there is one."""
        return self._records.get(identity)

    def add(self, record: Record, modules: Mapping[str, str] | None = None) -> None:
        """Take in a record, and the versions of the modules it came from."""
        self._records[record.identity] = record
        if modules is not None:
            self.code[record.code] = dict(modules)

    def take(self, others: Records) -> None:
        """Take in records that are not known yet."""
        self._records = others._records | self._records
        self.code = others.code | self.code

    def stale(self, record: Record) -> list[str]:
        """Modules that have changed since; `version.changed_modules`."""
        return changed_modules(self.code.get(record.code, {}))

    def write(self, file: Path, identities: Iterable[str]) -> None:
        """Write the records of some works, in order of their command lines."""
        chosen = {i: self._records[i] for i in identities if i in self._records}
        records = sorted(chosen.values(), key=lambda r: (r.command, r.overrides, r.identity))
        lines = [
            {"code": code, "modules": self.code[code]}
            for code in dict.fromkeys(record.code for record in records)
            if code in self.code
        ]
        lines += [asdict(record) for record in records]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        write_text(file, text)


def is_finished(folder: Path) -> bool:
    """Whether a run's folder holds one that ended well."""
    return (folder / FINISHED_FILE).is_file()


def record_of(
    folder: Path, identity: str, command: str, overrides: Iterable[str]
) -> tuple[Record, dict[str, str]]:
    """The record of a finished run's folder, and the versions of the modules it imported.

    Raises:
        InputError: a file of it can't be read.
    """
    finished = read_json(folder / FINISHED_FILE, "the end of a run")
    times = folder / TIMES_FILE
    # Of a run that was resumed, the times of all its parts.
    seconds = finished.get("seconds", 0.0)
    if times.is_file():
        seconds = sum(v for k, v in read_json(times, "times").items() if "memory" not in k)
    record = Record(
        identity=identity,
        command=command,
        overrides=tuple(overrides),
        results=results_of(folder),
        decision=_decision(folder),
        outputs={
            name: digest_of_folder(folder / name)
            for name in OUTPUTS
            if (folder / name).is_dir()
        },
        seconds=round(float(seconds), 1),
        finished=finished["finished"],
        version=finished["version"],
        code=finished.get("code", ""),
        curves=curves_of(folder),
        libraries=finished.get("libraries", {}),
    )  # fmt: skip
    return record, finished.get("modules", {})


def run_of(record: Record, folder: Path, config: Mapping[str, Any]) -> Run:
    """A work's run, as reports read it: from its folder if that is here, else from its record.

    Args:
        record: its record.
        folder: where it ran.
        config: its resolved configuration.

    Raises:
        InputError: a file of the folder can't be read.
    """
    if is_finished(folder):
        return read_run(folder)
    return Run(
        folder=folder,
        command=record.command,
        command_line=shlex.join(["tinyfusion", record.command, *record.overrides]),
        config=config,
        models=record.results.get("models") or {"model": record.results.get("model", {})},
        decision=record.decision,
        protocol=record.results.get("protocol") or {},
        floor=record.results.get("floor") or {},
        seconds=record.seconds,
        finished=record.finished,
        version=record.version,
        libraries=record.libraries,
        recorded={name: [(s, v) for s, v in points] for name, points in record.curves.items()},
    )


def _decision(folder: Path) -> dict[str, Any]:
    """What of a decision is needed to apply it again; its evidence stays in the folder."""
    file = find_decision(folder)
    if file is None:
        return {}
    decision = Decision.load(file)
    values = decision.to_dict()
    del values["config"], values["probabilities"]
    # Channel by channel, a choice of widths is long; it is made again where it is needed.
    if values.get("resized") is not None:
        return decision.summary()
    values["scores"] = {
        key: entry
        for key, entry in values["scores"].items()
        if isinstance(entry, int | float) or key == "marks"
    }
    return rounded(values)
