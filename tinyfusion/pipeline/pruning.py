"""Choosing what stays: from a pruner, a model and data to a decision."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pruners.contract import Pruner, PruningContext, phases_of
from tinyfusion.scheme import Scheme, check_keep, even_scheme, evenly_spaced, parse_scheme


def budget(
    scheme: Any, keep: int | None, net: Backbone, pruner: Pruner
) -> tuple[Scheme | None, int]:
    """The scheme laid over the model, and the number of blocks that stay.

    A scheme that the pruner does not need is not looked at: it need not fit the model. One that it
    needs and that is not given follows from ``keep`` (see `even_scheme`).

    Args:
        scheme: as the user wrote it; ``None`` for none.
        keep: number of blocks that stay; ``None`` for as many as the scheme keeps.
        net: the model.
        pruner: the pruner.

    Raises:
        InputError: neither is given, the scheme does not fit, ``keep`` is out of range, or a
            scheme that is needed keeps another number of blocks.
    """
    if not getattr(pruner, "uses_keep", True):
        return None, 0
    laid = None
    uses_scheme = getattr(pruner, "uses_scheme", False)
    if scheme is not None and (uses_scheme or keep is None):
        laid = parse_scheme(scheme, net.depth, net.borders)
    if keep is None and laid is not None:
        keep = laid.keep
    if keep is None:
        raise InputError("give scheme= (such as 1:2) or keep= (a number of blocks)")
    if not 0 < keep < net.depth:
        raise InputError(f"keep={keep} must be between 1 and {net.depth - 1}")
    if uses_scheme:
        laid = check_keep(laid or even_scheme(keep, net.depth, net.borders), keep)
    return laid, keep


def method_of(pruner: Pruner) -> str:
    """What decisions call a pruner: its attribute ``name``, or its class's in lower case."""
    return str(getattr(pruner, "name", type(pruner).__name__.lower()))


def cuts_width(pruner: Pruner | None, decision: Decision | None = None) -> bool:
    """Whether channels are to go instead of blocks.

    Args:
        pruner: the pruner, if one is to choose.
        decision: the decision, if it is made.
    """
    if decision is not None:
        return decision.resized is not None
    return getattr(pruner, "cuts_width", False)


def context_of(
    net: Backbone,
    runner: PhaseRunner,
    scheme: Scheme | None,
    keep: int,
    folder: Path,
    source_sha256: str | None = None,
) -> PruningContext:
    """What a pruner may use.

    Args:
        net: a network that the pruner may alter, on its device; on the meta device for a dry run.
        runner: process, data and settings of phases.
        scheme: see `budget`.
        keep: see `budget`.
        folder: where the pruner may write.
        source_sha256: hash of the model's weights, if they came from a file.
    """
    return PruningContext(
        net=net,
        process=runner.process,
        source=runner.source,
        scheme=scheme,
        keep=keep,
        seed=runner.seed,
        folder=folder,
        shared=lambda name, settings=None: runner.shared(name, net, settings),
        source_sha256=source_sha256,
    )


def choose(
    pruner: Pruner,
    net: Backbone,
    runner: PhaseRunner,
    scheme: Any = None,
    keep: int | None = None,
    *,
    folder: Path,
    device: torch.device | str = "cpu",
    source_sha256: str | None = None,
    config: dict[str, Any] | None = None,
) -> Decision:
    """Execute a pruner's phases, if it has any, and let it choose.

    Args:
        pruner: the pruner.
        net: the model; left as it is.
        runner: process, data and settings of phases.
        scheme: as `parse_scheme` takes it.
        keep: number of blocks that stay.
        folder: where phases and the pruner write.
        device: where the pruner works.
        source_sha256: hash of the model's weights, if they came from a file.
        config: what the decision records of its origin.

    Raises:
        InputError: scheme, number of blocks or pruner that don't fit the model.
    """
    laid, kept = budget(scheme, keep, net, pruner)
    # The pruner is free to alter its network.
    own = copy.deepcopy(net).to(device)
    context = context_of(own, runner, laid, kept, folder, source_sha256)
    trained = runner.run(phases_of(pruner, context), folder)
    choice = pruner.choose(replace(context, trained=trained))
    runner.log_figures(folder)
    return choice.decision(
        net.depth,
        method=method_of(pruner),
        seed=runner.seed,
        source_sha256=source_sha256,
        config=config or {},
        budget={"keep": kept} if kept else {},
    )


def planned(
    pruner: Pruner, net: Backbone, scheme: Any, keep: int | None, seed: int = 0
) -> Decision:
    """A decision of the size that a pruner would make, which needs neither data nor training.

    A pruner whose numbers are its own says them by ``plan(net)``. Of any other the blocks are
    placeholders: the first of each group, or evenly spaced ones.

    Args:
        pruner: the pruner.
        net: the model, on any device; its weights are not looked at.
        scheme: as `parse_scheme` takes it.
        keep: number of blocks that stay.
        seed: what the record says.

    Raises:
        InputError: scheme, number of blocks or widths that don't fit the model.
    """
    plan = getattr(pruner, "plan", None)
    if plan is not None:
        return plan(net).decision(net.depth, method=method_of(pruner), seed=seed)
    laid, kept = budget(scheme, keep, net, pruner)
    blocks = placeholders(net.depth, kept, laid)
    sizes = laid.sizes if laid is not None and laid.keep == kept else None
    return Decision(blocks, net.depth, method_of(pruner), scheme=sizes, seed=seed)


def placeholders(depth: int, keep: int, scheme: Scheme | None) -> tuple[int, ...]:
    """As many blocks as stay, where it does not matter which."""
    if scheme is not None and scheme.keep == keep:
        return scheme.first_of_each
    return evenly_spaced(depth, keep)
