"""Random prunings against methods: losses of many random halves, and scores of some, fine-tuned.

Evaluates the random halves (with 100,000: about half an hour on one CPU core), marks what methods
chose in their density (decisions/random_median/prune/density.png), recovers the halves of largest,
middle and least loss and the methods', and prints the table. Skips what is finished; further
arguments are overrides for every job, such as training.recovery.steps=5.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.studies.digits import RECOVERIES
from tinyfusion.studies.jobs import (
    options_and_overrides,
    run_study,
    seed_list,
    two_or_more,
)
from tinyfusion.studies.random_halves import plan, report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("outputs/random_study"))
    parser.add_argument("--candidates", type=two_or_more, default=100_000, help="random halves")
    parser.add_argument("--samples", type=two_or_more, default=128, help="calibration samples")
    parser.add_argument(
        "--seeds", type=seed_list, default=[0, 1, 2], metavar="0,1,2", help="of the recovery"
    )
    parser.add_argument("--recovery", choices=RECOVERIES, default="finetune", metavar="NAME")
    parser.add_argument(
        "--decisions", type=Path, help="decisions/ of scripts/digits_study.py, to reuse them"
    )
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    arguments, passed_on = options_and_overrides(parser, argv)
    if arguments.decisions is not None and not arguments.decisions.is_dir():
        parser.error(f"--decisions: {str(arguments.decisions)!r} is no folder")
    root = arguments.root.absolute()
    return run_study(
        "random_study",
        lambda: plan(
            root,
            arguments.seeds,
            arguments.candidates,
            arguments.samples,
            arguments.recovery,
            arguments.decisions,
        ),
        lambda jobs: report(root, jobs),
        None if arguments.report else tinyfusion,
        passed_on,
    )


if __name__ == "__main__":
    raise SystemExit(main())
