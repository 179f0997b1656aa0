"""Our steps against straightforward ones, in one process and in turn.

Mask learning, recovery and guided sampling of DiTs with random weights: seconds of each side, the
ratio's median and quartiles over the rounds, and bytes of activations that are kept for the
backward pass. Wall-clock time; where other work shares the machine, --processor-time counts what
the process itself has had, which with one thread is the time on an idle machine.

    python scripts/step_benchmark.py                                  (both networks, everything)
    python scripts/step_benchmark.py --only mask --width 64 --keep 14 7 --output mask.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tinyfusion.errors import InputError
from tinyfusion.files import write_json, write_text
from tinyfusion.metrics.benchmark import device_name
from tinyfusion.metrics.speed import processor_time, wall_time
from tinyfusion.studies.step_sides import DELTAS, Setting, mask_learning, recovery
from tinyfusion.studies.step_speed import sampling_rows, table, training_row
from tinyfusion.version import __version__

NETWORKS = {64: (16, 64), 384: (64, 8)}
"""Tokens and batch by width, where they are not given."""

WORK = ("mask", "recovery", "sampling")


def rows_of(setting: Setting, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure one network."""
    for keep in arguments.keep:
        if "mask" in arguments.only:
            for delta in arguments.delta:
                what = f"mask-learning step, {keep} of {setting.depth}, {delta}"
                share = arguments.gate_gradients
                options = {"dense": arguments.dense, "gate_gradients": share}
                if share < 1:
                    what += f", {share:g} of the gate gradients"
                yield training_row(what, mask_learning(setting, keep, delta, **options), setting)
        if "recovery" in arguments.only:
            what = f"recovery step, {keep} of {setting.depth}"
            yield training_row(what, recovery(setting, keep), setting)
    if "sampling" in arguments.only:
        yield from sampling_rows(setting, arguments.keep)


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """The networks that were asked for.

    Raises:
        InputError: a width without known tokens and batch, or a number out of range.
    """
    found = []
    for width in arguments.width:
        tokens, batch = NETWORKS.get(width, (None, None))
        tokens, batch = arguments.tokens or tokens, arguments.batch or batch
        if tokens is None or batch is None:
            raise InputError(f"--width {width}: give --tokens and --batch, too")
        found.append(
            Setting(
                width=width,
                tokens=tokens,
                batch=batch,
                depth=arguments.depth,
                compiled=arguments.compile,
                rounds=arguments.rounds,
                steps=arguments.steps,
                images=arguments.images,
                sampling_steps=arguments.sampling_steps,
                device=arguments.device,
                clock=processor_time if arguments.processor_time else wall_time,
            )
        )
    return found


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    found.add_argument("--only", choices=WORK, nargs="+", default=WORK, metavar="WORK")
    found.add_argument("--width", type=int, nargs="+", default=list(NETWORKS))
    found.add_argument("--depth", type=int, default=28)
    found.add_argument("--tokens", type=int, help="a square number; default: by width")
    found.add_argument("--batch", type=int, help="of training; default: by width")
    found.add_argument("--keep", type=int, nargs="+", default=[14], help="blocks that stay")
    found.add_argument("--delta", choices=DELTAS, nargs="+", default=DELTAS, metavar="DELTA")
    found.add_argument("--rounds", type=int, default=8, help="timed rounds, after one that is not")
    found.add_argument("--steps", type=int, default=2, help="training steps of a side in a round")
    found.add_argument("--images", type=int, default=4, help="sampled at once")
    found.add_argument("--sampling-steps", type=int, default=10)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--device", default="cpu")
    found.add_argument("--dense", action="store_true", help="as pruner.dense=true, our side")
    found.add_argument("--gate-gradients", type=float, default=1.0, help="as pruner.gate_gradients")
    found.add_argument("--compile", action="store_true", help="compile the blocks of our side")
    found.add_argument("--processor-time", action="store_true")
    found.add_argument("--output", type=Path, help="file to write the table (.md) or rows (.json)")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    output = arguments.output
    if output is not None and output.suffix not in (".md", ".json"):
        raise SystemExit(f"step_benchmark: --output {output}: must end in .md or .json")
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    try:
        for setting in settings_of(arguments):
            for row in rows_of(setting, arguments):
                print(f"{row['network']}; {row['work']}: {row['ratio']:.3f}", flush=True)
                rows.append(row)
    except InputError as error:
        raise SystemExit(f"step_benchmark: {error}") from None
    clock = "processor" if arguments.processor_time else "wall-clock"
    text = (
        f"{device_name(torch.device(arguments.device))}, {arguments.threads} thread(s), {clock} "
        f"time, float32, torch {torch.__version__}, tinyfusion {__version__}; medians of "
        f"{arguments.rounds} rounds in turn, ratios with their quartiles.\n\n{table(rows)}"
    )
    print(f"\n{text}")
    if output is not None:
        if output.suffix == ".md":
            write_text(output, text)
        else:
            write_json(output, rows)


if __name__ == "__main__":
    main()
