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
from tinyfusion.studies.jobs import (
    INTERRUPTED,
    carry_out,
    options_and_overrides,
    seed_list,
    share_of,
    shares,
)
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
    parser.add_argument(
        "--part", type=share_of, default=(0, 1), metavar="K/N", help="share K of N, counted from 0"
    )
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    parser.add_argument("--finetune", action="store_true", help="fine-tune every pruner, too")
    parser.add_argument(
        "--add", type=named_file, action="append", default=[], metavar="NAME=PATH",
        help="compare a decision that is there, such as one of scripts/random_study.py",
    )  # fmt: skip
    arguments, passed_on = options_and_overrides(parser, argv)
    part, parts = arguments.part
    failed = []
    try:
        jobs = plan(arguments.root, arguments.seeds, dict(arguments.add), arguments.finetune)
        if not arguments.report:
            failed = carry_out(shares(jobs, parts)[part], tinyfusion, passed_on)
        print(report(arguments.root, jobs))
    except KeyboardInterrupt:
        print("digits_study: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except InputError as error:
        print(f"digits_study: {error}", file=sys.stderr)
        return 2
    for job in failed:
        print(f"digits_study: {job.folder} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
