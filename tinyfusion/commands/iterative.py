"""Pruning in several rounds (TinyFusion, table 7): 28 -> 14 -> 7 blocks, each round recovered.

Rounds before the last one lie in ``round_1/`` and so on, with the files of a run each; the last one
is the run itself. All rounds have the run's seed and settings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.rebuild import rebuilt
from tinyfusion.checkpoints import load
from tinyfusion.commands.prune import budget, decide
from tinyfusion.commands.recover import RECOVERED, recover
from tinyfusion.commands.setup import Setup
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Pruner
from tinyfusion.scheme import Scheme
from tinyfusion.settings.compose import build
from tinyfusion.surgery import prune

log = logging.getLogger(__name__)

PREVIOUS, SOURCE = "previous", "source"


class LastRound(NamedTuple):
    """What the last round begins with.

    Attributes:
        setup: the job, with the round's checkpoint and number of blocks.
        net: the model that it cuts.
        teacher: the network that it distils from, if any.
        earlier: recovered models of the rounds before, by the name they have in tables.
    """

    setup: Setup
    net: Backbone
    teacher: Backbone | None
    earlier: dict[str, Backbone]


def check_settings(cfg: DictConfig, source_depth: int) -> None:
    """Refuse rounds that can't be meant; needs no networks.

    Args:
        cfg: configuration of a run with an ``iterative`` node.
        source_depth: number of blocks of the first model.

    Raises:
        InputError: naming the key, what was found and what is valid.
    """
    node = cfg.iterative
    depths = list(node.depths)
    shown = f"iterative.depths={str(depths).replace(' ', '')}"
    if len(depths) < 2:
        raise InputError(
            f"{shown} must list what each round leaves, such as [14,7]; for one round give keep="
        )
    if depths[-1] < 1 or any(below >= above for above, below in pairwise(depths)):
        raise InputError(f"{shown} must decrease from round to round and end with at least 1")
    if depths[0] >= source_depth:
        raise InputError(
            f"{shown}: the first round must leave fewer blocks than the {source_depth} of "
            f"checkpoint={cfg.checkpoint}"
        )
    for key in ("weights", "teacher"):
        if node[key] not in (PREVIOUS, SOURCE):
            raise InputError(f"iterative.{key}={node[key]!r} is not known; valid: previous, source")
    for key in ("scheme", "keep", "decision"):
        if cfg[key] is not None:
            raise InputError(
                f"{key}={cfg[key]}: with iterative= the rounds' numbers of blocks are "
                f"iterative.depths, and their blocks are chosen; give {key}=null"
            )
    if cfg.start != "kept":
        raise InputError(
            f"start={cfg.start}: what the rounds start from is iterative.weights; give start=kept"
        )
    if cfg.teacher.path not in (SOURCE, None):
        raise InputError(
            f"teacher.path={cfg.teacher.path}: with iterative= the last round's teacher is "
            "iterative.teacher (previous or source); give teacher=from_source"
        )
    for key in ("losses", "marks"):
        if cfg.pruner.get(key):
            raise InputError(
                f"pruner.{key} holds choices among the blocks of one model, but with iterative= "
                f"every round cuts another; give pruner.{key}=null"
            )
    if not getattr(build(cfg.pruner), "uses_keep", True):
        raise InputError(
            "iterative= says how many blocks each round leaves, but this pruner does not choose a "
            "given number of blocks; choose another pruner="
        )


def needs_previous(cfg: DictConfig, has_teacher: bool) -> bool:
    """Whether the last round needs the model of the round before, as weights or as teacher."""
    node = cfg.iterative
    return node.weights == PREVIOUS or (has_teacher and node.teacher == PREVIOUS)


def round_cfg(cfg: DictConfig, checkpoint: str, depth: int, number: int | None) -> DictConfig:
    """Configuration of one round: that of a run of its own.

    Args:
        cfg: configuration of the whole.
        checkpoint: what the round cuts.
        depth: blocks that it leaves.
        number: of the round, from 1; ``None`` for the last one, which keeps the run's name.
    """
    own = cfg.copy()
    own.checkpoint, own.keep = checkpoint, depth
    if number is not None:
        own.iterative = None
        own.name = None if cfg.name is None else f"{cfg.name}_round_{number}"
    return own


def check_rounds(setup: Setup, source: Backbone, teacher: Backbone | None) -> Backbone | None:
    """Refuse whatever a later round would refuse, before the first one.

    Args:
        setup: the job.
        source: the first model.
        teacher: the same if the recovery needs a teacher, else ``None``.

    Returns:
        The model of ``iterative.previous``, if it is given.

    Raises:
        InputError: see `check_settings`; a model that is not what ``previous`` says, or a number of
            blocks that the pruner can't keep.
    """
    cfg = setup.cfg
    check_settings(cfg, source.depth)
    depths, given = list(cfg.iterative.depths), cfg.iterative.previous
    previous = None if given is None else setup.load(given, key="iterative.previous")
    if previous is not None:
        _check_previous(given, previous, source, depths[-2])
    pruner: Pruner = build(cfg.pruner)
    net = source
    for number, depth in enumerate(depths[:-1], 1):
        scheme, _ = budget(round_cfg(cfg, cfg.checkpoint, depth, number), net, pruner)
        net = _outline(net, depth, scheme)
    last = round_cfg(cfg, cfg.checkpoint, depths[-1], None)
    budget(last, net if cfg.iterative.weights == PREVIOUS else source, pruner)
    return previous


def _check_previous(path: str, previous: Backbone, source: Backbone, depth: int) -> None:
    """Refuse a model that no round before the last could have left.

    Raises:
        InputError: so it is.
    """
    shown = f"iterative.previous={path}"
    if previous.depth != depth:
        raise InputError(
            f"{shown} has {previous.depth} blocks, but iterative.depths says that the round "
            f"before the last one leaves {depth}"
        )
    if previous.kept_from is None:
        raise InputError(
            f"{shown} is not known to be pruned: its file records no kept blocks; to prune such a "
            "model alone give it as checkpoint= with keep=, and leave iterative out"
        )
    mine, theirs = (
        {k: v for k, v in net.config().items() if k not in net.depth_arguments}
        for net in (source, previous)
    )
    for key in {**mine, **theirs}:
        if mine.get(key) != theirs.get(key):
            raise InputError(
                f"{shown} has {key}={theirs.get(key)}, but the model that is pruned has "
                f"{mine.get(key)}"
            )
    origin = source.kept_from or tuple(range(source.depth))
    borders = source.borders if source.kept_from is None else source.source_borders
    if not set(previous.kept_from) <= set(origin) or previous.source_borders != borders:
        raise InputError(
            f"{shown} keeps blocks {list(previous.kept_from)}, which are not all in the model that "
            "is pruned"
        )


def _outline(net: Backbone, depth: int, scheme: Scheme | None) -> Backbone:
    """A network of the form that a round leaves, without values."""
    if scheme is None:
        kept = [index * net.depth // depth for index in range(depth)]
    else:
        kept = [block for group in scheme.groups for block in group.blocks[: group.keep]]
    with torch.random.fork_rng(devices=[]):
        twin = rebuilt(net)
    twin.keep_blocks(kept)
    return twin


def earlier_rounds(
    setup: Setup, source: Backbone, teacher: Backbone | None, previous: Backbone | None
) -> LastRound:
    """Make the rounds before the last one that it needs; finished ones are not repeated.

    Args:
        setup: the job.
        source: the first model; left as it is.
        teacher: the same if the recovery needs a teacher, else ``None``.
        previous: what `check_rounds` gave.
    """
    cfg, node = setup.cfg, setup.cfg.iterative
    depths = list(node.depths)
    net, path = source, cfg.checkpoint
    earlier: dict[str, Backbone] = {}
    if not needs_previous(cfg, teacher is not None):
        log.info("iterative: the last round needs none before it: 1 round")
    elif previous is not None:
        net, path = previous, node.previous
        earlier["previous"] = previous
    else:
        for number, depth in enumerate(depths[:-1], 1):
            folder = setup.folder / f"round_{number}"
            log.info(
                "iterative: round %d of %d: %d -> %d blocks in %s",
                *(number, len(depths), net.depth, depth, folder),
            )
            own = Setup(round_cfg(cfg, str(path), depth, number), folder)
            net, path = _made(own, net, teacher is not None), folder / RECOVERED
            earlier[f"round {number}"] = net
        log.info("iterative: round %d of %d: the last one", len(depths), len(depths))
    choice = {PREVIOUS: (net, path), SOURCE: (source, cfg.checkpoint)}
    start, checkpoint = choice[node.weights]
    return LastRound(
        Setup(round_cfg(cfg, str(checkpoint), depths[-1], None), setup.folder),
        start,
        None if teacher is None else choice[node.teacher][0],
        earlier,
    )


def _made(setup: Setup, net: Backbone, distils: bool) -> Backbone:
    """One round: the recovered model that it leaves on every rank."""
    decision = decide(setup, net)
    with _left_trainable(net):
        recover(setup, prune(net, decision), net if distils else None, decision)
    setup.tracking.finish()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first rank is writing what all will read
    return load(str(setup.folder / RECOVERED))


@contextmanager
def _left_trainable(net: Backbone) -> Iterator[None]:
    """Undo that a network was frozen to be a teacher: a later round may cut it."""
    trained = [parameter.requires_grad for parameter in net.parameters()]
    try:
        yield
    finally:
        for parameter, trains in zip(net.parameters(), trained, strict=True):
            parameter.requires_grad_(trains)
