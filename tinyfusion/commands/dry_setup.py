"""The stages of a command, put together by the code that runs them, without checkpoint or data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone, count_parameters
from tinyfusion.backbones.presets import FAMILIES, build_empty, family_of
from tinyfusion.backbones.presets import build as build_backbone
from tinyfusion.commands.checks import check_data, check_latents
from tinyfusion.commands.prune import budget
from tinyfusion.commands.recover import new_module
from tinyfusion.commands.setup import Setup
from tinyfusion.data.source import ImageSource
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.pipeline.devices import devices_per_node, strategy_of
from tinyfusion.pipeline.probe import NoiseImages
from tinyfusion.pruners.contract import Pruner, PruningContext
from tinyfusion.pruners.fixed import Indices
from tinyfusion.pruners.learned import Learned
from tinyfusion.settings.compose import build
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.pretrain import Pretraining
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
class DryStage:
    """A training stage, put together but not begun.

    Attributes:
        name: its section in ``training``.
        module: what would be trained.
        teacher: the network it distils from, if any.
    """

    name: str
    module: DenoiserTraining
    teacher: Backbone | None = None


class DrySetup(Setup):
    """A job whose checkpoint, data and devices need not be there.

    Args:
        cfg: checked configuration.
        arguments: family and constructor arguments of the network that the command begins with;
            ``None`` takes what the configuration says.
        teacher: the same of the network to distil from.
        earlier: the same of networks that are scored beside those of the command itself.
    """

    def __init__(
        self,
        cfg: DictConfig,
        arguments: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        earlier: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(cfg, Path("."))
        self.teacher, self.earlier = teacher, list(earlier)
        self.said = ""
        if arguments is not None:
            self.arguments = arguments
            self.said = "by the rounds"

    def _count_devices(self) -> int:
        """Devices of all nodes, without looking whether they are there."""
        strategy_of(self.trainer)
        return devices_per_node(self.trainer) * self.trainer.num_nodes

    @property
    def configured(self) -> dict[str, Any] | None:
        """Arguments of the configured network; ``None`` if a checkpoint is to say what it is."""
        found = self.backbone()
        if found is None or len(found) > 1:
            return found
        # A family alone is no network yet; a class of somebody's own has sizes of its own.
        is_whole = found["backbone"] not in FAMILIES and self.cfg.checkpoint is None
        return found if is_whole else None

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Family and constructor arguments of the network that the command begins with.

        Raises:
            InputError: neither the configuration nor a checkpoint says.
        """
        if self.configured is not None:
            with torch.device("meta"):
                return {**build_empty(self.configured).config(), **self.configured}
        if self.cfg.checkpoint is None:
            raise InputError(
                "dry_run: say what the network is by backbone= (such as backbone=dit_xl_2), or "
                "by the checkpoint= of a file that exists"
            )
        net = self.load_alone(self.cfg.checkpoint)
        return {"backbone": family_of(net), **net.config()}

    @cached_property
    def data_found(self) -> str | None:
        """Why the data was not looked at; ``None`` if it was."""
        try:
            self._found = build(self.cfg.data)
        except (InputError, OSError) as error:
            return str(error)
        return None

    @cached_property
    def source(self) -> ImageSource:
        """The data, or noise in its place: as many images as ImageNet has, as the model takes.

        Raises:
            InputError: data that does not fit the model or the process.
        """
        if self.data_found is None:
            name = "backbone" if self.configured is not None else str(self.cfg.checkpoint)
            check_data(self.on_meta(self.arguments), self._found, name)
            check_latents(self._found, self.process)
            return self._found
        model = self.on_meta(self.arguments)
        side = model.input_size
        return NoiseImages(IMAGENET_IMAGES, (model.in_channels, side, side), model.num_classes)

    def check_samplers(self) -> None:
        """Refuse what the command would refuse to sample by.

        Raises:
            InputError: see `tinyfusion.commands.checks.check_sampling`.
        """
        net = self.on_meta(self.arguments)
        self.check_sampling(net, "sampler", build(self.cfg.sampler))
        if self.cfg.get("evaluation") is not None:
            evaluation: Evaluation = build(self.cfg.evaluation)
            self.check_sampling(net, "evaluation", evaluation.sampler, evaluation.guidance)

    def on_meta(self, arguments: dict[str, Any]) -> Backbone:
        """A network of shapes without values."""
        with torch.device("meta"):
            net = build_empty(arguments)
        self.process.check(net, "backbone")
        return net

    def on_device(self, arguments: dict[str, Any]) -> Backbone:
        """A network with random weights where it would be trained."""
        with self.device:
            return build_backbone(arguments)

    def student_arguments(self, decision: Decision | None) -> dict[str, Any]:
        """Arguments of the pruned network."""
        if decision is None:
            return self.arguments
        net = self.on_meta(self.arguments)
        widths = {}
        if decision.resized is not None:
            widths = {**net.width_plan().fixed, **decision.resized.widths}
        net.remove_branches(decision.removed)
        if decision.is_about_blocks:
            net.keep_blocks(decision.origins)
        return {**self.arguments, **net.config(), **widths}

    def decision(self) -> Decision | None:
        """The given decision, or one that keeps as many blocks or channels as the command would.

        ``None`` if the command prunes nothing.

        Raises:
            InputError: scheme, number of blocks or indices that don't fit the network.
        """
        cfg = self.cfg
        if "decision" in cfg and cfg.decision is not None:
            return Decision.load(cfg.decision)
        if "pruner" not in cfg:
            return None
        net, pruner = self.on_meta(self.arguments), build(cfg.pruner)
        if getattr(pruner, "cuts_width", False):
            return Decision(None, net.depth, "dry_run", resized=pruner.plan(net))
        scheme, keep = budget(cfg, net, pruner)
        if isinstance(pruner, Indices):
            kept = pruner.choose(self._context(net, None, 0)).kept
        elif scheme is not None and keep == scheme.keep:
            kept = tuple(block for group in scheme.groups for block in group.blocks[: group.keep])
        else:
            kept = tuple(index * net.depth // keep for index in range(keep))
        return Decision(
            kept=kept,
            source_depth=net.depth,
            method="dry_run",
            scheme=None if scheme is None else scheme.sizes,
            seed=self.seed,
        )

    def state_sizes(self, net: Backbone, blocks: Sequence[int], samples: int) -> list[float]:
        """All alike: there are no states to measure, and what is counted does not depend on it."""
        return [1.0 for _ in blocks]

    def sizes(self) -> tuple[int, int | None]:
        """Parameters of the network that the command begins with, and of the pruned one if any."""
        decision = self.decision()
        whole = count_parameters(self.on_meta(self.arguments))
        if decision is None:
            return whole, None
        return whole, count_parameters(self.on_meta(self.student_arguments(decision)))

    def stages(self, make: Make) -> Iterator[DryStage]:
        """The training stages of the command, one after the other.

        Args:
            make: makes their networks; called anew for each.
        """
        cfg = self.cfg
        if cfg.command == "pretrain":
            settings = self.settings("pretrain")
            net = make(self.arguments)
            shared = self.shared("pretrain", net)
            yield DryStage(
                "pretrain",
                Pretraining(net, settings.ema_decay, None, settings.held_out_every, **shared),
            )
            return
        decision = self.decision()
        decided = "decision" in cfg and cfg.decision is not None
        if "pruner" in cfg and not decided and isinstance(build(cfg.pruner), Learned):
            yield DryStage("mask_learning", self._mask_learning(make))
        if "recovery" in cfg:
            yield self._recovery(make, decision)

    def _mask_learning(self, make: Make) -> DenoiserTraining:
        net = make(self.arguments)
        pruner: Pruner = build(self.cfg.pruner)
        try:
            pruner.choose(self._context(net, *budget(self.cfg, net, pruner)))
        except _Ready as ready:
            return ready.module
        raise AssertionError("a learning pruner trains")

    def _recovery(self, make: Make, decision: Decision | None) -> DryStage:
        student = make(self.student_arguments(decision))
        teacher = None
        if build(self.cfg.recovery).uses_teacher and self.cfg.teacher.path is not None:
            teacher = make(self._teacher_arguments())
        at = None
        if decision is None:
            # What a pruned file records is not known: any blocks will do to count.
            whole = student if teacher is None else teacher
            kept = (i * whole.depth // student.depth for i in range(student.depth))
            student.kept_from, student.source_borders = tuple(kept), whole.borders
            at = range(student.depth)
        elif decision.is_about_blocks and teacher is not None:
            if teacher.depth != decision.source_depth:
                _pretend_origin(student, teacher, decision)
        return DryStage("recovery", new_module(self, student, teacher, decision, at), teacher)

    def _teacher_arguments(self) -> dict[str, Any]:
        """Those of the teacher's file; of the command's own network if that can't be read."""
        if self.teacher is not None:
            return self.teacher
        path = self.cfg.teacher.path
        return (path != "source" and self.arguments_of(path, "teacher.path")) or self.arguments

    def arguments_of(self, path: str, key: str) -> dict[str, Any] | None:
        """Family and arguments of a file's network; ``None`` if it can't be read."""
        try:
            net = self.load_alone(path, key=key)
        except InputError:
            return None
        return {"backbone": family_of(net), **net.config()}

    def _context(self, net: Backbone, scheme: Any, keep: int) -> PruningContext:
        def ready(module: DenoiserTraining, stage: str) -> NoReturn:
            raise _Ready(module)

        return PruningContext(
            net=net,
            process=self.process,
            source=self.source,
            scheme=scheme,
            keep=keep,
            seed=self.seed,
            folder=self.folder,
            fit=ready,
            shared=lambda stage: self.shared(stage, net),
        )


def _pretend_origin(student: Backbone, teacher: Backbone, decision: Decision) -> None:
    """Record for both the places that cuts of one model could have left: any will do to count."""
    whole = max(teacher.depth, decision.source_depth)
    student.kept_from = tuple(block * whole // decision.source_depth for block in decision.origins)
    teacher.kept_from = tuple(i * whole // teacher.depth for i in range(teacher.depth))
    teacher.source_borders = student.source_borders


class _Ready(Exception):
    """A pruner has put its training together."""

    def __init__(self, module: DenoiserTraining) -> None:
        super().__init__()
        self.module = module
