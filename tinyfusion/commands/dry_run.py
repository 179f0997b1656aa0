"""``dry_run=true``: what a command would train, take and write, without doing any of it.

Phases are put together on the meta device and one step of each is counted: neither checkpoint nor
data has to exist where ``backbone=`` says what is trained.
"""

from __future__ import annotations

import copy
import logging
import textwrap
from collections.abc import Iterator, Sequence

import torch
from omegaconf import DictConfig, OmegaConf

from tinyfusion.backbones.contract import count_parameters
from tinyfusion.commands.dry_command import DryCommand, dry_command, no_data
from tinyfusion.commands.dry_rounds import dry_rounds
from tinyfusion.notices import notice
from tinyfusion.pipeline import probe
from tinyfusion.pipeline.batching import Split
from tinyfusion.pipeline.estimate import (
    PhaseMemory,
    fake,
    make_fake,
    optimizer_state_factor,
    phase_memory,
    teacher_of,
)
from tinyfusion.pipeline.probe import Probed, probe_sampling, probe_training
from tinyfusion.pipeline.schedule import described, warned
from tinyfusion.settings.check import WITH_LIGHTNING, check, check_targets
from tinyfusion.settings.objects import objects_of
from tinyfusion.text import readable_bytes
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.phases import Phase

WIDTH = 100
BYTES_PER_WEIGHT = 4
"""Model files hold float32."""


