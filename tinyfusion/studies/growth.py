"""How the cost of a training or sampling step grows with depth, tokens, batch and width.

Steps of the published recipe are run on small networks of many sizes, on one CPU thread. Their
seconds and bytes are the points that `tinyfusion.studies.cost_model` is fitted to.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, evaluating
from tinyfusion.commands.dry_command import DryCommand, dry_command_of
from tinyfusion.data.datamodule import Batch
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.metrics.memory import LiveBytes
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.pipeline.estimate import teacher_of
from tinyfusion.samplers.generate import generate
from tinyfusion.training.module import DenoiserTraining

HEAD_CHANNELS = 32
SAMPLING = "sampling"
WORK = ("mask_learning", "recovery", SAMPLING)
"""What is measured: a step of each phase, and an evaluation under guidance."""

EVALUATIONS = 2
"""Evaluations of the network that are timed together in sampling."""

LEAST_ROUNDS, LEAST_SECONDS = 4, 0.5
"""Rounds of a size in a pass: at least so many, and so long in all."""


@dataclass(frozen=True, order=True)
class Size:
    """A network and its batch.

    Attributes:
        depth: blocks, of which half stay.
        width: channels.
        tokens: tokens of a sample, a square number.
        batch: samples of a step.

    Raises:
        InputError: sizes that no DiT has.
    """

    depth: int = 8
    width: int = 128
    tokens: int = 64
    batch: int = 8

    def __post_init__(self) -> None:
        if self.depth < 2 or self.depth % 2:
            raise InputError(f"depth={self.depth} must be even and positive: half of it stays")
        if self.width < HEAD_CHANNELS or self.width % HEAD_CHANNELS:
            raise InputError(f"width={self.width} must be a multiple of {HEAD_CHANNELS}")
        if self.tokens < 1 or self.side**2 != self.tokens:
            raise InputError(f"tokens={self.tokens} must be a square number")
        if self.batch < 1:
            raise InputError(f"batch={self.batch} must be at least 1")

    @property
    def side(self) -> int:
        """Tokens along one side of the picture."""
        return round(max(0, self.tokens) ** 0.5)

    def overrides(self) -> list[str]:
        """What makes the published recipe one of this size, on one CPU thread in float32."""
        return [
            "experiment=imagenet/tinydit_d14",
            "data.root=none",
            "callbacks=none",
            "trainer=cpu",
            "trainer.threads=1",
            f"backbone.depth={self.depth}",
            f"backbone.hidden_size={self.width}",
            f"backbone.num_heads={self.width // HEAD_CHANNELS}",
            f"backbone.input_size={2 * self.side}",
            "backbone.num_classes=10",
            f"training.mask_learning.batch_size={self.batch}",
            f"training.recovery.batch_size={self.batch}",
            f"sampler.steps={EVALUATIONS}",
        ]


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""

BASE = Size()
AXES: dict[str, tuple[int, ...]] = {
    "depth": (2, 4, 12, 16),
    "tokens": (16, 36, 144, 256),
    "batch": (1, 2, 4, 16, 32),
    "width": (64, 96, 192, 256, 384),
}
"""Sizes along each axis that the model is fitted to, beside `BASE`."""

LARGEST = {"depth": 28, "tokens": 400, "batch": 64, "width": 512}
"""Sizes beyond them, which it has to foretell."""


def fitted_sizes() -> list[Size]:
    """The points of the fit: along the axes, and four on which several sizes differ."""
    along = [replace(BASE, **{axis: n}) for axis, values in AXES.items() for n in values]
    across = [Size(4, 256, 144, 4), Size(16, 64, 256, 4), Size(4, 64, 16, 64), Size(12, 192, 36, 8)]
    return [BASE, *along, *across]


def held_out_sizes() -> list[Size]:
    """Points that are not fitted: beyond the end of each axis, and larger in all of them."""
    beyond = [replace(BASE, **{axis: n}) for axis, n in LARGEST.items()]
    return [*beyond, Size(12, 256, 144, 8), Size(16, 192, 144, 8)]


@dataclass(frozen=True)
class Point:
    """What one kind of work at one size took.

    Attributes:
        work: one of `WORK`.
        size: the size.
        rounds: processor time of a step over that of the same work at `BASE`, run right before it.
        peak: most bytes at once: weights, state of training, activations.
        state: bytes of weights, moments and averages, which stay between steps.
        macs: multiply-accumulates of a forward of one sample.
        parameters: parameters of the whole network.
        seconds: processor time of a step, of sampling of one evaluation: the rounds' median times
            the least time at `BASE`.
    """

    work: str
    size: Size
    rounds: tuple[float, ...]
    peak: int
    state: int
    macs: int
    parameters: int
    seconds: float = 0.0


def training_step(
    module: DenoiserTraining, batch: Batch
) -> tuple[Callable[[], None], list[Tensor]]:
    """One optimiser step of a phase as a function, and the tensors that stay between steps.

    What a trainer adds of its own, such as logging, is left out.
    """
    optimizer = module.configure_optimizers()["optimizer"]
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        module.training_step(batch, 0).backward()
        nn.utils.clip_grad_norm_(trained, module.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        for average, averaged in module.averages.values():
            average.update(averaged)

    module.train()
    step()  # the optimiser makes its state in its first step
    teacher = teacher_of(module)
    held = [*module.parameters(), *module.buffers()]
    held += [] if teacher is None else [*teacher.parameters(), *teacher.buffers()]
    held += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    held += [v for average, _ in module.averages.values() for v in average.shadow.values()]
    return step, held


def steps_of(dry: DryCommand) -> Iterator[tuple[str, Callable[[], object], list[Tensor]]]:
    """Every work of `WORK` as a function, with the tensors that stay between its steps."""
    for phase in dry.phases(dry.on_device):
        count = dry.runner.settings_of(phase).batch_size
        images, conditioning = dry.objects.source.fetch(torch.arange(count), None, None)
        yield phase.name, *training_step(phase.module(), Batch(images, conditioning, 0, 0))
    net, evaluation = dry.on_device(dry.arguments), dry.objects.evaluation
    assert evaluation is not None, "'run' has one"
    conditioning = net.example_conditioning(count)

    def sample() -> None:
        with evaluating(net):
            generate(
                net, dry.objects.process, evaluation.sampler, conditioning, 0, evaluation.guidance
            )

    yield SAMPLING, sample, [*net.parameters(), *net.buffers()]


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, where it can be asked to (glibc).

    Memory that went back to the system is fetched anew page by page, which takes a tenth of some
    steps and none of others, as what ran before has left it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


class Reference:
    """The work at `BASE`, which is run in turn with that at every other size.

    How fast a machine is drifts with what else it does, by more than sizes have to be told apart;
    what is run one right after the other drifts alike.
    """

    def __init__(self) -> None:
        keep_freed_memory()
        dry = dry_command_of("run", BASE.overrides())
        self._steps = {work: step for work, step, _ in steps_of(dry)}
        self.seconds = dict.fromkeys(WORK, math.inf)

    def ratio(self, work: str, step: Callable[[], object]) -> float:
        """Processor time of a step over that of the same work at `BASE`."""
        base = _seconds(self._steps[work])
        one = base / (EVALUATIONS if work == SAMPLING else 1)
        self.seconds[work] = min(self.seconds[work], one)
        return _seconds(step) / base


def measure(size: Size, reference: Reference) -> list[Point]:
    """Run every work of `WORK` at a size.

    Args:
        size: the size.
        reference: what it is run in turn with.
    """
    dry = dry_command_of("run", size.overrides())
    whole: Backbone = dry.on_meta(dry.arguments)
    counted = {"macs": macs(whole), "parameters": parameters(whole)}
    points = []
    for work, step, held in steps_of(dry):
        with LiveBytes(held) as live:
            step()
        state = sum(t.nbytes for t in {t.untyped_storage()._cdata: t for t in held}.values())
        began, rounds = time.process_time(), [reference.ratio(work, step)]
        while len(rounds) < LEAST_ROUNDS or time.process_time() - began < LEAST_SECONDS:
            rounds.append(reference.ratio(work, step))
        points.append(Point(work, size, tuple(rounds), state + live.peak, state, **counted))
    return points


def measure_all(
    sizes: Sequence[Size], file: Path, passes: int = 2, say: Callable[[str], object] = print
) -> list[Point]:
    """Measure sizes; what is in ``file`` already is left out.

    Args:
        sizes: what to measure.
        file: JSON file of the points, written after every size.
        passes: times that all sizes are gone through.
        say: told of every size.
    """
    found, seconds = read_points(file) if file.is_file() else ({}, dict.fromkeys(WORK, math.inf))
    reference: Reference | None = None
    for number in range(1, passes + 1):
        for size in sizes:
            if len(found.get(size, ())) >= number:
                continue
            reference = reference or Reference()
            found.setdefault(size, []).append(measure(size, reference))
            seconds = {work: min(seconds[work], reference.seconds[work]) for work in WORK}
            passed = [[asdict(p) for p in own] for done in found.values() for own in done]
            write_json(file, {"reference": seconds, "points": passed})
            say(f"pass {number} of {passes}, {size}")
    return [
        merged([own[place] for own in found[size]], seconds)
        for size in sizes
        for place in range(len(WORK))
    ]


def merged(points: Sequence[Point], seconds: Mapping[str, float]) -> Point:
    """One point of what several passes found of it.

    Args:
        points: of one work and size.
        seconds: least time of every work at `BASE`.
    """
    rounds = tuple(ratio for point in points for ratio in point.rounds)
    first = points[0]
    return replace(first, rounds=rounds, seconds=median(rounds) * seconds[first.work])


def read_points(file: Path) -> tuple[dict[Size, list[list[Point]]], dict[str, float]]:
    """What the passes found, by size, and the least time of every work at `BASE`.

    Raises:
        InputError: a file that is none of `measure_all`.
    """
    content = read_json(file, "points of the study of costs")
    try:
        found: dict[Size, list[list[Point]]] = {}
        for own in content["points"]:
            points = [
                Point(**{**row, "size": Size(**row["size"]), "rounds": tuple(row["rounds"])})
                for row in own
            ]
            found.setdefault(points[0].size, []).append(points)
        return found, {work: float(content["reference"][work]) for work in WORK}
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(
            f"{str(file)!r} holds no points of this study; give another --root"
        ) from None


def _seconds(step: Callable[[], object]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began
