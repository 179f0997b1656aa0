"""The comparison of pruners and of recoveries on the digits teacher, over seeds.

Decisions are made once per pruner and seed and shared by the recoveries, so that recoveries are
compared on the same students.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import write_json, write_text
from tinyfusion.studies.collect import read_sweep, summarise

PRUNERS: dict[str, tuple[str, ...]] = {
    "learned 1:2": ("pruner=learned", "scheme=1:2"),
    "learned 2:4": ("pruner=learned", "scheme=2:4"),
    "ShortGPT": ("pruner=shortgpt", "scheme=1:2"),
    "random": ("pruner=random", "scheme=1:2"),
}

RECOVERIES: dict[str, tuple[str, ...]] = {
    "kd": ("recovery=kd",),
    "masked_kd, intersection": ("recovery=masked_kd", "recovery.feature_mask=intersection"),
    "masked_kd, separate": ("recovery=masked_kd", "recovery.feature_mask=separate"),
    "finetune": ("recovery=finetune",),
    "repkd": ("recovery=repkd",),
}

FIGURES = {
    "fid": Column("FID", ".3f"),
    "held_out_loss": Column("held-out loss", ".4f"),
    "teacher_distance": Column("distance to teacher", ".5f"),
    "precision": Column("precision", ".3f"),
    "recall": Column("recall", ".3f"),
}


@dataclass(frozen=True)
class Job:
    """One command line of the study.

    Attributes:
        folder: where it runs; a finished folder is skipped.
        command: ``prune`` or ``run``.
        overrides: its overrides without the folder.
    """

    folder: Path
    command: str
    overrides: tuple[str, ...]


def plan(root: Path, seeds: Sequence[int]) -> Iterator[Job]:
    """All jobs of the study, decisions before the runs that use them, seed by seed.

    Every pruner is recovered by ``kd`` and by ``masked_kd``; the learned 1:2 student by all
    recoveries.

    Args:
        root: folder of the study.
        seeds: seeds of decision, recovery and random draw alike.
    """
    for seed in seeds:
        for pruner, choice in PRUNERS.items():
            decided = root / "decisions" / f"{_slug(pruner)}_seed{seed}"
            common = ("experiment=digits_study", f"seed={seed}")
            # `prune` has no evaluation to configure, so it takes no experiment.
            yield Job(decided, "prune", (*choice, f"seed={seed}"))
            for recovery, options in RECOVERIES.items():
                first_two = recovery in ("kd", "masked_kd, intersection")
                if first_two or pruner == "learned 1:2":
                    yield Job(
                        root / "runs" / f"{_slug(pruner)}__{_slug(recovery)}__seed{seed}",
                        "run",
                        (*common, *options, f"decision={decided / 'decision.json'}"),
                    )


def shares(root: Path, seeds: Sequence[int], parts: int) -> list[list[list[Job]]]:
    """Jobs by process: a decision stays with the runs that use it, the loads about equal."""
    units: list[list[Job]] = []
    for job in plan(root, seeds):
        if job.command == "prune":
            units.append([])
        units[-1].append(job)
    shared: list[list[list[Job]]] = [[] for _ in range(parts)]
    for unit in sorted(units, key=len, reverse=True):
        min(shared, key=lambda share: sum(map(len, share))).append(unit)
    return shared


def _slug(text: str) -> str:
    return text.replace(" ", "_").replace(":", "of").replace(",", "")


def report(root: Path) -> str:
    """Write ``report.md`` and ``report.json`` from the study's finished runs; returns the text."""
    runs = read_sweep(root / "runs")
    names = {run.folder: run.folder.name.split("__") for run in runs}
    parts = []
    tables: dict[str, Any] = {}
    for model in ("recovered", "recovered (live weights)", "pruned"):
        rows = []
        for pruner in PRUNERS:
            for recovery in RECOVERIES:
                wanted = [_slug(pruner), _slug(recovery)]
                members = [run for run in runs if names[run.folder][:2] == wanted]
                if members and not (model == "pruned" and recovery != "kd"):
                    row = summarise(members, [], list(FIGURES), model)[0]
                    rows.append({"pruner": pruner, "recovery": recovery} | row)
        if model == "pruned":
            rows = [row | {"recovery": "none"} for row in rows]
        columns = {
            "pruner": Column("pruner"),
            "recovery": Column("recovery"),
            "runs": Column("seeds"),
            **FIGURES,
        }
        parts.append(f"### {model}\n\n{markdown_table(rows, columns)}\n")
        tables[model] = rows
    teacher = runs[0].models["source"]
    head = (
        f"Teacher: FID {teacher['fid']:.3f}, held-out loss {teacher['held_out_loss']:.4f}; FID "
        f"between halves of the real data {runs[0].floor['fid_real_halves']:.2f} +- "
        f"{runs[0].floor['fid_real_halves_std']:.2f}. Protocol: {runs[0].protocol}.\n"
    )
    text = "\n".join([head, *parts])
    write_text(root / "report.md", text)
    write_json(root / "report.json", {"teacher": teacher, "tables": tables})
    return text
