"""A command put together without checkpoint, data or devices, to be counted instead of run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from hydra import compose, initialize_config_dir

from tinyfusion.backbones.contract import Backbone, count_parameters
from tinyfusion.backbones.presets import FAMILIES, build_empty, family_of
from tinyfusion.backbones.presets import build as build_backbone
from tinyfusion.commands.checks import check_data, check_latents, check_sampling
from tinyfusion.commands.loading import load, runner_of
from tinyfusion.data.source import ImageSource
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.pipeline.pretraining import pretraining_phase
from tinyfusion.pipeline.probe import NoiseImages
from tinyfusion.pipeline.pruning import context_of, cuts_width, planned
from tinyfusion.pipeline.recovering import recovery_phases
from tinyfusion.pipeline.recovery_checks import (
    RecoveryContext,
    check_recovery,
    starts_whole,
    with_scores,
)
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pruners.contract import phases_of
from tinyfusion.settings.check import check
from tinyfusion.settings.objects import SOURCE, Objects, objects_of
from tinyfusion.settings.overview import conf_folder
from tinyfusion.training.phases import Phase
from tinyfusion.training.recipes import IMAGENET_IMAGES

Make = Callable[[dict[str, Any]], Backbone]
"""From constructor arguments to a network, on the meta device or a real one."""


def no_data(key: str) -> NoReturn:
    """Stands in a configuration for data of which a value was not given.

    Raises:
        InputError: always.
    """
    raise InputError(f"{key}= was not given")


@dataclass(frozen=True)
class DryCommand:
    """A command, or one round of it, whose networks have shapes without values.

    Attributes:
        objects: the command's.
        arguments: family and constructor arguments of the network that the command begins with.
        origin: where these are from, in words.
        teacher: arguments of the network to distil from, where rounds say which; ``None`` reads
            ``teacher.path``.
        earlier: arguments of networks that are scored beside those of the command itself.
        missing_data: why the data was not looked at; ``None`` if it was.
    """

    objects: Objects
    arguments: dict[str, Any]
    origin: str
    teacher: dict[str, Any] | None = None
    earlier: tuple[dict[str, Any], ...] = ()
    missing_data: str | None = None

    @cached_property
    def runner(self) -> PhaseRunner:
        """Settings of phases; nothing is executed by it."""
        return runner_of(self.objects, None)

    @cached_property
    def decision(self) -> Decision | None:
        """The given decision, or one that keeps as much as the command would.

        ``None`` if the command prunes nothing.

        Raises:
            InputError: scheme, number of blocks or indices that don't fit the network.
        """
        objects = self.objects
        if objects.decision_path is not None:
            return Decision.load(objects.decision_path)
        if objects.pruner is None:
            return None
        left = [phase.leaves for phase in self._pruning(self.on_meta) if phase.leaves is not None]
        if left:
            return left[-1]
        net = self.on_meta(self.arguments)
        return planned(objects.pruner, net, objects.wanted.unmeasured(), objects.seed)

    @cached_property
    def student(self) -> dict[str, Any]:
        """Arguments of the pruned network; those of the first one if nothing is pruned."""
        decision = self.decision
        if decision is None:
            return self.arguments
        net = self.on_meta(self.arguments)
        resized: dict[str, Any] = {}
        if decision.resized is not None:
            resized = {**net.width_plan().fixed, **decision.resized.widths}
        net.remove_branches(decision.removed)
        if decision.is_about_blocks:
            net.keep_blocks(decision.origins)
        return {**self.arguments, **net.config(), **resized}

    def on_meta(self, arguments: dict[str, Any]) -> Backbone:
        """A network of shapes without values.

        Raises:
            InputError: sizes that can't be, or a network of another kind of process.
        """
        net = on_meta(arguments)
        self.objects.process.check(net, "backbone")
        return net

    def on_device(self, arguments: dict[str, Any]) -> Backbone:
        """A network with random weights where it would be trained."""
        with self.objects.device:
            return build_backbone(arguments)

    def parameters(self) -> tuple[int, int | None]:
        """Parameters of the network that the command begins with, and of the pruned one if any."""
        full = count_parameters(self.on_meta(self.arguments))
        if self.decision is None:
            return full, None
        return full, count_parameters(self.on_meta(self.student))

    def scored(self) -> list[dict[str, Any]]:
        """Arguments of the models that the command scores."""
        names = getattr(self._module, "SCORED", ())
        return [
            *(self.arguments if name == SOURCE else self.student for name in names),
            *self.earlier,
        ]

    def written(self) -> tuple[str, ...]:
        """Names of the model folders that the command writes."""
        return self._module.MODELS

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"tinyfusion.commands.{self.objects.command}")

    def check_samplers(self) -> None:
        """Refuse what the command would refuse to sample by.

        Raises:
            InputError: see `check_sampling`.
        """
        objects, net = self.objects, self.on_meta(self.arguments)
        if objects.sampler is not None:
            check_sampling(net, objects.process, "sampler", objects.sampler)
        if objects.evaluation is not None:
            evaluation = objects.evaluation
            check_sampling(
                net, objects.process, "evaluation", evaluation.sampler, evaluation.guidance
            )

    def phases(self, make: Make) -> Iterator[Phase]:
        """The phases that the command would execute, in order.

        Args:
            make: makes their networks, `on_meta` or `on_device`; called when their turn comes, so
                that not all are in memory together.

        Raises:
            InputError: whatever the command would refuse of its settings.
        """
        objects = self.objects
        if objects.pruner is None and objects.recovery is None:
            yield pretraining_phase(self.runner, make(self.arguments), None)
        if objects.pruner is not None and objects.decision_path is None:
            yield from self._pruning(make)
        if objects.recovery is not None:
            yield from self._recovery(make)

    def _pruning(self, make: Make) -> Sequence[Phase]:
        objects, net = self.objects, make(self.arguments)
        assert objects.pruner is not None
        budget = objects.wanted.unmeasured().budget(net, objects.pruner)
        return phases_of(objects.pruner, context_of(net, self.runner, budget, Path(".")))

    def _recovery(self, make: Make) -> Sequence[Phase]:
        objects, decision = self.objects, self.decision
        assert objects.recovery is not None
        whole = starts_whole(objects.recovery)
        student, teacher = make(self.arguments if whole else self.student), None
        if objects.recovery.uses_teacher and objects.teacher_path is not None:
            teacher = make(self._teacher_arguments())
        at = None
        if decision is not None and objects.decision_path is None:
            assert objects.pruner is not None
            decision = with_scores(decision, objects.pruner, objects.recovery)
        if decision is None:
            # What a pruned file records is not known: any blocks will do to count.
            source = student if teacher is None else teacher
            kept = (i * source.depth // student.depth for i in range(student.depth))
            student.kept_from, student.source_borders = tuple(kept), source.borders
            at = range(student.depth)
        elif decision.is_about_blocks and teacher is not None:
            if teacher.depth != decision.source_depth:
                _pretend_origin(student, teacher, decision, whole)
        check_recovery(
            objects.recovery,
            student,
            teacher,
            self.runner,
            objects.start,
            cuts_width(objects.pruner, decision),
            decision,
        )
        context = RecoveryContext(student, teacher, decision, self.runner, _equal_sizes, at)
        return recovery_phases(objects.recovery, context)

    def _teacher_arguments(self) -> dict[str, Any]:
        """Those of the teacher's file; of the command's own network if that can't be read."""
        if self.teacher is not None:
            return self.teacher
        path = self.objects.teacher_path
        assert path is not None
        found = None if path == SOURCE else arguments_of(self.objects, path, "teacher.path")
        return found or self.arguments


