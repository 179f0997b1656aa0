"""Outcomes of the jobs of one command line: failures on one line each, and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tinyfusion.errors import REPORTED, InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.runtime.folder import discard, entries
from tinyfusion.runtime.report import report

SWEEP_FILE = "multirun.yaml"
"""What Hydra writes into the folder of a sweep."""

RESULTS_FILE = "optimization_results.yaml"
"""What Hydra's optimisers write there at the end."""

_ELSEWHERE = ".outcomes"
"""Where jobs that a launcher runs in other processes leave their outcome."""


@dataclass
class Session:
    """What the jobs that one command line starts share.

    Attributes:
        failures: messages of the jobs that failed, with their exit status.
        done: number of jobs that did not.
        sweep: folder of the sweep, if it is one.
        existing: the deepest folder on the path of the run or sweep that existed before.
        begun: a job's folder has been made.
        quiet: keep failures to itself.
        refusal: why Hydra was stopped before it made the folder of a single run.
    """

    failures: list[tuple[str, int]] = field(default_factory=list)
    done: int = 0
    sweep: Path | None = None
    existing: Path | None = None
    begun: bool = False
    quiet: bool = False
    refusal: InputError | None = None

    @contextmanager
    def reporting(self, where: str = "") -> Iterator[None]:
        """Run one job: what the user can mend is one line on stderr and does not end the others.

        Args:
            where: name of the job, if there are several.
        """
        try:
            yield
        except REPORTED as error:
            status = 2 if isinstance(error, InputError) else 1
            self._note(f"{where}: {error}" if where else str(error), status)
        else:
            self.done += 1

    def _note(self, message: str, status: int) -> None:
        message = " ".join(message.split())
        self.failures.append((message, status))
        if not self.quiet:
            report(message)

    def leave(self, sweep: Path, number: int) -> None:
        """Leave the outcome of a job, run in another process, for the command line.

        Args:
            sweep: folder of the sweep.
            number: number of the job in it.
        """
        write_json(sweep / _ELSEWHERE / f"{number:06}.json", self.failures)

    def collect(self) -> None:
        """Report the outcomes of jobs that ran in other processes."""
        folder = self.sweep / _ELSEWHERE if self.sweep is not None else None
        if folder is None or not folder.is_dir():
            return
        for file in sorted(folder.glob("*.json")):
            failures = read_json(file, "outcome of a job")
            for message, status in failures:
                self._note(message, status)
            self.done += not failures
            file.unlink()
        discard(folder)

    def _tell_best(self) -> None:
        """Say what an optimiser has found."""
        file = self.sweep / RESULTS_FILE if self.sweep is not None else None
        if file is None or not file.is_file():
            return
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "best_params" in found:
            best = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
            print(f"search: best value {found['best_value']:.6g} with {best}; {file}")

    def close(self) -> int:
        """Summarise a sweep with failures on stderr and return the exit status."""
        self.collect()
        self._tell_best()
        if not self.failures:
            return 0
        if self.sweep is not None and entries(self.sweep) == {SWEEP_FILE}:
            (self.sweep / SWEEP_FILE).unlink()
            discard(self.sweep, self.existing)
        total = len(self.failures) + self.done
        if total > 1:
            print(f"tinyfusion: {len(self.failures)} of {total} runs failed", file=sys.stderr)
        return max(status for _, status in self.failures)
