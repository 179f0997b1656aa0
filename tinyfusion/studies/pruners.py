"""Report on a comparison of pruners: scores, losses before recovery, and whether these foretell.

Works with whatever part of the study is finished.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from tinyfusion.checkpoints import load
from tinyfusion.errors import InputError
from tinyfusion.figures.scatter import Point, scatter
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.pruners.contract import calibration_batch
from tinyfusion.settings.compose import build
from tinyfusion.studies.collect import FinishedRun, read_run, summarise
from tinyfusion.studies.digits import WIDTH
from tinyfusion.studies.jobs import Job

CALIBRATION_SAMPLES = 1024
LEAST_POINTS = 4
"""Of fewer pruners no rank correlation is given."""

DRAWS = 20_000

COMPARED = ("kd", "masked_kd", "finetune")
"""Recoveries that all pruners may have."""

FIGURES = {
    "fid": Column("FID", ".3f"),
    "held_out_loss": Column("held-out loss", ".4f"),
    "teacher_distance": Column("distance to teacher", ".5f"),
    "precision": Column("precision", ".3f"),
    "recall": Column("recall", ".3f"),
}

MODELS = {
    "recovered": "Recovered, averaged weights",
    "recovered (live weights)": "Recovered, live weights",
    "pruned": "Right after the cut",
}


@dataclass(frozen=True)
class Student:
    """One finished run of the study.

    Attributes:
        job: what was asked for.
        run: what came of it.
        calibration_loss: loss right after the cut on the study's calibration batch.
    """

    job: Job
    run: FinishedRun
    calibration_loss: float


def report(root: Path, jobs: Sequence[Job]) -> str:
    """Write ``report.md``, ``report.json`` and ``pruners.png`` of what is finished.

    Args:
        root: folder of the study.
        jobs: its jobs (`studies.digits.plan`).

    Returns:
        The text of ``report.md``.

    Raises:
        InputError: no run is finished.
    """
    students = finished(jobs)
    if not students:
        raise InputError(f"{root} holds no finished run of the study yet")
    pruners = list(dict.fromkeys(job.pruner for job in jobs))
    recoveries = [
        name for name in COMPARED if len({s.job.pruner for s in students if is_of(s, name)}) > 1
    ]
    overview = [overview_row(students, pruner, recoveries) for pruner in pruners]
    overview = [row for row in overview if row["seeds"]]
    correlations = [
        {"recovery": name, "figure": figure, **found}
        for name in recoveries
        for figure in ("fid", "held_out_loss")
        if (found := foretold(students, name, figure)) is not None
    ]
    text = "\n".join(
        [
            head(students, jobs),
            "## Pruners\n",
            markdown_table(overview, overview_columns(recoveries)),
            "## Does the loss right after the cut foretell the recovered model?\n",
            said(correlations),
            "## Blocks that stay\n",
            *blocks_that_stay(students),
            "",
            "## All figures\n",
            *(
                f"### {title}\n\n{markdown_table(rows(students, model), all_columns())}"
                for model, title in MODELS.items()
            ),
        ]
    )
    write_text(root / "report.md", text)
    write_json(
        root / "report.json",
        {
            "teacher": students[0].run.models["source"],
            "overview": overview,
            "correlations": correlations,
            "tables": {model: rows(students, model) for model in MODELS},
        },
    )
    panels = {f"recovery={name}": points(students, name) for name in recoveries}
    if panels:
        scatter(
            panels,
            root / "pruners.png",
            "calibration loss right after the cut",
            "FID after recovery",
        )
    return text


def finished(jobs: Iterable[Job]) -> list[Student]:
    """Runs that ran to their end and were scored, with the loss right after the cut."""
    losses: dict[Path, float] = {}
    students = []
    for job in jobs:
        if job.command != "run" or not job.done or job.decided is None:
            continue
        run = read_run(job.folder)
        if "fid" not in run.models.get("recovered", {}):
            continue
        if job.decided not in losses:
            losses[job.decided] = calibration_loss(run)
        students.append(Student(job, run, losses[job.decided]))
    return students


def calibration_loss(run: FinishedRun) -> float:
    """Loss of a run's student right after the cut, on one batch that all runs of a study share.

    Training images at seed 0, whatever the run's own; kept in ``calibration.json``.
    """
    file = run.folder / "calibration.json"
    if not file.is_file():
        process, source = build(run.config["process"]), build(run.config["data"])
        batch = calibration_batch(process, source, CALIBRATION_SAMPLES, seed=0)
        losses = batch(load(str(run.folder / "pruned")))
        write_json(file, {"num_samples": CALIBRATION_SAMPLES, "seed": 0, **losses})
    return float(read_json(file, "calibration loss")["loss"])


def is_of(student: Student, recovery: str) -> bool:
    """Whether a student belongs to the comparison of pruners under a recovery."""
    return student.job.recovery == recovery


def spread(values: Sequence[float]) -> Any:
    """Mean and standard deviation, or the only value."""
    return (mean(values), stdev(values)) if len(values) > 1 else values[0]


def overview_row(
    students: Sequence[Student], pruner: str, recoveries: Sequence[str]
) -> dict[str, Any]:
    """One pruner: loss before recovery, and the scores after each."""
    own = [s for s in students if s.job.pruner == pruner and s.job.recovery in recoveries]
    row: dict[str, Any] = {"pruner": pruner, "seeds": len({s.job.seed for s in own})}
    if own:
        # The same cut counts once per seed, however often it was recovered.
        before = {s.job.seed: s for s in own}
        row["calibration_loss"] = spread([s.calibration_loss for s in before.values()])
        row["pruned_fid"] = spread([s.run.models["pruned"]["fid"] for s in before.values()])
    for name in recoveries:
        members = [s.run for s in own if is_of(s, name)]
        if members:
            scores = summarise(members, [], ["fid", "held_out_loss"])[0]
            row |= {f"{key} {name}": scores[key] for key in ("fid", "held_out_loss")}
    return row


def overview_columns(recoveries: Sequence[str]) -> dict[str, Column]:
    """Columns of the table of pruners."""
    return {
        "pruner": Column("pruner"),
        "seeds": Column("seeds"),
        "calibration_loss": Column("calibration loss after the cut", ".4f"),
        "pruned_fid": Column("FID after the cut", ".2f"),
        **{f"fid {name}": Column(f"FID, {name}", ".3f") for name in recoveries},
        **{f"held_out_loss {name}": Column(f"loss, {name}", ".4f") for name in recoveries},
    }


def all_columns() -> dict[str, Column]:
    """Columns of the tables of all figures."""
    head = {"pruner": Column("pruner"), "recovery": Column("recovery"), "seeds": Column("seeds")}
    return head | FIGURES


def rows(students: Sequence[Student], model: str) -> list[dict[str, Any]]:
    """All figures of one of a run's models, by pruner and recovery."""
    grouped: dict[tuple[str, str], list[Student]] = {}
    for student in students:
        # Right after the cut all recoveries of a decision are one; values of those trained from
        # scratch are not what was cut.
        recovery = "none" if model == "pruned" else student.job.recovery
        if model != "pruned" or student.job.recovery == "kd":
            grouped.setdefault((student.job.pruner, recovery), []).append(student)
    return [
        {"pruner": pruner, "recovery": recovery, "seeds": len(members)}
        | summarise([s.run for s in members], [], list(FIGURES), model)[0]
        for (pruner, recovery), members in grouped.items()
    ]


