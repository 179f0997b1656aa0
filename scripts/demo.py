"""The main job on the embedded digits: five ways of choosing 7 of 28 blocks, side by side."""

from __future__ import annotations

import resource
import sys
import time
from datetime import datetime
from pathlib import Path

from tinyfusion.interrupts import Interrupted, handled
from tinyfusion.report.reading import read_run
from tinyfusion.runtime.streams import patient_streams
from tinyfusion.settings.overrides import quote
from tinyfusion.studies.together import CommandFailedError, run_together
from tinyfusion.studies.works import slug
from tinyfusion.text import readable_bytes

BUDGET = "keep=7"
"""A quarter of the blocks, where the choice matters; fixed before anything was measured."""

METHODS = {
    "learned": ("pruner=learned",),
    "sensitivity": ("pruner=sensitivity",),
    "shortgpt": ("pruner=shortgpt",),
    "random": ("pruner=random",),
    # So that 21 rounds of scoring every block that is left take seconds.
    "least loss": ("pruner=sensitivity", "selector=greedy", "pruner.num_samples=256"),
}
"""Ways of choosing, by their overrides; the last removes one block after the other, each time that
without which the loss is least."""

STARTED = ("learned", "sensitivity", "least loss", "shortgpt", "random")
"""In the order in which they begin: longest first, so that no processor is idle for long."""

TABLE = "┏┃┡│└"
"""What a table's lines begin with: each run has its own in its folder; one of all is printed."""


def main() -> int:
    """Run all five, print the table and where the pictures are; overrides pass through."""
    try:
        with patient_streams(), handled():
            _run(sys.argv[1:])
    except CommandFailedError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.status
    except Interrupted as stop:
        print(f"demo: {stop}; the same command begins anew", file=sys.stderr)
        return stop.status
    return 0


def _run(passed_on: list[str]) -> None:
    began = time.perf_counter()
    folder = Path("outputs/demo", datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")).absolute()
    places = {name: folder / slug(name) for name in METHODS}
    commands = {}
    for name, place in places.items():
        # The root decides where scores are cached: this run's own folder, so that its time is true.
        own = [f"hydra.run.dir={quote(place)}", f"output_root={quote(folder)}"]
        chosen = (BUDGET, *METHODS[name])
        commands[name] = ["run", "experiment=demo", *chosen, *own, *passed_on]
    started = {name: commands[name] for name in STARTED}
    run_together(started, shown=lambda line: line[0] not in TABLE)
    runs = {name: read_run(place) for name, place in places.items()}
    from tinyfusion.studies.compare import compare  # imports torch, not to keep the runs waiting

    compare(runs, folder)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    for name, run in runs.items():
        phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in run.times.items())
        print(f"{name:>11}: {phases}; kept {list(run.kept or ())}")
    print(f"samples of every model: {folder / 'comparison.png'}")
    print(f"how the mask was learned: {runs['learned'].folder / 'prune' / 'decision.png'}")
    print(f"table and weights: {folder}")
    seconds = time.perf_counter() - began
    print(f"run time {seconds:.0f} s, peak memory of a run {readable_bytes(peak)}")


if __name__ == "__main__":
    raise SystemExit(main())
