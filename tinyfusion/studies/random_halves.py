"""The study of random prunings: methods among many random halves, each then fine-tuned.

Figure 5 and Table 3 of TinyFusion (arXiv 2412.01199): every candidate's loss right after removal on
one calibration batch, then recovery of the candidates of largest, middle and least loss and of what
methods chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyfusion.decision import Decision
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import write_json, write_text
from tinyfusion.settings.overrides import quote
from tinyfusion.studies.collect import read_run, summarise
from tinyfusion.studies.digits import PRUNERS, RECOVERIES, slug
from tinyfusion.studies.jobs import Job, decision_file

METHODS = ("sensitivity", "shortgpt", "flux_lite", "laptop_diff", "oracle", "learned 1:2")
"""Marked among the random candidates, by their names in `studies.digits.PRUNERS`."""

PICKS = {"median": "random, median loss", "max": "random, most loss", "min": "random, least loss"}
"""Of the random candidates, the ones to recover: name by ``pruner.choose``."""

FIRST_PICK = "median"
LIST = "prune/candidates.csv"

PAPER: dict[str, tuple[float | None, float | None]] = {
    "random, most loss": (37.69, None),
    "random, median loss": (0.99, 6.45),
    "random, least loss": (0.20, 20.69),
    "sensitivity": (0.21, 21.15),
    "shortgpt": (0.20, 22.28),
    "flux_lite": (0.85, 25.92),
    "oracle": (1.28, 7.43),
    "learned 1:2": (0.98, 5.73),
}
"""Calibration loss and FID of DiT-XL/2 28 -> 14 in the paper; the first row's training diverged."""

COLUMNS = {
    "strategy": Column("strategy"),
    "seeds": Column("seeds"),
    "loss": Column("calibration loss", ".4f"),
    "percentile": Column("random halves below, %", ".2f"),
    "fid": Column("FID", ".3f"),
    "inception_score": Column("IS", ".2f"),
    "precision": Column("precision", ".3f"),
    "recall": Column("recall", ".3f"),
    "paper_loss": Column("paper: loss", ".2f"),
    "paper_fid": Column("paper: FID", ".2f"),
}


def plan(
    root: Path,
    seeds: Sequence[int],
    candidates: int,
    num_samples: int,
    recovery: str = "finetune",
    decisions: Path | None = None,
) -> list[Job]:
    """All jobs, decisions first.

    Args:
        root: folder of the study.
        seeds: seeds of the recovery; the first one is also that of decisions and draws.
        candidates: random halves.
        num_samples: calibration samples of each.
        recovery: how students are recovered, by its name in `studies.digits.RECOVERIES`.
        decisions: ``decisions/`` of a comparison of pruners, to reuse the decisions there.
    """
    root, first = root.absolute(), seeds[0]
    jobs: list[Job] = []
    places: dict[str, Path] = {}
    for name in METHODS:
        found = None if decisions is None else _existing(decisions.absolute(), name, first)
        places[name] = found or root / "decisions" / slug(name)
        if found is None:
            overrides = (*PRUNERS[name].overrides, f"seed={first}")
            jobs.append(Job(places[name], "prune", overrides, name, "", first))
    marks = ",".join(f"{_key(name)}:{quote(places[name] / 'decision.json')}" for name in METHODS)
    for pick, name in PICKS.items():
        places[name] = root / "decisions" / f"random_{pick}"
        # The first one evaluates the candidates; the others choose from its list.
        own = (
            f"pruner.marks={{{marks}}}"
            if pick == FIRST_PICK
            else f"pruner.losses={quote(root / 'decisions' / f'random_{FIRST_PICK}' / LIST)}"
        )
        overrides = (
            *("pruner=random", "scheme=1:2", f"seed={first}", f"pruner.choose={pick}", own),
            *(f"pruner.candidates={candidates}", f"pruner.num_samples={num_samples}"),
        )
        jobs.append(Job(places[name], "prune", overrides, name, "", first))
    for seed in seeds:
        for name in (*PICKS.values(), *METHODS):
            folder = root / "runs" / f"{slug(name)}__seed{seed}"
            overrides = ("experiment=digits_study", f"seed={seed}", *RECOVERIES[recovery])
            jobs.append(Job(folder, "run", overrides, name, recovery, seed, places[name]))
    return jobs


def report(root: Path, jobs: Sequence[Job]) -> str:
    """Write ``report.md`` and ``report.json`` of what is finished.

    Args:
        root: folder of the study.
        jobs: its jobs (`plan`).

    Returns:
        The text of ``report.md``: Table 3 of the paper for this model, with the paper's own
        losses and FID beside it.

    Raises:
        InputError: the candidates are not evaluated yet.
    """
    evidence = Decision.load(root / "decisions" / f"random_{FIRST_PICK}" / "decision.json").scores
    rows = []
    for name in (*PICKS.values(), *METHODS):
        own = [job for job in jobs if job.command == "run" and job.pruner == name]
        runs = [read_run(job.folder) for job in own if job.done]
        row: dict[str, Any] = {"strategy": name, "seeds": len(runs)} | _loss_of(evidence, name)
        if runs:
            figures = ("fid", "inception_score", "precision", "recall")
            row |= {k: v for k, v in summarise(runs, [], figures)[0].items() if k != "runs"}
        row["paper_loss"], row["paper_fid"] = PAPER.get(name, (None, None))
        rows.append(row)
    missing = [job.folder.name for job in jobs if not job.done]
    parts = [
        f"{evidence['candidates']:,} random choices, {evidence['num_samples']} calibration samples "
        f"each: loss {evidence['loss_min']:.4g} to {evidence['loss_max']:.4g}, median "
        f"{evidence['loss_median']:.4g}, standard deviation {evidence['loss_std']:.4g}; "
        f"{evidence['block_evaluations']:,} block evaluations, one by one "
        f"{evidence['naive_block_evaluations']:,}.\n",
        *([f"Not finished: {', '.join(missing)}.\n"] if missing else []),
        markdown_table(rows, COLUMNS),
    ]
    text = "\n".join(parts)
    write_text(root / "report.md", text)
    write_json(root / "report.json", {"candidates": evidence, "table": rows})
    return text


def _loss_of(evidence: dict[str, Any], name: str) -> dict[str, Any]:
    """Calibration loss of a row, and the share of candidates below it."""
    if name in METHODS:
        mark = evidence["marks"][_key(name)]
        return {"loss": mark["loss"], "percentile": mark["percentile"]}
    (pick,) = (pick for pick, known in PICKS.items() if known == name)
    return {"loss": evidence[f"loss_{pick}"]}


def _key(name: str) -> str:
    """A method's name as a key on the command line."""
    return slug(name).partition("_1of")[0]


def _existing(decisions: Path, name: str, seed: int) -> Path | None:
    """Folder that holds a method's decision, if there is one."""
    for folder in (decisions / f"{slug(name)}_seed{seed}", decisions / slug(name)):
        if decision_file(folder).is_file():
            return folder
    return None
