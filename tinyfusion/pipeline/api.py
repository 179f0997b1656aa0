"""The method in a few calls, for scripts and notebooks: learn a mask, cut, recover, sample, score.

No configuration and no folder is needed. Data is an `ImageSource` or any iterable of batches
``(images, labels)``; training runs by itself or under a `lightning.Trainer` that is passed in; the
numbers of a published recipe are taken by its name (``recipe=tinyfusion.recipes.tinydit_d14``).

    import tinyfusion as tf

    decision = tf.learn_mask(net, batches, keep=14, steps=300)
    student = tf.recover(tf.prune(net, decision), batches, teacher=net, steps=500)
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.data.source import ImageSource
from tinyfusion.data.stream import BatchStream, Pair, as_source
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Lora
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.pipeline import pruning, recovering
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.defaults import process_for, sampler_for
from tinyfusion.pipeline.recovery_checks import RECOVERY, check_recovery
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.processes.contract import Process
from tinyfusion.pruners.contract import Pruner
from tinyfusion.pruners.learned import MASK_LEARNING, Delta, Learned
from tinyfusion.recovery.objective import Objective
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.generate import generate_images
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.training.recipes import Recipe, tinydit_d14
from tinyfusion.training.settings import PhaseSettings, TrainerSettings, TrainingSettings
from tinyfusion.units import BLOCKS

Data = ImageSource | Iterable[Pair]

_DEFAULTS = {
    MASK_LEARNING: TrainingSettings(steps=300, batch_size=128, learning_rate=1e-3),
    RECOVERY: TrainingSettings(
        steps=600,
        batch_size=64,
        learning_rate=2e-3,
        learning_rate_end=1e-5,
        ema_decay=0.999,
    ),
}
"""Lengths and rates where neither a recipe nor the caller says them: those of the miniatures."""


def learn_mask(
    net: Backbone,
    data: Data,
    *,
    keep: int | None = None,
    scheme: Any = None,
    units: str = BLOCKS,
    budget: Mapping[str, Any] | None = None,
    delta: Delta | None = None,
    recipe: Recipe | None = None,
    process: Process | None = None,
    trainer: Trainer | TrainerSettings | None = None,
    folder: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    **settings: Any,
) -> Decision:
    """Learn which units to keep (TinyFusion, section 3).

    Args:
        net: the pretrained network; left as it is.
        data: training data.
        keep: number of units that stay; with nothing said, half of them.
        scheme: decide within groups, as in the paper: ``"1:2"``, ``[[3, 4], [2, 4]]``, or
            ``"even"`` for the smallest equal groups that keep ``keep``.
        units: what is chosen among: ``"blocks"``, or ``"branches"`` (attention, MLP) of blocks.
        budget: fields of `Wanted` instead of ``keep``, such as ``{"parameters": 0.5}``, and
            constraints: ``{"protected": [0]}``.
        delta: the co-trained weight update; ``None`` for LoRA.
        recipe: published numbers for everything that is not given otherwise.
        process: the process that ``net`` was trained on; ``None`` for the usual one of its kind.
        trainer: a trainer of your own, or settings of one; ``None`` trains on one device.
        folder: where to write resume checkpoints and figures; ``None`` keeps nothing.
        callbacks: further Lightning callbacks.
        seed: seed of all draws.
        settings: fields of `TrainingSettings`, such as ``steps`` and ``learning_rate``.

    Raises:
        InputError: a scheme or number of blocks that does not fit, unknown settings, or data that
            is none.
    """
    if delta is None:
        delta = Lora() if recipe is None else Lora(**asdict(recipe.lora))
    gates = (recipe or tinydit_d14).gates
    pruner = Learned(
        delta,
        gates.temperature,
        gates.scale,
        # Not published: by what is learned, and by the length of the run.
        None if recipe is None else gates.gate_rate_factor,
        None if recipe is None else gates.gate_ema_decay,
    )
    wanted = Wanted.of(scheme, keep, units, budget)
    if recipe is not None and wanted == Wanted():
        wanted = Wanted(recipe.scheme)
    runner = _runner(net, data, MASK_LEARNING, settings, process, trainer, callbacks, seed, recipe)
    return _chosen(pruner, net, runner, wanted, folder)


def choose(
    net: Backbone,
    data: Data,
    pruner: Pruner,
    *,
    keep: int | None = None,
    scheme: Any = None,
    units: str = BLOCKS,
    budget: Mapping[str, Any] | None = None,
    process: Process | None = None,
    trainer: Trainer | TrainerSettings | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
) -> Decision:
    """Let any pruner choose what stays, such as ``ShortGPT(TopK())`` or one of your own.

    Args:
        net: the pretrained network; left as it is.
        data: training data, on which the pruner calibrates.
        pruner: the pruner.
        keep: see `learn_mask`.
        scheme: see `learn_mask`.
        units: see `learn_mask`.
        budget: see `learn_mask`.
        process: see `learn_mask`.
        trainer: see `learn_mask`; for a pruner that trains.
        folder: see `learn_mask`.
        seed: seed of all draws.

    Raises:
        InputError: see `learn_mask`.
    """
    runner = _runner(net, data, MASK_LEARNING, {}, process, trainer, (), seed, None)
    return _chosen(pruner, net, runner, Wanted.of(scheme, keep, units, budget), folder)


def recover(
    student: Backbone,
    data: Data,
    *,
    teacher: Backbone | None = None,
    objective: Objective | None = None,
    decision: Decision | None = None,
    recipe: Recipe | None = None,
    process: Process | None = None,
    trainer: Trainer | TrainerSettings | None = None,
    folder: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    **settings: Any,
) -> Backbone:
    """Train a pruned network back to quality (TinyFusion, section 4.4).

    Args:
        student: the pruned network, or with stages `FadeOut` the whole one; left as it is.
        data: training data.
        teacher: the network to distil from; ``None`` fine-tunes on the process's own loss.
        objective: what is minimised; ``None``: masked distillation with a teacher, the process's
            own loss without.
        decision: how the student was cut from the teacher; only needed where the student does not
            know it itself, as one from `tinyfusion.prune` does, and by stages and updates that
            go by it.
        recipe: see `learn_mask`.
        process: see `learn_mask`.
        trainer: see `learn_mask`.
        folder: see `learn_mask`.
        callbacks: see `learn_mask`.
        seed: seed of all draws.
        settings: fields of `TrainingSettings`.

    Returns:
        The recovered network with averaged weights, in eval mode, where training left it.

    Raises:
        InputError: student and teacher that can't be compared, or see `learn_mask`.
    """
    if objective is None:
        if teacher is None:
            objective = Objective()
        elif recipe is not None:
            objective = Objective(**asdict(recipe.objective))
        else:
            values = asdict(tinydit_d14.objective) | {"variance_kl": False}
            objective = Objective(**values | {"feature_mask": "intersection"})
    runner = _runner(student, data, RECOVERY, settings, process, trainer, callbacks, seed, recipe)
    check_recovery(objective, student, teacher, runner, decision=decision)
    own = copy.deepcopy(student)
    guide = None if teacher is None else copy.deepcopy(teacher)
    with _folder(folder) as place:
        outcome = recovering.recover(objective, own, guide, decision, runner, folder=place)
    return outcome.finished()


def sample(
    net: Backbone,
    conditioning: Tensor | Conditioning | int,
    *,
    process: Process | None = None,
    recipe: Recipe | None = None,
    sampler: Sampler | None = None,
    guidance: Guidance | float | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Draw pictures.

    Args:
        net: the network.
        conditioning: one row for each picture: labels, or another conditioning; a number draws so
            many pictures of the network's own examples: of all classes in turn.
        process: see `learn_mask`.
        recipe: published sampler and guidance, where none are given.
        sampler: how to sample; ``None`` for a quick one of the process's kind, or the recipe's.
        guidance: classifier-free guidance, or its scale; ``None`` for none, or the recipe's.
        seed: sampling seed.
        batch_size: pictures at a time.

    Returns:
        Images, uint8 0..255, shape (N, C, H, W), on the CPU.

    Raises:
        InputError: labels that the network does not have, or parts that don't fit each other.
    """
    if isinstance(conditioning, int):
        conditioning = net.example_conditioning(conditioning)
    if guidance is None:
        guidance = _guidance(recipe)
    if not isinstance(guidance, Guidance):
        guidance = Guidance(guidance)
    process = process or process_for(net)
    sampler = sampler or sampler_for(process, recipe)
    return generate_images(
        net, process, sampler, conditioning, seed, guidance, batch_size=batch_size
    )


