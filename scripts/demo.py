"""The main job on the embedded digits: five ways of choosing 7 of 28 blocks, side by side."""

from __future__ import annotations

import resource
import sys
import time
from datetime import datetime
from pathlib import Path

from tinyfusion.cli import main as tinyfusion
from tinyfusion.settings.overrides import quote
from tinyfusion.studies.budgets import METHODS
from tinyfusion.studies.collect import read_run
from tinyfusion.studies.compare import compare
from tinyfusion.studies.digits import slug
from tinyfusion.text import readable_bytes

BUDGET = "keep=7"
"""A quarter of the blocks, where the choice matters; fixed before anything was measured."""

COMPARED = ("learned", "sensitivity", "shortgpt", "random", "least loss")
SHORTER = {"least loss": ("pruner.num_samples=256",)}
"""So that 21 rounds of scoring every block that is left take seconds."""


def main() -> int:
    """Run all five, print the table and where the pictures are; overrides pass through."""
    began = time.perf_counter()
    folder = Path("outputs/demo", datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")).absolute()
    runs = {}
    for name in COMPARED:
        place = folder / slug(name)
        # The root decides where scores are cached: this run's own folder, so that its time is true.
        places = [f"hydra.run.dir={quote(place)}", f"output_root={quote(folder)}"]
        chosen = (BUDGET, *METHODS[name], *SHORTER.get(name, ()))
        own = ["run", "experiment=demo", *chosen, *places, *sys.argv[1:]]
        if status := tinyfusion(own):
            return status
        runs[name] = read_run(place)
    compare(runs, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, run in runs.items():
        phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in run.times.items())
        print(f"{name:>11}: {phases}; kept {list(run.kept)}")
    print(f"samples of every model: {folder / 'comparison.png'}")
    print(f"how the mask was learned: {runs['learned'].folder / 'prune' / 'decision.png'}")
    print(f"table and weights: {folder}")
    print(f"run time {time.perf_counter() - began:.0f} s, peak memory {readable_bytes(peak)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
