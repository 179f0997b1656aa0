"""Command lines that make up a study: finished ones are skipped, killed ones resumed."""

from __future__ import annotations

import os
import re
import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyfusion.decision import Decision, find_decision
from tinyfusion.errors import InputError
from tinyfusion.interrupts import Interrupted, handled
from tinyfusion.runtime.folder import COMMAND_FILE
from tinyfusion.settings.overrides import as_typed, first_text, quote, split
from tinyfusion.studies.collect import CONFIG_FILE, METRICS_FILE

NOT_OF_PRUNE = ("evaluation", "recovery", "stages", "updates", "teacher", "start")
"""Settings that `tinyfusion prune` does not have."""

NOT_OF_RESULTS = ("trainer", "output_root", "logger", "callbacks", "name", "hydra", "--config-dir")
"""Settings that may change from one process of a study to the next."""

PLACES = ("decision", "iterative.previous", "pruner.losses", "pruner.marks")
"""Settings that say where something lies, which changes where a study's folder is moved."""


@dataclass(frozen=True)
class Job:
    """One command line of a study.

    Attributes:
        folder: where it runs; a finished folder is skipped.
        command: ``prune`` or ``run``.
        overrides: its overrides without the folder.
        pruner: how the report calls the way of choosing blocks.
        recovery: how it calls the recovery; empty for ``prune``.
        seed: the seed.
        decided: folder of the job that makes the decision, or the decision's file; ``None`` for
            a job that makes its own.
        by_units: whether of the decision only the units count: a finished job that differs in
            nothing else serves for it, see `twin_of`.
    """

    folder: Path
    command: str
    overrides: tuple[str, ...]
    pruner: str
    recovery: str
    seed: int
    decided: Path | None = None
    by_units: bool = False

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return (self.folder / METRICS_FILE).is_file()

    def arguments(self, passed_on: Sequence[str] = ()) -> list[str]:
        """The command line; it resumes a run that has begun.

        Args:
            passed_on: overrides for every job, which win over its own; those of settings that
                ``prune`` does not have are left out there.
        """
        if (self.folder / CONFIG_FILE).is_file():
            return [self.command, f"resume={self.folder}"]
        own, passed_on = self.settings(passed_on)
        decision = []
        if self.decided is not None:
            decision = [f"decision={quote(decision_file(self.decided))}"]
        return [self.command, *own, *decision, f"hydra.run.dir={quote(self.folder)}", *passed_on]

    def settings(self, passed_on: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """Its own overrides that ``passed_on`` does not replace, and those passed on to it."""
        if self.command == "prune":
            passed_on = [text for text in passed_on if _key(text).split(".")[0] not in NOT_OF_PRUNE]
        given = set(map(_key, passed_on))
        return [text for text in self.overrides if _key(text) not in given], list(passed_on)

    def check_same(self, passed_on: Sequence[str] = ()) -> None:
        """Refuse a folder that holds another run, such as a shorter one.

        Args:
            passed_on: overrides for every job.

        Raises:
            InputError: the folder's command line has other settings.
        """
        file = self.folder / COMMAND_FILE
        if not file.is_file():
            return
        there = self._of_results(shlex.split(file.read_text(encoding="utf-8"))[2:])
        own, passed_on = self.settings(passed_on)
        here = self._of_results([*own, *passed_on])
        if there != here:
            parts = {"with": there - here, "without": here - there}
            how = " and ".join(f"{k} {' '.join(sorted(v))}" for k, v in parts.items() if v)
            raise InputError(f"{self.folder} was run {how}: give another --root, or remove it")

    def _of_results(self, overrides: Sequence[str]) -> set[str]:
        """See `_of_results`; with what the checkpoint brings, which only some runs record."""
        from tinyfusion.settings.brought import brought_along  # imports torch

        checkpoints = [text for text in overrides if _key(text) == "checkpoint"]
        file = first_text(split(checkpoints[-1])[1] or "") if checkpoints else None
        brought = brought_along(self.command, file, overrides) if file is not None else []
        return _of_results([*brought, *overrides])


def _of_results(overrides: Iterable[str]) -> set[str]:
    """The overrides that results depend on, as they are recorded."""
    return {
        as_typed(text)
        for text in overrides
        if _key(text).split(".")[0] not in NOT_OF_RESULTS and _key(text) not in PLACES
    }


def _key(override: str) -> str:
    return split(override)[0].lstrip("+~")


def decision_file(place: Path) -> Path:
    """The record of a decision in a run's folder; a file is taken as it is."""
    if place.is_file():
        return place
    return find_decision(place) or place / Decision.file_name


def twin_of(job: Job, others: Iterable[Job]) -> Job | None:
    """A finished job that would do the very same work: equal settings, and the same units stay.

    Args:
        job: one with `Job.by_units`, whose decision is made.
        others: all jobs.
    """

    def work(one: Job) -> tuple[Any, ...]:
        assert one.decided is not None
        found = Decision.load(decision_file(one.decided))
        return one.command, _of_results(one.overrides), found.kept, found.removed

    return next(
        (
            other
            for other in others
            if other.by_units and other.done and other.folder != job.folder
            and work(other) == work(job)
        ),
        None,
    )  # fmt: skip


def carry_out(
    jobs: Iterable[Job],
    command: Callable[[list[str]], int],
    passed_on: Sequence[str] = (),
    others: Iterable[Job] = (),
) -> list[Job]:
    """Run what is not finished, in order.

    A job that fails does not keep the others from being done, except those that wait for its
    decision. One for which a finished job serves (`Job.by_units`) becomes a link to its folder.

    Args:
        jobs: the jobs, decisions before what uses them.
        command: ``tinyfusion.cli.main``.
        passed_on: overrides for every job.
        others: jobs that other processes carry out.

    Returns:
        The jobs that failed or could not begin.

    Raises:
        InputError: a job's folder holds one with other settings; nothing is run then.
        Interrupted: a job was interrupted.
    """
    jobs = list(jobs)
    every = [*jobs, *others]
    for job in jobs:
        job.check_same(passed_on)
    failed: list[Job] = []
    for job in jobs:
        if job.done:
            continue
        waits = job.decided is not None and not decision_file(job.decided).is_file()
        if job.by_units and not waits and not job.folder.exists():
            job.folder.unlink(missing_ok=True)  # a link to what is gone
            twin = twin_of(job, every)
            if twin is not None:
                job.folder.parent.mkdir(parents=True, exist_ok=True)
                job.folder.symlink_to(os.path.relpath(twin.folder, job.folder.parent))
                print(f"{job.folder}: the same work as {twin.folder}, linked")
                continue
        status = 1 if waits else command(job.arguments(passed_on))
        if status > 128:
            raise Interrupted(status - 128)
        if status:
            failed.append(job)
    return failed


def run_study(
    name: str,
    plan: Callable[[], list[Job]],
    report: Callable[[list[Job]], str],
    command: Callable[[list[str]], int] | None,
    passed_on: Sequence[str] = (),
    part: tuple[int, int] = (0, 1),
) -> int:
    """Carry out a study's jobs, print its report and what failed; what every study's script does.

    Args:
        name: of the script, for messages.
        plan: makes the jobs.
        report: collects what is finished.
        command: ``tinyfusion.cli.main``; ``None`` to run nothing.
        passed_on: overrides for every job.
        part: share to carry out and number of shares, see `share_of`.

    Returns:
        Exit status: 0, 1 if a job failed, 2 for bad input, 128 and the number of the signal if
        interrupted.
    """
    failed: list[Job] = []
    status = 0
    try:
        with handled():
            jobs = plan()
            if command is not None:
                number, parts = part
                failed = carry_out(shares(jobs, parts)[number], command, passed_on, jobs)
            print(report(jobs))
    except Interrupted as stop:
        print(f"{name}: {stop}; the same command resumes it", file=sys.stderr)
        return stop.status
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = 2
    for job in failed:
        print(f"{name}: {job.folder} failed", file=sys.stderr)
    return status or int(bool(failed))


def shares(jobs: Sequence[Job], parts: int) -> list[list[Job]]:
    """Divide jobs among processes: a decision stays with the runs that use it.

    Args:
        jobs: all jobs in order.
        parts: number of processes.

    Returns:
        For every process its jobs, in the order given, the numbers about equal.
    """
    units: dict[Path, list[int]] = {}
    for index, job in enumerate(jobs):
        units.setdefault(job.decided or job.folder, []).append(index)
    shared: list[list[int]] = [[] for _ in range(parts)]
    for unit in sorted(units.values(), key=len, reverse=True):
        min(shared, key=len).extend(unit)
    return [[jobs[index] for index in sorted(indices)] for indices in shared]


def seed_list(text: str) -> list[int]:
    """Seeds as given on a command line: ``0,1,2``.

    Raises:
        argparse.ArgumentTypeError: not whole numbers, or one is given twice.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text!r}: give seeds as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise ArgumentTypeError(f"{text!r} gives a seed twice")
    return seeds


def share_of(text: str) -> tuple[int, int]:
    """A share and the number of shares, as given on a command line: ``0/2``.

    Raises:
        argparse.ArgumentTypeError: not of this form, or a share that does not exist.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise ArgumentTypeError(f"{text!r}: give K/N, of N=2 shares 0/2 or 1/2")
    return int(found[1]), int(found[2])


def two_or_more(text: str) -> int:
    """A number as given on a command line.

    Raises:
        argparse.ArgumentTypeError: not a whole number, or less than 2.
    """
    if not text.isdecimal() or int(text) < 2:
        raise ArgumentTypeError(f"{text!r} must be a whole number, at least 2")
    return int(text)


def options_and_overrides(
    parser: ArgumentParser, argv: Sequence[str] | None
) -> tuple[Namespace, list[str]]:
    """Options of a study's script, and the overrides for every job that stand among them.

    Leaves with the parser's message at an option that it does not know.
    """
    options, overrides = parser.parse_known_args(argv)
    unknown = [text for text in overrides if text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options, overrides
