"""Compare pruners and recoveries on the digits teacher over seeds; skips what is finished.

Several processes may share the work: --part 0/2 and --part 1/2 halve it. Further arguments are
overrides for every job, such as training.recovery.steps=5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.errors import InputError
from tinyfusion.studies.digits import plan
from tinyfusion.studies.jobs import carry_out, seed_list, shares
from tinyfusion.studies.pruners import report


def named_file(text: str) -> tuple[str, Path]:
    """NAME=PATH as a pair.

    Raises:
        argparse.ArgumentTypeError: it is not, or there is no such file.
    """
    name, _, path = text.partition("=")
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=PATH of a decision.json")
    return name, Path(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("outputs/digits_study"))
    parser.add_argument("--seeds", type=seed_list, default=[0, 1, 2], metavar="0,1,2")
    parser.add_argument("--part", default="0/1", help="K/N: the K-th of N shares of the work")
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    parser.add_argument("--finetune", action="store_true", help="fine-tune every pruner, too")
    parser.add_argument(
        "--add", type=named_file, action="append", default=[], metavar="NAME=PATH",
        help="compare a decision that is there, such as one of scripts/random_study.py",
    )  # fmt: skip
    arguments, passed_on = parser.parse_known_args(argv)
    part, parts = map(int, arguments.part.split("/"))
    jobs = plan(arguments.root, arguments.seeds, dict(arguments.add), arguments.finetune)
    failed = []
    if not arguments.report:
        failed = carry_out(shares(jobs, parts)[part], tinyfusion, passed_on)
    try:
        print(report(arguments.root, jobs))
    except InputError as error:
        print(f"digits_study: {error}", file=sys.stderr)
        return 2
    for job in failed:
        print(f"digits_study: {job.folder} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
