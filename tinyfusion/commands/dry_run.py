"""``dry_run=true``: what a command would train, take and write, without doing any of it.

Stages are put together on the meta device and one step of each is counted: neither checkpoint nor
data has to exist where ``backbone=`` says what is trained.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Sequence

import torch
from omegaconf import DictConfig, OmegaConf

from tinyfusion.backbones.contract import count_parameters
from tinyfusion.commands.dry_rounds import dry_rounds
from tinyfusion.commands.dry_setup import DrySetup, DryStage, no_data
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.pipeline import probe
from tinyfusion.pipeline.batching import Split, split_batch
from tinyfusion.pipeline.estimate import (
    StageMemory,
    fake,
    make_fake,
    optimizer_state_factor,
    stage_memory,
)
from tinyfusion.pipeline.probe import Probed, probe_sampling, probe_training
from tinyfusion.pipeline.schedule import described, warned
from tinyfusion.settings.check import check
from tinyfusion.settings.compose import build
from tinyfusion.text import readable_bytes
from tinyfusion.widths import WidthDecision

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
    for line in report(DrySetup(cfg)):
        print(line, flush=True)


def report(setup: DrySetup) -> Iterator[str]:
    """Lines of the report, as they become known: of every round that the command would make."""
    setup.check_samplers()
    yield f"tinyfusion {setup.cfg.command}: dry run; nothing is trained or written"
    for title, own in dry_rounds(setup):
        yield from ["", title] if title else []
        yield ""
        yield from _round(own)


def _round(setup: DrySetup) -> Iterator[str]:
    yield from _subject(setup)
    factor = optimizer_state_factor(build(setup.cfg.optimizer))
    probes = setup.cfg.dry_run_probe
    probes = torch.cuda.is_available() if probes is None else probes
    real = setup.stages(setup.on_device) if probes else None
    resume, hours = [], []
    for stage in setup.stages(setup.on_meta):
        settings = setup.settings(stage.name)
        key = f"training.{stage.name}.batch_size"
        split = split_batch(key, settings.batch_size, setup.world, setup.trainer.micro_batch)
        yield ""
        yield stage.name
        yield from _schedule(setup, stage, split)
        memory = _memory(setup, stage, split, factor)
        resume.append(memory.resume)
        yield from _table(memory, split)
        if real is not None:
            probed = _probe(setup, next(real), split)
            hours.append(probed.seconds * settings.steps / 3600)
            yield from _measured(probed, hours[-1], setup)
    yield ""
    yield from _evaluation(setup, probes, hours)
    yield from _files(setup, resume)
    if probes:
        yield _line("time", f"{_hours(sum(hours))} in all; loading, saving and decoding left out")
    else:
        reason = "no GPU here" if setup.cfg.dry_run_probe is None else "dry_run_probe=false"
        yield _line(
            "time", f"not estimated ({reason}); dry_run_probe=true times {probe.STEPS} steps here"
        )


def _subject(setup: DrySetup) -> Iterator[str]:
    """What is trained, on what, where."""
    cfg, arguments = setup.cfg, setup.arguments
    whole, pruned = setup.sizes()
    family = arguments["backbone"]
    said = setup.said or f"by {cfg.checkpoint}"
    if not setup.said and setup.configured is not None:
        said = "by backbone=; no checkpoint is looked at"
    depth = setup.on_meta(arguments).depth
    yield _line("network", f"{family}, {depth} blocks, {whole:,} parameters ({said})")
    decision = setup.decision()
    if decision is not None and pruned is not None:
        share = f"{100 * pruned / whole:.1f} % of them"
        what = f"{len(decision.kept)} blocks"
        if isinstance(decision, WidthDecision):
            what = f"{depth} blocks ({', '.join(f'{k} {v}' for k, v in decision.widths.items())})"
        yield _line("pruned", f"{what}, {pruned:,} parameters ({share})")
    source = setup.source
    found = "" if setup.data_found is None else "; not looked at, taken as ImageNet's number"
    yield _line(
        "data",
        f"{len(source):,} images of {source.channels} x {source.size} x {source.size}, "
        f"{source.num_classes:,} classes{found}",
    )
    if setup.data_found is not None:
        yield _line("", setup.data_found)
    t = setup.trainer
    extras = [
        f"strategy {t.strategy}" if setup.world > 1 else "",
        "blocks recomputed" if t.checkpoint_blocks else "",
        f"compiled by {t.compile_backend}" if t.compile else "",
    ]
    shown = ", ".join([t.accelerator, t.precision, *filter(None, extras)])
    yield _line("devices", f"{setup.world} ({shown})")


def _schedule(setup: DrySetup, stage: DryStage, split: Split) -> Iterator[str]:
    settings, recipe = setup.settings(stage.name), build(setup.cfg.training).recipe
    for line in described(stage.module, settings, split, len(setup.source)):
        yield from _wrapped(line)
    for line in warned(stage.module, settings, setup.trainer, split, stage.name, recipe):
        yield from _wrapped(f"warning: {line}")
    if recipe is not None:
        yield f"  meant to follow the recipe {recipe!r}"


def _memory(setup: DrySetup, stage: DryStage, split: Split, factor: float) -> StageMemory:
    source = setup.source
    # Its own: a process keeps copies of its tables, which would be fake ones here.
    stage.module.process = build(setup.cfg.process)
    with fake():
        make_fake(stage.module)
        if stage.teacher is not None:
            make_fake(stage.teacher)
        shape = (source.channels, source.size, source.size)
        return stage_memory(stage.module, stage.teacher, shape, split, setup.trainer, factor)


def _table(memory: StageMemory, split: Split) -> Iterator[str]:
    yield f"  {memory.trained:,} of {memory.parameters:,} parameters are trained"
    yield "  memory per device, estimated:"
    for name, size in memory.parts.items():
        note = f"   micro-batch of {split.images}" if name == "activations" else ""
        yield f"    {name:<22}{readable_bytes(size):>12}{note}"
    yield f"    {'together':<22}{readable_bytes(memory.total):>12}"


def _probe(setup: DrySetup, stage: DryStage, split: Split) -> Probed:
    return probe_training(
        stage.module,
        setup.source,
        setup.settings(stage.name),
        setup.trainer,
        split,
        stage.name,
        setup.seed,
    )


def _measured(probed: Probed, hours: float, setup: DrySetup) -> Iterator[str]:
    apart = "; on one device, without what they tell each other" if setup.world > 1 else ""
    yield f"  {probed.seconds:.3g} s per step ({probe.STEPS} real steps{apart}): {_hours(hours)}"
    if probed.peak is not None:
        yield f"  {readable_bytes(probed.peak)} of GPU memory at the peak, measured"


def _evaluation(setup: DrySetup, probes: bool, hours: list[float]) -> Iterator[str]:
    """What is sampled to score the models; its time is added to ``hours``."""
    cfg = setup.cfg
    if "evaluation" not in cfg or cfg.evaluation is None:
        return
    evaluation: Evaluation = build(cfg.evaluation)
    steps = evaluation.sampler.num_steps(setup.process)
    whole, student = setup.arguments, setup.student_arguments(setup.decision())
    scored = [whole, student, student, student] if cfg.command == "run" else [whole]
    scored += setup.earlier
    images = evaluation.num_samples * len(evaluation.seeds)
    twice = "" if evaluation.guidance.scale == 1 else ", each forward twice for guidance"
    yield _line(
        "evaluation",
        f"{len(scored)} model(s) x {images:,} images x {steps} steps{twice}",
    )
    if not probes:
        return
    batches = -(-evaluation.num_samples // evaluation.batch_size) * len(evaluation.seeds)
    seconds: dict[tuple[int, int], float] = {}  # by depth and size
    needed = 0.0
    for arguments in scored:
        net = setup.on_device(arguments)
        key = (net.depth, count_parameters(net))
        if key not in seconds:
            seconds[key] = probe_sampling(
                net,
                setup.process,
                evaluation.sampler,
                evaluation.guidance,
                min(evaluation.batch_size, evaluation.num_samples),
            )
        needed += seconds[key] * batches * steps / 3600
    hours.append(needed)
    yield _line("", f"{_hours(needed)} on one device, decoding and scoring left out")


def _files(setup: DrySetup, resume: list[int]) -> Iterator[str]:
    """Files of the run, and the most that lies on the disk at once."""
    whole, pruned = setup.sizes()
    model = (whole if pruned is None else pruned) * BYTES_PER_WEIGHT
    written = {
        "pretrain": ["model"],
        "prune": ["pruned"],
        "recover": ["recovered", "recovered_live"],
        "run": ["pruned", "recovered", "recovered_live"],
    }[setup.cfg.command]
    names = ", ".join(f"{name}/" for name in written)
    yield _line("files", f"{names}: {readable_bytes(model)} each")
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