def dry_command_of(command: str, overrides: Sequence[str]) -> DryCommand:
    """A command from its overrides, put together without checkpoint, data or devices.

    Args:
        command: its name.
        overrides: as on the command line.

    Raises:
        InputError: a wrong key or value.
    """
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = check(compose(command, list(overrides)))
    return dry_command(objects_of(composed))


def dry_command(objects: Objects) -> DryCommand:
    """Put a command together.

    Args:
        objects: the command's, built without looking for devices.

    Raises:
        InputError: nothing says what the network is, or the data does not fit it.
    """
    configured = _configured(objects)
    if configured is not None:
        arguments = {**on_meta(configured).config(), **configured}
        origin = "by backbone=; no checkpoint is looked at"
    else:
        if objects.checkpoint is None:
            raise InputError(
                "dry_run: say what the network is by backbone= (such as backbone=dit_xl_2), or "
                "by the checkpoint= of a file that exists"
            )
        net = load(objects, objects.checkpoint)
        arguments = {"backbone": family_of(net), **net.config()}
        origin = f"by {objects.checkpoint}"
    missing, source = _data(objects, arguments, configured is not None)
    return DryCommand(
        replace(objects, make_source=lambda: source), arguments, origin, missing_data=missing
    )


def arguments_of(objects: Objects, path: str, key: str) -> dict[str, Any] | None:
    """Family and arguments of a file's network; ``None`` if it can't be read.

    Args:
        objects: the command's.
        path: the checkpoint.
        key: what the user calls it.
    """
    try:
        net = load(objects, path, key=key)
    except InputError:
        return None
    return {"backbone": family_of(net), **net.config()}


def on_meta(arguments: dict[str, Any]) -> Backbone:
    """A network of shapes without values.

    Raises:
        InputError: sizes that can't be.
    """
    with torch.device("meta"):
        return build_empty(arguments)


def _configured(objects: Objects) -> dict[str, Any] | None:
    """Arguments of the configured network; ``None`` if a checkpoint is to say what it is."""
    found = objects.expected
    if found is None or len(found) > 1:
        return found
    # A family alone is no network yet; a class of somebody's own has sizes of its own.
    is_network = found["backbone"] not in FAMILIES and objects.checkpoint is None
    return found if is_network else None


def _data(
    objects: Objects, arguments: dict[str, Any], is_configured: bool
) -> tuple[str | None, ImageSource]:
    """The data; where it is not there, noise: as many images as ImageNet has, as the model takes.

    Returns:
        Why the data was not looked at, and what to take for it.
    """
    model = on_meta(arguments)
    try:
        source = objects.source
    except (InputError, OSError) as error:
        shape = (model.in_channels, model.input_size, model.input_size)
        return str(error), NoiseImages(IMAGENET_IMAGES, shape, model.num_classes)
    check_data(model, source, "backbone" if is_configured else str(objects.checkpoint))
    check_latents(source, objects.process)
    return None, source


def _equal_sizes(net: Backbone, blocks: Sequence[int], samples: int) -> list[float]:
    """There are no states to measure, and what is counted does not depend on them."""
    return [1.0] * len(blocks)


def _pretend_origin(student: Backbone, teacher: Backbone, decision: Decision, whole: bool) -> None:
    """Record for both the places that cuts of one model could have left: any will do to count."""
    assert decision.source_depth is not None  # it is about blocks
    depth = max(teacher.depth, decision.source_depth)
    blocks = range(decision.source_depth) if whole else decision.origins
    student.kept_from = tuple(block * depth // decision.source_depth for block in blocks)
    teacher.kept_from = tuple(i * depth // teacher.depth for i in range(teacher.depth))
    teacher.source_borders = student.source_borders