def start(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Print the dry run of a composed configuration.

    Args:
        cfg: composed configuration; what is missing of its data and its
            autoencoder is left out.
        overrides: what the command line said.

    Raises:
        InputError: a wrong key or value, or nothing that says what the network is.
    """
    missing = [key for key in cfg.get("data") or () if OmegaConf.is_missing(cfg.data, key)]
    if missing:
        stand_in = f"{no_data.__module__}.{no_data.__name__}"
        cfg.data = OmegaConf.create({"_target_": stand_in, "key": f"data.{missing[0]}"})
    decoder = cfg.get("autoencoder") or {}
    if any(OmegaConf.is_missing(decoder, key) for key in decoder):
        cfg.autoencoder = None  # nothing is decoded
    cfg = check(cfg, overrides)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    for group in WITH_LIGHTNING:
        check_targets(cfg, group)
    for line in report(dry_command(objects_of(cfg)), cfg.dry_run_probe):
        print(line, flush=True)


def report(dry: DryCommand, probes: bool | None) -> Iterator[str]:
    """Lines of the report, as they become known: of every round that the command would make.

    Args:
        dry: the command.
        probes: time a few real steps; ``None`` where there is a GPU.
    """
    dry.check_samplers()
    yield f"tinyfusion {dry.objects.command}: dry run; nothing is trained or written"
    for title, own in dry_rounds(dry):
        yield from ["", title] if title else []
        yield ""
        yield from _round(own, probes)


def _round(dry: DryCommand, asked: bool | None) -> Iterator[str]:
    yield from _subject(dry)
    runner = dry.runner
    factor = optimizer_state_factor(lambda groups: runner.optimizer(groups, lr=1e-3))
    probes = torch.cuda.is_available() if asked is None else asked
    real = dry.phases(dry.on_device) if probes else None
    resume, hours = [], []
    for phase in dry.phases(dry.on_meta):
        settings = runner.settings_of(phase)
        split = runner.split(phase.name, settings)
        module = phase.module()
        yield ""
        yield phase.name
        yield from _schedule(dry, phase, module, split)
        memory = _memory(dry, module, split, factor)
        resume.append(memory.resume)
        yield from _table(memory, split)
        if real is not None:
            probed = _probe(dry, next(real), split)
            hours.append(probed.seconds * settings.steps / 3600)
            yield from _measured(probed, hours[-1], runner.devices)
    yield ""
    yield from _evaluation(dry, probes, hours)
    yield from _files(dry, resume)
    if probes:
        yield _line("time", f"{_hours(sum(hours))} in all; loading, saving and decoding left out")
    else:
        reason = "no GPU here" if asked is None else "dry_run_probe=false"
        yield _line(
            "time", f"not estimated ({reason}); dry_run_probe=true times {probe.STEPS} steps here"
        )


def _subject(dry: DryCommand) -> Iterator[str]:
    """What is trained, on what, where."""
    full, pruned = dry.parameters()
    depth = dry.on_meta(dry.arguments).depth
    family = dry.arguments["backbone"]
    yield _line("network", f"{family}, {depth} blocks, {full:,} parameters ({dry.origin})")
    decision = dry.decision
    pruner, wanted = dry.objects.pruner, dry.objects.wanted
    if pruner is not None and dry.objects.decision_path is None:
        for line in wanted.ignored(pruner):
            notice(line)
    if decision is not None and pruned is not None:
        share = f"{100 * pruned / full:.1f} % of them"
        what = f"{len(decision.origins) if decision.is_about_blocks else depth} blocks"
        if decision.resized is not None:
            widths = decision.resized.widths
            what += f" ({', '.join(f'{k} {v}' for k, v in widths.items())})"
        if decision.removed:
            what += f" (less {len(decision.removed)} branches)"
        yield _line("pruned", f"{what}, {pruned:,} parameters ({share})")
        if wanted.latency is not None:
            yield _line(
                "",
                f"budget.latency={wanted.latency} is measured when the command runs; counted here: "
                f"budget.macs={wanted.unmeasured().macs}",
            )
    source = dry.objects.source
    found = "" if dry.missing_data is None else "; not looked at, taken as ImageNet's number"
    yield _line(
        "data",
        f"{len(source):,} images of {source.channels} x {source.size} x {source.size}, "
        f"{source.num_classes:,} classes{found}",
    )
    if dry.missing_data is not None:
        yield _line("", dry.missing_data)
    t, devices = dry.objects.trainer, dry.objects.devices
    extras = [
        f"strategy {t.strategy}" if devices > 1 else "",
        "blocks recomputed" if t.checkpoint_blocks else "",
        f"compiled by {t.compile_backend}" if t.compile else "",
    ]
    settings = ", ".join([t.accelerator, t.precision, *filter(None, extras)])
    yield _line("devices", f"{devices} ({settings})")


def _schedule(
    dry: DryCommand, phase: Phase, module: DenoiserTraining, split: Split
) -> Iterator[str]:
    settings, recipe = dry.runner.settings_of(phase), dry.runner.training.recipe
    for line in described(module, settings, split, len(dry.objects.source)):
        yield from _wrapped(line)
    for line in warned(module, settings, dry.objects.trainer, split, phase.name, recipe):
        yield from _wrapped(f"warning: {line}")
    if recipe is not None:
        yield f"  meant to follow the recipe {recipe!r}"


def _memory(dry: DryCommand, module: DenoiserTraining, split: Split, factor: float) -> PhaseMemory:
    source = dry.objects.source
    # Its own: a process keeps copies of its tables, which would be fake ones here.
    module.process = copy.deepcopy(dry.objects.process)
    teacher = teacher_of(module)
    with fake():
        make_fake(module)
        if teacher is not None:
            make_fake(teacher)
        shape = (source.channels, source.size, source.size)
        return phase_memory(module, teacher, shape, split, dry.objects.trainer, factor)


def _table(memory: PhaseMemory, split: Split) -> Iterator[str]:
    yield f"  {memory.trained:,} of {memory.parameters:,} parameters are trained"
    yield "  memory per device, estimated:"
    for name, size in memory.parts.items():
        note = f"   micro-batch of {split.images}" if name == "activations" else ""
        yield f"    {name:<22}{readable_bytes(size):>12}{note}"
    yield f"    {'together':<22}{readable_bytes(memory.total):>12}"


def _probe(dry: DryCommand, phase: Phase, split: Split) -> Probed:
    return probe_training(
        phase.module(),
        dry.objects.source,
        dry.runner.settings_of(phase),
        dry.objects.trainer,
        split,
        phase.name,
        dry.objects.seed,
    )


def _measured(probed: Probed, hours: float, devices: int) -> Iterator[str]:
    apart = "; on one device, without what they tell each other" if devices > 1 else ""
    yield f"  {probed.seconds:.3g} s per step ({probe.STEPS} real steps{apart}): {_hours(hours)}"
    if probed.peak is not None:
        yield f"  {readable_bytes(probed.peak)} of GPU memory at the peak, measured"


def _evaluation(dry: DryCommand, probes: bool, hours: list[float]) -> Iterator[str]:
    """What is sampled to score the models; its time is added to ``hours``."""
    evaluation, process = dry.objects.evaluation, dry.objects.process
    if evaluation is None:
        return
    steps = evaluation.sampler.num_steps(process)
    scored = dry.scored()
    images = evaluation.num_samples * len(evaluation.seeds)
    twice = "" if evaluation.guidance.scale == 1 else ", each forward twice for guidance"
    yield _line(
        "evaluation",
        f"{len(scored)} model(s) x {images:,} images x {steps} steps{twice}",
    )
    if not probes:
        return
    batches = -(-evaluation.num_samples // evaluation.batch_size)
    batches = -(-batches // dry.objects.devices) * len(evaluation.seeds)
    seconds: dict[tuple[int, int], float] = {}  # by depth and size
    needed = 0.0
    for arguments in scored:
        net = dry.on_device(arguments)
        key = (net.depth, count_parameters(net))
        if key not in seconds:
            seconds[key] = probe_sampling(
                net,
                process,
                evaluation.sampler,
                evaluation.guidance,
                min(evaluation.batch_size, evaluation.num_samples),
            )
        needed += seconds[key] * batches * steps / 3600
    hours.append(needed)
    yield _line(
        "", f"{_hours(needed)} on {dry.objects.devices} device(s), decoding and scoring left out"
    )


def _files(dry: DryCommand, resume: list[int]) -> Iterator[str]:
    """Files of the run, and the most that lies on the disk at once."""
    full, pruned = dry.parameters()
    model = (full if pruned is None else pruned) * BYTES_PER_WEIGHT
    written = dry.written()
    yield _line(
        "files", f"{', '.join(f'{name}/' for name in written)}: {readable_bytes(model)} each"
    )
    # Replaced by a rename: for a moment there are two.
    largest = 2 * max(resume, default=0)
    if resume:
        sizes = ", ".join(readable_bytes(size) for size in resume)
        yield _line("", f"resume.ckpt: {sizes}, twice while it is replaced, gone at the end")
    yield _line("", f"at most {readable_bytes(len(written) * model + largest)} on the disk at once")


def _line(title: str, text: str) -> str:
    return f"{title:<12}{text}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
