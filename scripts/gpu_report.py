"""Speed and memory of the published recipe on a GPU, as a table for docs/performance.md.

Random weights of DiT-XL/2 at the paper's batches: learning the mask with LoRA, recovering with a
teacher, sampling with guidance; eager and compiled, in bfloat16 by autocast. Nothing is downloaded
and nothing is kept. Needs torch and the wheels of scripts/gpu_wheels.sh.

    python scripts/gpu_report.py --output report.md
    python scripts/gpu_report.py --small        (a miniature on the CPU, to try the script)
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from tinyfusion.commands.dry_command import DryCommand, dry_command_of
from tinyfusion.errors import first_line
from tinyfusion.files import write_text
from tinyfusion.metrics.benchmark import Benchmark, device_name
from tinyfusion.metrics.memory import peak_gpu_memory
from tinyfusion.metrics.speed import macs, matrix_peak, seconds_of, wall_time
from tinyfusion.metrics.step_work import mask_learning_forwards, recovery_forwards
from tinyfusion.pipeline import probe
from tinyfusion.pipeline.batching import split_batch
from tinyfusion.pipeline.probe import probe_training
from tinyfusion.recovery.origins import aligned_pairs
from tinyfusion.scheme import evenly_spaced
from tinyfusion.seeding import StepNoise
from tinyfusion.studies.plain_steps import PlainRecovery, plain_batches
from tinyfusion.surgery import prune
from tinyfusion.text import readable_bytes
from tinyfusion.training.recipes import tinydit_d14
from tinyfusion.version import __version__

PAPER = (
    "experiment=imagenet/tinydit_d14",
    "data.root=none",
    "callbacks=none",
    # Steps of the sampler are alike: ten tell how long all 250 take.
    "sampler.steps=10",
)
SMALL = (
    "backbone.depth=4",
    "backbone.hidden_size=64",
    "backbone.num_heads=4",
    "backbone.input_size=8",
    "trainer=cpu",
    "trainer.precision=bf16-mixed",
    "training.mask_learning.batch_size=8",
    "training.recovery.batch_size=8",
    "sampler.steps=2",
)
SAMPLER_STEPS: int = asdict(tinydit_d14.sampler)["steps"]
MATRIX, SMALL_MATRIX = 8192, 512
"""Rows and columns of the matrices that the peak is measured with."""


class Measured(NamedTuple):
    """What a row found.

    Attributes:
        batch: samples at a time, in words.
        per_second: samples per second, with all steps of the published sampler.
        peak: most bytes on the GPU; ``None`` if it can't be told.
        macs: multiply-accumulates that a sample needs.
    """

    batch: str
    per_second: float
    peak: int | None
    macs: float


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        what: what is measured.
        measure: measures it.
        overrides: what is configured for it besides `PAPER`.
        compiled: whether blocks are compiled.
    """

    what: str
    measure: Callable[[DryCommand], Measured]
    overrides: tuple[str, ...] = ()
    compiled: bool = False


def trained(phase: str, work: Callable[[float], float]) -> Callable[[DryCommand], Measured]:
    """A phase's own steps within its trainer.

    Args:
        phase: its name.
        work: forwards of the whole network that a step is worth, from the student's share of it.
    """

    def measure(dry: DryCommand) -> Measured:
        objects = dry.objects
        (found,) = (found for found in dry.phases(dry.on_device) if found.name == phase)
        settings = dry.runner.settings_of(found)
        split = split_batch(phase, settings.batch_size, 1, objects.trainer.micro_batch)
        probed = probe_training(
            found.module(), objects.source, settings, objects.trainer, split, phase, objects.seed
        )
        whole, student = (macs(dry.on_meta(own)) for own in (dry.arguments, dry.student))
        return Measured(
            f"{settings.batch_size} in {split.micro_batches} x {split.images}",
            settings.batch_size / probed.seconds,
            probed.peak,
            whole * work(student / whole),
        )

    return measure


def sampled(pruned: bool) -> Callable[[DryCommand], Measured]:
    """Sampling with guidance, from the pruned network or the whole one."""

    def measure(dry: DryCommand) -> Measured:
        objects, evaluation = dry.objects, dry.objects.evaluation
        assert evaluation is not None, "'run' has one"
        net = dry.on_device(dry.student if pruned else dry.arguments).eval()
        batch = objects.trainer.micro_batch or 1
        timed = Benchmark(
            objects.process, evaluation.sampler, evaluation.guidance, batch, dtype=objects.dtype
        )
        backend = objects.trainer.compile_backend if objects.trainer.compile else None
        (row,) = timed.measure({"net": net}, (backend,))
        per_second = row["it_per_s"] * batch / SAMPLER_STEPS
        # Under guidance every sample is in the batch twice.
        work = 2 * SAMPLER_STEPS * row["macs"]
        return Measured(str(batch), per_second, row["peak_memory_bytes"], work)

    return measure


