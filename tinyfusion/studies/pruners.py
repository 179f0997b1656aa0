"""Report on a comparison of pruners: scores, losses before recovery, and what these predict.

Works with whatever part of the study is finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinyfusion.checkpoints import load
from tinyfusion.errors import InputError
from tinyfusion.figures.scatter import scatter
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.metrics.reporting import floor_line
from tinyfusion.pruners.contract import calibration_batch
from tinyfusion.settings.compose import build
from tinyfusion.studies.collect import FinishedRun, read_run, summarise
from tinyfusion.studies.correlation import (
    Student,
    correlation_table,
    correlations,
    points,
)
from tinyfusion.studies.jobs import Job

CALIBRATION_SAMPLES = 1024
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
        name
        for name in COMPARED
        if any(s.job.recovery == name for s in students)
        # Others are planned for one or two pruners only.
        and len({job.pruner for job in jobs if job.recovery == name}) > len(pruners) / 2
    ]
    overview = [overview_row(students, pruner, recoveries) for pruner in pruners]
    overview = [row for row in overview if row["seeds"]]
    found = correlations(students, recoveries)
    text = "\n".join(
        [
            summary(students, jobs),
            "## Pruners\n",
            markdown_table(overview, overview_columns(recoveries)),
            "## Does a figure right after the cut predict the recovered model?\n",
            correlation_table(found),
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
            "correlations": found,
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


def mean_and_deviation(values: Sequence[float]) -> Any:
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
        row["calibration_loss"] = mean_and_deviation([s.calibration_loss for s in before.values()])
        row["pruned_fid"] = mean_and_deviation(
            [s.run.models["pruned"]["fid"] for s in before.values()]
        )
    for name in recoveries:
        members = [s.run for s in own if s.job.recovery == name]
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


def summary(students: Sequence[Student], jobs: Sequence[Job]) -> str:
    """Teacher, protocol, and what is missing."""
    run = students[0].run
    teacher, training = run.models["source"], run.config["training"]["recovery"]
    lines = [
        f"Teacher: FID {teacher['fid']:.3f}, held-out loss {teacher['held_out_loss']:.4f}; "
        f"{floor_line(run.floor)}. Recovery: {training['steps']} steps at batch "
        f"{training['batch_size']}. Protocol: {run.protocol}. Calibration loss: "
        f"{CALIBRATION_SAMPLES} noised training samples, the same for all."
    ]
    missing = [job for job in jobs if not job.done]
    if missing:
        named = ", ".join(job.folder.name for job in missing[:5])
        more = ", ..." if len(missing) > 5 else ""
        lines.append(f"Not finished: {len(missing)} of {len(jobs)} jobs ({named}{more}).")
    return "\n\n".join(lines) + "\n"
