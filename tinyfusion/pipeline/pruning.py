"""Choosing what stays: from a pruner, a model and data to a decision."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.budget import Budget, placeholders
from tinyfusion.decision import Decision
from tinyfusion.pipeline.budgets import Wanted
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pruners.contract import Pruner, PruningContext, phases_of
from tinyfusion.units import kept_and_removed


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
    budget: Budget | None,
    folder: Path,
    source_sha256: str | None = None,
) -> PruningContext:
    """What a pruner may use.

    Args:
        net: a network that the pruner may alter, on its device; on the meta device for a dry run.
        runner: process, data and settings of phases.
        budget: see `tinyfusion.pipeline.budgets.Wanted.budget`.
        folder: where the pruner may write.
        source_sha256: hash of the model's weights, if they came from a file.
    """
    return PruningContext(
        net=net,
        process=runner.process,
        source=runner.source,
        budget=budget,
        seed=runner.seed,
        folder=folder,
        shared=lambda name, settings=None: runner.shared(name, net, settings),
        source_sha256=source_sha256,
    )


def choose(
    pruner: Pruner,
    net: Backbone,
    runner: PhaseRunner,
    wanted: Wanted,
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
        wanted: how much is to stay.
        folder: where phases and the pruner write.
        device: where the pruner works.
        source_sha256: hash of the model's weights, if they came from a file.
        config: what the decision records of its origin.

    Raises:
        InputError: a budget or pruner that does not fit the model.
    """
    # The pruner is free to alter its network.
    own = copy.deepcopy(net).to(device)
    budget = wanted.budget(own, pruner)
    context = context_of(own, runner, budget, folder, source_sha256)
    trained = runner.run(phases_of(pruner, context), folder)
    choice = pruner.choose(replace(context, trained=trained))
    runner.log_figures(folder)
    return choice.decision(
        net.depth,
        method=method_of(pruner),
        seed=runner.seed,
        source_sha256=source_sha256,
        config=config or {},
        budget={} if budget is None else budget.record(),
    )


def planned(pruner: Pruner, net: Backbone, wanted: Wanted, seed: int = 0) -> Decision:
    """A decision of the size that a pruner would make, which needs neither data nor training.

    A pruner whose numbers are its own says them by ``plan(net)``. Of any other the units are
    placeholders: the first of each group, or evenly spaced ones.

    Args:
        pruner: the pruner.
        net: the model, on any device; its weights are not looked at.
        wanted: how much is to stay.
        seed: what the record says.

    Raises:
        InputError: a budget or widths that don't fit the model.
    """
    plan = getattr(pruner, "plan", None)
    if plan is not None:
        return plan(net).decision(net.depth, method=method_of(pruner), seed=seed)
    budget = wanted.budget(net, pruner)
    assert budget is not None, "a pruner with numbers of its own says them by plan(net)"
    kept, removed = kept_and_removed(budget.units, placeholders(budget), net.depth)
    sizes = budget.scheme.sizes if budget.scheme is not None else None
    return Decision(kept, net.depth, method_of(pruner), scheme=sizes, seed=seed, removed=removed)