def points(students: Sequence[Student], recovery: str) -> list[Point]:
    """Calibration loss and FID per pruner of blocks, means over seeds."""
    grouped: dict[str, list[Student]] = {}
    for student in students:
        if is_of(student, recovery) and student.job.pruner not in WIDTH:
            grouped.setdefault(student.job.pruner, []).append(student)
    made = []
    for pruner, members in grouped.items():
        fids = [s.run.models["recovered"]["fid"] for s in members]
        losses = [s.calibration_loss for s in members]
        made.append(Point(pruner, mean(losses), mean(fids), stdev(fids) if len(fids) > 1 else None))
    return made


def foretold(students: Sequence[Student], recovery: str, figure: str) -> dict[str, Any] | None:
    """Spearman's rank correlation of the loss right after the cut and a figure after recovery.

    Args:
        students: finished runs.
        recovery: how they were recovered.
        figure: ``fid`` or ``held_out_loss``, averaged over seeds per pruner.

    Returns:
        ``rho``, its two-sided ``p`` (see `chance`), ``pruners`` (how many); ``None`` if there are
        fewer than four, or if all values are equal.
    """
    from scipy.stats import spearmanr

    members = [s for s in students if is_of(s, recovery) and s.job.pruner not in WIDTH]
    names = list(dict.fromkeys(s.job.pruner for s in members))
    pairs = []
    for name in names:
        own = [s for s in members if s.job.pruner == name]
        pair = (
            mean(s.calibration_loss for s in own),
            mean(s.run.models["recovered"][figure] for s in own),
        )
        if all(map(math.isfinite, pair)):
            pairs.append(pair)
    columns = list(zip(*pairs, strict=True))
    if len(pairs) < LEAST_POINTS or any(len(set(column)) < 2 for column in columns):
        return None
    rho = float(spearmanr(*columns).statistic)
    return {"rho": rho, "p": chance(*columns, rho), "pruners": len(pairs)}


