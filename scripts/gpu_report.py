"""Speed and memory of the published recipe on this machine, as a table for docs/scale.md.

Random weights of DiT-XL/2 at the paper's batches: learning the mask with LoRA, recovering with a
teacher, sampling with guidance; eager and compiled. Nothing is downloaded and nothing is kept.

    python scripts/gpu_report.py --output report.md
    python scripts/gpu_report.py --small        (a miniature on the CPU, to try the script)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir

from tinyfusion.commands.dry_command import DryCommand, dry_command
from tinyfusion.errors import InputError
from tinyfusion.files import write_text
from tinyfusion.metrics.benchmark import Benchmark, device_name
from tinyfusion.pipeline.batching import split_batch
from tinyfusion.pipeline.probe import STEPS, UNTIMED, probe_training
from tinyfusion.settings.check import check
from tinyfusion.settings.objects import objects_of
from tinyfusion.settings.overview import conf_folder
from tinyfusion.text import readable_bytes
from tinyfusion.version import __version__

PAPER = ("experiment=imagenet/tinydit_d14", "data.root=none")
SMALL = (
    "backbone=dit_digits",
    "trainer=cpu",
    "trainer.precision=bf16-mixed",
    "training.mask_learning.batch_size=8",
    "training.recovery.batch_size=8",
    "sampler.steps=2",
    "evaluation.guidance.scale=1.5",
)


class Row(NamedTuple):
    """One line of the table; ``per_second`` in samples or images."""

    what: str
    batch: str
    compiled: bool
    per_second: str
    peak: str


def training_rows(dry: DryCommand) -> Iterator[Row]:
    """Mask learning and recovery."""
    objects = dry.objects
    for phase in dry.phases(dry.on_device):
        settings = dry.runner.settings_of(phase)
        split = split_batch(phase.name, settings.batch_size, 1, objects.trainer.micro_batch)
        batch = f"{settings.batch_size} in {split.micro_batches} x {split.images}"
        what = {"mask_learning": "mask learning, LoRA", "recovery": "recovery, with teacher"}
        name = what[phase.name]
        try:
            # Not kept: the next phase's network is not to be counted beside this one's.
            probed = probe_training(
                phase.module(),
                objects.source,
                settings,
                objects.trainer,
                split,
                phase.name,
                objects.seed,
            )
        except InputError as error:
            yield Row(name, batch, objects.trainer.compile, f"failed: {error}", "-")
            continue
        peak = "-" if probed.peak is None else readable_bytes(probed.peak)
        speed = f"{settings.batch_size / probed.seconds:.1f} samples/s"
        yield Row(name, batch, objects.trainer.compile, speed, peak)


def sampling_rows(dry: DryCommand, batch: int) -> Iterator[Row]:
    """Sampling with guidance from the whole and from the pruned network, timed in turn."""
    objects, evaluation = dry.objects, dry.objects.evaluation
    assert evaluation is not None, "'run' has one"
    arguments = {"whole": dry.arguments, "pruned": dry.student}
    nets = {name: dry.on_device(own).eval() for name, own in arguments.items()}
    benchmark = Benchmark(
        objects.process, evaluation.sampler, evaluation.guidance, batch, dtype=objects.dtype
    )
    backend = objects.trainer.compile_backend if objects.trainer.compile else None
    for row in benchmark.measure(nets, (backend,)):
        peak = row["peak_memory_bytes"]
        yield Row(
            f"sampling, {row['model']} ({row['depth']} blocks), {row['evaluations']} steps, "
            f"guidance {evaluation.guidance.scale}",
            str(batch),
            row["compiled"],
            f"{row['images_per_s']:.2f} images/s, {row['it_per_s']:.2f} steps/s",
            "-" if peak is None else readable_bytes(peak),
        )


def table(rows: list[Row], device: str, precision: str) -> str:
    """Markdown, with what the figures depend on above it."""
    lines = [
        f"{device}, precision {precision}, torch {torch.__version__}, "
        f"tinyfusion {__version__}; training: median of steps {UNTIMED + 1} to {STEPS} on noise; "
        "sampling: median of 3 rounds in turn, after one.",
        "",
        "| what | batch | compiled | speed | peak memory |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        compiled = "yes" if row.compiled else "no"
        lines.append(f"| {row.what} | {row.batch} | {compiled} | {row.per_second} | {row.peak} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a miniature on the CPU")
    parser.add_argument("--micro-batch", type=int, default=64, help="most images at once")
    parser.add_argument("--sampling-batch", type=int, default=32)
    parser.add_argument("--eager-only", action="store_true", help="leave compiled runs out")
    parser.add_argument("--backend", default="inductor", help="of the compiled runs")
    parser.add_argument("--output", type=Path, help="file to write the table to, too")
    parser.add_argument("overrides", nargs="*", help="further key=value of 'tinyfusion run'")
    arguments = parser.parse_args(argv)
    if not arguments.small and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use here; --small tries the script")
    rows: list[Row] = []
    chosen = [*(SMALL if arguments.small else PAPER), *arguments.overrides]
    chosen.append(f"trainer.micro_batch={arguments.micro_batch}")
    for compiled in [False] if arguments.eager_only else [False, True]:
        torch.compiler.reset()
        more = [f"trainer.compile={compiled}", f"trainer.compile_backend={arguments.backend}"]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            dry = dry_command(objects_of(check(compose("run", [*chosen, *more]))))
        for row in chain(training_rows(dry), sampling_rows(dry, arguments.sampling_batch)):
            print("; ".join(map(str, row)), flush=True)
            rows.append(row)
    text = table(rows, device_name(dry.objects.device), dry.objects.trainer.precision)
    print(f"\n{text}")
    if arguments.output is not None:
        write_text(arguments.output, text)


if __name__ == "__main__":
    main()
