"""Compare pruners and recoveries on the digits teacher over seeds; skips what is finished.

Several processes may share the work: --part 0/2 and --part 1/2 halve it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.studies.digits import report, shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("outputs/digits_study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="0/1", help="K/N: the K-th of N shares of the work")
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    arguments, passed_on = parser.parse_known_args()
    part, parts = map(int, arguments.part.split("/"))
    if not arguments.report:
        for unit in shares(arguments.root, arguments.seeds, parts)[part]:
            for job in unit:
                done = "decision.json" if job.command == "prune" else "metrics.json"
                if (job.folder / done).is_file():
                    continue
                if (job.folder / "config.yaml").is_file():
                    command = [job.command, f"resume={job.folder}"]
                else:
                    folder = f"hydra.run.dir={job.folder}"
                    command = [job.command, *job.overrides, folder, *passed_on]
                status = tinyfusion(command)
                if status:
                    return status
    print(report(arguments.root))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