def straightforward(dry: DryCommand) -> Measured:
    """Recovery by the straightforward loop, its losses by autocast, the whole batch at once."""
    objects, phase = dry.objects, "recovery"
    settings = replace(dry.runner.settings(phase), steps=probe.STEPS)
    teacher = dry.on_device(dry.arguments)
    student = prune(teacher, evenly_spaced(teacher.depth, dry.on_meta(dry.student).depth))
    share = macs(student) / macs(teacher)
    noise, pairs = StepNoise(objects.seed, phase), aligned_pairs(student, teacher, None)
    plain = PlainRecovery(
        student.train(),
        teacher,
        pairs,
        tinydit_d14.objective,
        process=objects.process,
        noise=noise,
        settings=settings,
    )
    # The loss alone: gradients are taken outside of autocast.
    own_loss = torch.autocast(objects.device.type, objects.dtype)(plain.loss)
    plain.loss = own_loss  # type: ignore[method-assign]
    batches = plain_batches(objects.source, noise, settings, objects.device)
    seconds = [seconds_of(partial(plain.step, batch), wall_time) for batch in batches]
    return Measured(
        str(settings.batch_size),
        settings.batch_size / median(seconds[probe.UNTIMED :]),
        peak_gpu_memory(objects.device),
        macs(teacher) * recovery_forwards(share),
    )


SPARSE = Row(
    "mask learning, LoRA",
    trained("mask_learning", lambda share: mask_learning_forwards(kept=share)),
)
RECOVERY = Row("recovery, with teacher", trained("recovery", recovery_forwards))
SAMPLING = (
    Row("sampling, whole", sampled(pruned=False)),
    Row("sampling, pruned", sampled(pruned=True)),
)
ROWS = (
    Row(
        "mask learning, LoRA, dense",
        trained("mask_learning", lambda _: mask_learning_forwards()),
        ("pruner.dense=true",),
    ),
    SPARSE,
    SPARSE._replace(compiled=True),
    Row(
        "mask learning, LoRA, 1/4 of the gate gradients",
        trained("mask_learning", lambda share: mask_learning_forwards(kept=share, sampled=0.25)),
        ("pruner.gate_gradients=0.25",),
    ),
    Row("recovery, straightforward", straightforward),
    RECOVERY,
    RECOVERY._replace(compiled=True),
    *SAMPLING,
    *(row._replace(compiled=True) for row in SAMPLING),
)
"""The table. A further way of training is a further row: by overrides, or a function of its own."""


def line(row: Row, found: Measured | str, peak: float) -> str:
    """One line of the table; ``found`` in words if nothing was measured."""
    compiled = "yes" if row.compiled else "no"
    if isinstance(found, str):
        return f"| {row.what} | - | {compiled} | {found} | - | - |"
    memory = "-" if found.peak is None else readable_bytes(found.peak)
    share = 2 * found.macs * found.per_second / peak
    return (
        f"| {row.what} | {found.batch} | {compiled} | {found.per_second:.3g} | {memory} | "
        f"{share:.1%} |"
    )


def head(dry: DryCommand, peak: float) -> list[str]:
    """What the figures depend on, and the head of the table."""
    first, last = probe.UNTIMED + 1, probe.STEPS
    return [
        f"{device_name(dry.objects.device)}, precision {dry.objects.trainer.precision}, torch "
        f"{torch.__version__}, tinyfusion {__version__}. Training: median of steps {first} "
        f"to {last} on noise. Sampling: {SAMPLER_STEPS} steps with guidance, by the "
        f"median of 3 rounds of fewer. Matrix peak, measured: {peak / 1e12:.3g} TFLOP/s.",
        "",
        "| what | batch | compiled | samples/s | peak memory | share of the matrix peak |",
        "|---|---|---|---|---|---|",
    ]


def attempt(row: Row, overrides: Sequence[str]) -> Measured | str:
    """Measure a row; what goes wrong is said in its line, so that the others are still run."""
    torch.compiler.reset()
    gc.collect()  # a trainer and its module know each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    more = [f"trainer.compile={row.compiled}", *row.overrides]
    try:
        return row.measure(dry_command_of("run", [*overrides, *more]))
    except Exception as error:
        return f"failed: {type(error).__name__}: {first_line(error)}"


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a miniature on the CPU")
    parser.add_argument("--micro-batch", type=int, default=64, help="most images at once")
    parser.add_argument("--eager-only", action="store_true", help="leave compiled rows out")
    parser.add_argument("--backend", default="inductor", help="of the compiled rows")
    parser.add_argument(
        "--minutes",
        type=float,
        default=7.5,
        help="no row is begun that would take longer if it took as long as the longest before it",
    )
    parser.add_argument("--output", type=Path, help="file to write the table to, too")
    parser.add_argument("overrides", nargs="*", help="further key=value of 'tinyfusion run'")
    arguments = parser.parse_args(argv)
    if not arguments.small and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use here; --small tries the script")
    began, longest = time.monotonic(), 0.0
    overrides = [
        *PAPER,
        *(SMALL if arguments.small else ()),
        f"trainer.micro_batch={arguments.micro_batch}",
        f"trainer.compile_backend={arguments.backend}",
        *arguments.overrides,
    ]
    dry = dry_command_of("run", overrides)
    side = SMALL_MATRIX if arguments.small else MATRIX
    peak = matrix_peak(dry.objects.device, dry.objects.dtype, side)
    lines = head(dry, peak)
    print("\n".join(lines), flush=True)
    for row in ROWS:
        if row.compiled and arguments.eager_only:
            continue
        before = time.monotonic()
        if before - began + longest > 60 * arguments.minutes:
            found: Measured | str = f"not measured: the {arguments.minutes:g} minutes were used up"
        else:
            found = attempt(row, overrides)
        longest = max(longest, time.monotonic() - before)
        lines.append(line(row, found, peak))
        print(lines[-1], flush=True)
        if arguments.output is not None:
            # After every row: a job that is ended leaves what it has measured.
            write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
