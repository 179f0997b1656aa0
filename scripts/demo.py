"""The main job on the embedded digits: three ways of choosing 14 of 28 blocks, side by side."""

from __future__ import annotations

import resource
import sys
import time
from datetime import datetime
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.settings.overrides import quote
from tinyfusion.studies.collect import read_sweep
from tinyfusion.studies.compare import compare
from tinyfusion.text import readable_bytes

PRUNERS = ("learned", "random", "shortgpt")


def main() -> int:
    """Run the sweep, print the table and where the pictures are; overrides pass through."""
    began = time.perf_counter()
    folder = Path("outputs/demo", datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")).absolute()
    # The root decides where scores are cached: this run's own folder, so that its time is true.
    overrides = [
        "experiment=demo",
        f"pruner={','.join(PRUNERS)}",
        f"hydra.sweep.dir={quote(folder)}",
        f"output_root={quote(folder)}",
    ]
    status = tinyfusion(["run", "-m", *overrides, *sys.argv[1:]])
    if status:
        return status
    runs = sorted(read_sweep(folder), key=lambda run: PRUNERS.index(run.method))
    compare(runs, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for run in runs:
        phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in run.times.items())
        print(f"{run.method:>9}: {phases}; kept {list(run.kept)}")
    print(f"samples of every model: {folder / 'comparison.png'}")
    print(f"how the mask was learned: {runs[0].folder / 'prune' / 'decision.png'}")
    print(f"table and weights: {folder}")
    print(f"run time {time.perf_counter() - began:.0f} s, peak memory {readable_bytes(peak)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
