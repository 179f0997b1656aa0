"""Pruning in several rounds (TinyFusion, table 7): 28 -> 14 -> 7 blocks, each round recovered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.rebuild import rebuilt
from tinyfusion.budget import placeholders
from tinyfusion.errors import InputError
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pruners.contract import Pruner
from tinyfusion.scheme import EVEN
from tinyfusion.units import BLOCKS

PREVIOUS, SOURCE = "previous", "source"


@dataclass(frozen=True)
class Rounds:
    """Several rounds of pruning, each of which cuts the recovered model of the one before.

    Attributes:
        depths: blocks that each round leaves, the last one's included.
        weights: what the last round cuts: ``previous``, the model of the round before, or
            ``source``, the first model.
        teacher: what it distils from, likewise.
        previous: a checkpoint to take for the model of the round before the last, which is then
            not made.
    """

    depths: list[int]
    weights: str = PREVIOUS
    teacher: str = PREVIOUS
    previous: str | None = None

    def needs_previous(self, distils: bool) -> bool:
        """Whether the last round needs the model of the round before, as weights or as teacher.

        Args:
            distils: whether the recovery has a teacher.
        """
        return self.weights == PREVIOUS or (distils and self.teacher == PREVIOUS)

    def check(
        self,
        source_depth: int,
        checkpoint: str | None,
        wanted: Wanted,
        decision: str | None,
        start: str,
        teacher_path: str | None,
        pruner: Pruner,
    ) -> None:
        """Refuse rounds that can't be meant; needs no networks.

        Args:
            source_depth: number of blocks of the first model.
            checkpoint: what the first model is called, for messages.
            wanted: what holds in every round; without a number of blocks.
            decision: path of a given decision, which there must not be.
            start: weights that recovery starts from.
            teacher_path: the configured teacher.
            pruner: chooses in every round.

        Raises:
            InputError: fewer than two depths, depths that don't decrease or exceed the model's, a
                budget, start, teacher or pruner that rounds can't have.
        """
        entry = f"iterative.depths={str(self.depths).replace(' ', '')}"
        if len(self.depths) < 2:
            raise InputError(
                f"{entry} must list what each round leaves, such as [14,7]; for one round give "
                "keep="
            )
        if self.depths[-1] < 1 or any(below >= above for above, below in pairwise(self.depths)):
            raise InputError(f"{entry} must decrease from round to round and end with at least 1")
        if self.depths[0] >= source_depth:
            raise InputError(
                f"{entry}: the first round must leave fewer blocks than the {source_depth} of "
                f"checkpoint={checkpoint}"
            )
        for key in ("weights", "teacher"):
            value = getattr(self, key)
            if value not in (PREVIOUS, SOURCE):
                raise InputError(f"iterative.{key}={value!r} is not known; valid: previous, source")
        groups = None if wanted.scheme == EVEN else wanted.scheme
        given = {"scheme": groups, "keep": wanted.keep, "decision": decision}
        given |= {f"budget.{measure}": value for measure, value in wanted.amounts.items()}
        for key, value in given.items():
            if value is not None:
                raise InputError(
                    f"{key}={value}: with iterative= the rounds' numbers of blocks are "
                    f"iterative.depths, and their blocks are chosen; give {key}=null"
                )
        if wanted.units != BLOCKS:
            raise InputError(f"units={wanted.units}: rounds choose blocks; give units=blocks")
        if wanted.protected or not isinstance(wanted.minimum, int):
            key = "protected" if wanted.protected else "minimum"
            raise InputError(
                f"budget.{key}={getattr(wanted, key)}: blocks are numbered anew in every round, so "
                "that it would mean others; leave it out (budget.minimum=N of each stack goes)"
            )
        if start == "fresh":
            raise InputError(
                f"start={start}: what the rounds start from is iterative.weights; give start=kept"
            )
        if teacher_path not in (SOURCE, None):
            raise InputError(
                f"teacher.path={teacher_path}: with iterative= the last round's teacher is "
                "iterative.teacher (previous or source); give teacher=from_source"
            )
        for key in ("losses", "marks"):
            if getattr(pruner, key, None):
                raise InputError(
                    f"pruner.{key} holds choices among the blocks of one model, but with "
                    f"iterative= every round cuts another; give pruner.{key}=null"
                )
        if not getattr(pruner, "uses_keep", True):
            raise InputError(
                "iterative= says how many blocks each round leaves, but this pruner does not "
                "choose a given number of blocks; choose another pruner="
            )

    def check_budgets(self, source: Backbone, pruner: Pruner, wanted: Wanted) -> None:
        """Refuse numbers of blocks that the pruner can't keep in some round.

        Args:
            source: the first model.
            pruner: chooses in every round.
            wanted: what holds in every round, without a number of blocks.

        Raises:
            InputError: see `tinyfusion.pipeline.budgets.Wanted.budget`.
        """
        net = source
        for depth in self.depths[:-1]:
            budget = replace(wanted, keep=depth).budget(net, pruner)
            assert budget is not None
            with torch.random.fork_rng(devices=[]):
                twin = rebuilt(net)
            twin.keep_blocks(placeholders(budget))
            net = twin
        last = net if self.weights == PREVIOUS else source
        replace(wanted, keep=self.depths[-1]).budget(last, pruner)


def check_previous(path: str, previous: Backbone, source: Backbone, depth: int) -> None:
    """Refuse a model that no round before the last could have left.

    Args:
        path: ``iterative.previous``, for messages.
        previous: the model.
        source: the first model.
        depth: blocks that the round before the last leaves.

    Raises:
        InputError: another number of blocks, no record of which were kept, blocks that are not
            the first model's, or another size.
    """
    entry = f"iterative.previous={path}"
    if previous.depth != depth:
        raise InputError(
            f"{entry} has {previous.depth} blocks, but iterative.depths says that the round "
            f"before the last one leaves {depth}"
        )
    if previous.kept_from is None:
        raise InputError(
            f"{entry} is not known to be pruned: its file records no kept blocks; to prune such a "
            "model alone give it as checkpoint= with keep=, and leave iterative out"
        )
    mine, theirs = (
        {k: v for k, v in net.config().items() if k not in net.depth_arguments}
        for net in (source, previous)
    )
    for key in {**mine, **theirs}:
        if mine.get(key) != theirs.get(key):
            raise InputError(
                f"{entry} has {key}={theirs.get(key)}, but the model that is pruned has "
                f"{mine.get(key)}"
            )
    origin = source.kept_from or tuple(range(source.depth))
    borders = source.borders if source.kept_from is None else source.source_borders
    if not set(previous.kept_from) <= set(origin) or previous.source_borders != borders:
        raise InputError(
            f"{entry} keeps blocks {list(previous.kept_from)}, which are not all in the model that "
            "is pruned"
        )
