"""Compare pruners and recoveries on the digits teacher over seeds; skips what is finished.

Several processes may share the work: --part 0/2 and --part 1/2 halve it. Further arguments are
overrides for every job, such as training.recovery.steps=5.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.studies.digits import plan
from tinyfusion.studies.jobs import (
    options_and_overrides,
    run_study,
    seed_list,
    share_of,
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
        help="compare one more decision, such as one of scripts/random_study.py",
    )  # fmt: skip
    arguments, passed_on = options_and_overrides(parser, argv)
    root = arguments.root
    return run_study(
        "digits_study",
        lambda: plan(root, arguments.seeds, dict(arguments.add), arguments.finetune),
        lambda jobs: report(root, jobs),
        None if arguments.report else tinyfusion,
        passed_on,
        arguments.part,
    )


if __name__ == "__main__":
    raise SystemExit(main())