def chance(x: Sequence[float], y: Sequence[float], rho: float) -> float:
    """Share of the orders of ``y`` whose rank correlation with ``x`` is as far from 0 as ``rho``.

    All orders of up to 8 values, 20,000 seeded draws of more; the usual formula holds for many
    points only.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    if len(x) <= 8:
        orders = np.array(list(permutations(ranks[1])))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(ranks[1], (DRAWS, 1)), axis=1)
    found = orders @ ranks[0] / np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    as_far = int((np.abs(found) >= abs(rho) - 1e-9).sum())
    # The order that was found is one of all of them, but not one of those that were drawn.
    return as_far / len(orders) if len(x) <= 8 else (as_far + 1) / (len(orders) + 1)


def said(correlations: Sequence[Mapping[str, Any]]) -> str:
    """The rank correlations in words."""
    if not correlations:
        return f"Not given: fewer than {LEAST_POINTS} pruners are finished.\n"
    columns = {
        "recovery": Column("recovery"),
        "figure": Column("figure after recovery"),
        "rho": Column("Spearman's rho", "+.2f"),
        "p": Column("p", ".3f"),
        "pruners": Column("pruners"),
    }
    return (
        "Rank correlation over pruners of blocks (means over seeds) between the calibration loss\n"
        "right after the cut and a figure of the recovered model. 1: the lower the loss, the\n"
        f"better the model; 0: nothing is foretold.\n\n{markdown_table(correlations, columns)}"
    )


def blocks_that_stay(students: Sequence[Student]) -> list[str]:
    """One line for every pruner and set of blocks."""
    seeds: dict[tuple[str, tuple[int, ...]], set[int]] = {}
    for student in students:
        if student.run.kept:
            seeds.setdefault((student.job.pruner, student.run.kept), set()).add(student.job.seed)
    return [
        f"- {pruner} (seed{'s' * (len(found) > 1)} {', '.join(map(str, sorted(found)))}): "
        f"{' '.join(map(str, kept))}"
        for (pruner, kept), found in sorted(seeds.items(), key=lambda item: item[0][0])
    ]


def head(students: Sequence[Student], jobs: Sequence[Job]) -> str:
    """Teacher, protocol, and what is missing."""
    run = students[0].run
    teacher, training = run.models["source"], run.config["training"]["recovery"]
    lines = [
        f"Teacher: FID {teacher['fid']:.3f}, held-out loss {teacher['held_out_loss']:.4f}; FID "
        f"between halves of the real data {run.floor['fid_real_halves']:.2f} +- "
        f"{run.floor['fid_real_halves_std']:.2f}. Recovery: {training['steps']} steps at batch "
        f"{training['batch_size']}. Protocol: {run.protocol}. Calibration loss: "
        f"{CALIBRATION_SAMPLES} noised training samples, the same for all."
    ]
    missing = [job for job in jobs if not job.done]
    if missing:
        named = ", ".join(job.folder.name for job in missing[:5])
        more = ", ..." if len(missing) > 5 else ""
        lines.append(f"Not finished: {len(missing)} of {len(jobs)} jobs ({named}{more}).")
    return "\n\n".join(lines) + "\n"