def score(
    net: Backbone,
    data: Data,
    *,
    teacher: Backbone | None = None,
    evaluation: Evaluation | None = None,
    process: Process | None = None,
    recipe: Recipe | None = None,
    num_samples: int | None = None,
    extractor: str = "tinyfusion-inception",
) -> dict[str, float]:
    """FID and the like of samples, held-out loss, size, and the distance to a teacher.

    Args:
        net: the network.
        data: real images; with a held-out part for the held-out loss.
        teacher: if given, ``teacher_distance`` is added.
        evaluation: the whole protocol; ``None`` builds one of what follows.
        process: see `learn_mask`.
        recipe: published sampler, guidance and number of samples.
        num_samples: samples; ``None`` for 1,000, or the recipe's.
        extractor: feature extractor; ``tinyfusion-digits`` for 8x8 digits.

    Returns:
        Figures by name; see `Evaluation.score`.

    Raises:
        InputError: see `Evaluation.score`.
    """
    process = process or process_for(net)
    if evaluation is None:
        if num_samples is None:
            num_samples = 1000 if recipe is None else recipe.num_samples
        sampler = sampler_for(process, recipe)
        evaluation = Evaluation(num_samples, sampler, _guidance(recipe), extractor=extractor)
    return evaluation.score(net, process, as_source(data), teacher)


