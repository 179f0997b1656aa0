"""Iterative pruning: which model to cut the second time, and which to distil from.

The four rows of Table 7 of TinyFusion on the digits teacher: 28 -> 14 blocks once per seed, then 7
blocks of the first model or of the one with 14, distilled from either. Figures are of live weights,
as in the paper. Skips what is finished; further arguments are overrides for every job, such as
training.recovery.steps=5.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.files import write_json, write_text
from tinyfusion.settings.overrides import quote
from tinyfusion.studies.collect import read_run, summarise
from tinyfusion.studies.digits import STEPS
from tinyfusion.studies.jobs import (
    Job,
    options_and_overrides,
    run_study,
    seed_list,
)

NAMES = {"source": "28 blocks", "previous": "14 blocks"}

PAPER = {
    ("source", "source"): 56.18,
    ("source", "previous"): 36.69,
    ("previous", "source"): 58.73,
    ("previous", "previous"): 32.47,
}
"""FID of TinyDiT-D7 by teacher and by what was cut; 10,000 distillation steps on ImageNet."""

COLUMNS = {
    "teacher": Column("teacher"),
    "weights": Column("cut from"),
    "seeds": Column("seeds"),
    "fid": Column("FID", ".3f"),
    "inception_score": Column("IS", ".2f"),
    "precision": Column("precision", ".3f"),
    "recall": Column("recall", ".3f"),
    "held_out_loss": Column("held-out loss", ".4f"),
    "paper_fid": Column("paper: FID", ".2f"),
}


def plan(root: Path, seeds: Sequence[int]) -> list[Job]:
    """The model of 14 blocks of every seed, and the four rows made of it."""
    jobs = []
    for seed in seeds:
        halved = root / f"14_seed{seed}"
        first = ("experiment=digits_study", "scheme=1:2", STEPS, f"seed={seed}")
        jobs.append(Job(halved, "run", first, "14 blocks", "", seed))
        for teacher, weights in product(NAMES, NAMES):
            overrides = (
                "experiment=[iterative,digits_study]",
                STEPS,
                f"iterative.previous={quote(halved / 'recovered')}",
                f"iterative.weights={weights}",
                f"iterative.teacher={teacher}",
                f"seed={seed}",
            )
            folder = root / f"7_of_{weights}_teacher_{teacher}_seed{seed}"
            jobs.append(Job(folder, "run", overrides, weights, teacher, seed))
    return jobs


def report(root: Path, jobs: Sequence[Job]) -> str:
    """Write ``table7.md`` and ``table7.json`` of what is finished; returns the text."""
    figures = ("fid", "inception_score", "precision", "recall", "held_out_loss")
    rows = []
    for teacher, weights in product(NAMES, NAMES):
        own = [job for job in jobs if (job.recovery, job.pruner) == (teacher, weights)]
        runs = [read_run(job.folder) for job in own if job.done]
        row = {"teacher": NAMES[teacher], "weights": NAMES[weights], "seeds": len(runs)}
        if runs:
            found = summarise(runs, [], figures, "recovered (live weights)")[0]
            row |= {name: found[name] for name in figures if name in found}
        rows.append(row | {"paper_fid": PAPER[teacher, weights]})
    missing = [job.folder.name for job in jobs if not job.done]
    text = markdown_table(rows, COLUMNS)
    if missing:
        text += f"\nNot finished: {', '.join(missing)}.\n"
    write_text(root / "table7.md", text)
    write_json(root / "table7.json", rows)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("outputs/table7"))
    parser.add_argument("--seeds", type=seed_list, default=[0, 1, 2], metavar="0,1,2")
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    options, passed_on = options_and_overrides(parser, argv)
    root = options.root.absolute()
    return run_study(
        "table7",
        lambda: plan(root, options.seeds),
        lambda jobs: report(root, jobs),
        None if options.report else tinyfusion,
        passed_on,
    )


if __name__ == "__main__":
    raise SystemExit(main())
