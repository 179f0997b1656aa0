"""The learned choice against criteria at several budgets and on the three digits teachers.

Skips what is finished. Several processes may share the work: --part 0/2 and --part 1/2 halve it.
Further arguments are overrides for every job, such as training.recovery.steps=5.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.studies.budgets import (
    EQUAL_MACS,
    METHODS,
    REPORTED,
    UNITS,
    cell_of,
    plan,
    report,
)
from tinyfusion.studies.jobs import options_and_overrides, run_study, seed_list, share_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("outputs", "budget_study"))
    parser.add_argument(
        "--branches", action="store_true", help="blocks against branches at equal MACs instead"
    )
    parser.add_argument("--seeds", type=seed_list, default=[0, 1, 2], metavar="0,1,2")
    parser.add_argument(
        "--cell",
        type=cell_of,
        action="append",
        metavar="TEACHER:BUDGET",
        help="instead of the reported",
    )
    parser.add_argument("--method", choices=METHODS | UNITS, action="append", help="instead of all")
    parser.add_argument(
        "--part", type=share_of, default=(0, 1), metavar="K/N", help="share K of N, counted from 0"
    )
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    options, passed_on = options_and_overrides(parser, argv)
    every, cells = (UNITS, EQUAL_MACS) if options.branches else (METHODS, REPORTED)
    methods = {name: (METHODS | UNITS)[name] for name in options.method or every}
    files = "branches" if options.branches else "budgets"
    return run_study(
        "budget_study",
        lambda: plan(options.root, options.seeds, options.cell or cells, methods),
        lambda jobs: report(options.root, jobs, files),
        None if options.report else tinyfusion,
        passed_on,
        options.part,
    )


if __name__ == "__main__":
    raise SystemExit(main())