def _guidance(recipe: Recipe | None) -> Guidance:
    return Guidance(1.0) if recipe is None else Guidance(**asdict(recipe.guidance))


def _chosen(
    pruner: Pruner,
    net: Backbone,
    runner: PhaseRunner,
    wanted: Wanted,
    folder: Path | str | None,
) -> Decision:
    with _folder(folder) as place:
        return pruning.choose(pruner, net, runner, wanted, folder=place)


def _runner(
    net: Backbone,
    data: Data,
    phase: str,
    given: Mapping[str, Any],
    process: Process | None,
    trainer: Trainer | TrainerSettings | None,
    callbacks: Sequence[Callback],
    seed: int,
    recipe: Recipe | None,
) -> PhaseRunner:
    """What executes one phase of a call.

    Raises:
        InputError: unknown settings, or data that is none.
    """
    known = TrainingSettings.__dataclass_fields__
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}; valid settings: {', '.join(known)}")
    source = as_source(data)
    settings = _DEFAULTS[phase] if recipe is None else getattr(recipe, phase)
    if isinstance(source, BatchStream):
        # The batches are what they are.
        settings = replace(settings, batch_size=source.batch_size)
    settings = replace(settings, **given)
    process = process or process_for(net)
    process.check(net)
    values = {} if recipe is None else asdict(recipe.optimizer)
    optimizer: Callable[..., Any] = partial(
        torch.optim.AdamW, **({"weight_decay": 0.0, "fused": True} | values)
    )
    return PhaseRunner(
        process,
        source,
        PhaseSettings(**cast(Any, {phase: settings})),
        trainer or TrainerSettings(progress=False),
        optimizer,
        seed,
        make_callbacks=lambda: list(callbacks),
    )


@contextmanager
def _folder(folder: Path | str | None) -> Iterator[Path]:
    """The folder that was given, or one that is gone afterwards."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
