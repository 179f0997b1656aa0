"""Choosing what stays: from a pruner, a model and data to a decision."""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tinyfusion.backbones.contract import Backbone, compile_blocks
from tinyfusion.budget import Budget, placeholders
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.group import ALONE, Group
from tinyfusion.metrics.latency import LatencyTable, measure_latency, setting_of
from tinyfusion.pipeline.budgets import DEFAULT_BATCH_SIZE, Wanted
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pruners.contract import Choice, Pruner, PruningContext, method_of, phases_of
from tinyfusion.samplers.generate import AUTOCAST
from tinyfusion.training.settings import TrainerSettings
from tinyfusion.units import kept_and_removed

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

LATENCY_FILE = "latency.json"


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
    group: Group = ALONE,
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
        group: the ranks that work on it together.

    Raises:
        InputError: a budget or pruner that does not fit the model.
    """
    # The pruner is free to alter its network.
    own = copy.deepcopy(net).to(device)
    table = None
    if getattr(pruner, "uses_keep", True):
        wanted.check(pruner)
        if wanted.latency is not None:
            # Kept beside the phases: one that is resumed goes on under the same costs.
            table = group.from_first(lambda: _latency(wanted, own, runner.trainer, folder))
    budget = wanted.budget(own, pruner, table)
    context = context_of(own, runner, budget, folder, source_sha256)
    trained = runner.run(phases_of(pruner, context), folder)
    choice = pruner.choose(replace(context, trained=trained))
    runner.log_figures(folder)
    if budget is not None:
        _check_met(method_of(pruner), choice, budget)
    return choice.decision(
        net.depth,
        method=method_of(pruner),
        seed=runner.seed,
        source_sha256=source_sha256,
        config=config or {},
        budget={} if budget is None else _record(budget, table),
    )


def _check_met(method: str, choice: Choice, budget: Budget) -> None:
    """Refuse a choice that is over the budget or against its constraints.

    Raises:
        InputError: it is.
    """
    if choice.replaced or choice.resized is not None:
        return
    blocks, removed = set(choice.kept or ()), set(choice.removed)
    kept = [
        number
        for number, unit in enumerate(budget.units)
        if unit.name not in removed and (choice.kept is None or unit.index in blocks)
    ]
    if not budget.allows(kept):
        names = ", ".join(budget.units[number].name for number in kept)
        raise InputError(
            f"pruner={method} keeps {names}, which {budget} and its constraints don't allow"
        )


def _record(budget: Budget, table: LatencyTable | None) -> dict[str, Any]:
    """What a decision records of its budget."""
    if table is None:
        return budget.record()
    return budget.record() | {"whole": table.whole, "measured": asdict(table.setting)}


def _latency(
    wanted: Wanted, net: Backbone, trainer: Trainer | TrainerSettings, folder: Path
) -> LatencyTable:
    """The table that is given, that an interrupted run has measured, or a new one.

    Raises:
        InputError: a table of another device, batch, precision or compile setting.
    """
    own = trainer
    if not isinstance(own, TrainerSettings):
        own = TrainerSettings(precision=own.precision)
    batch_size = wanted.batch_size or DEFAULT_BATCH_SIZE
    here = setting_of(net, batch_size, own.precision, own.compile)
    measured = folder / LATENCY_FILE
    path = wanted.table or (measured if measured.is_file() else None)
    if path is not None:
        table = LatencyTable.load(path)
        table.check(here, path)
        return table
    units = net.units(wanted.units)
    log.info("prune: measuring the latency of %d %s", len(units), wanted.units)
    timed = net
    if own.compile:
        timed = copy.deepcopy(net)
        compile_blocks(timed, own.compile_backend)
    table = measure_latency(net, units, here, AUTOCAST.get(own.precision), whole=timed)
    folder.mkdir(parents=True, exist_ok=True)
    table.save(measured)
    return table


def planned(pruner: Pruner, net: Backbone, wanted: Wanted, seed: int = 0) -> Decision:
    """A decision of the size that a pruner would make, which needs neither data nor training.

    A pruner whose numbers are its own says them by ``plan(net)``; half of the blocks stand for
    them if it does not. Of any other the units are placeholders: the first of each group, or evenly
    spaced ones.

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
    if budget is None:
        units = net.units()
        budget = Budget.of(units, max(1, len(units) // 2))
    kept, removed = kept_and_removed(budget.units, placeholders(budget), net.depth)
    choice = Choice(kept, budget.scheme, removed=removed, budget=budget.record())
    return choice.decision(net.depth, method=method_of(pruner), seed=seed)


def foreseen(pruner: Pruner, net: Backbone, wanted: Wanted) -> Decision | None:
    """What is known of a decision before it is made, see `planned`; refuses what can't be made.

    ``None`` if the pruner sets the number of units and does not say it by ``plan(net)``.

    Args:
        pruner: the pruner.
        net: the model.
        wanted: how much is to stay.

    Raises:
        InputError: see `planned`.
    """
    uses_keep = getattr(pruner, "uses_keep", True)
    if not uses_keep and not hasattr(pruner, "plan"):
        return None
    if wanted.latency is not None and uses_keep:
        wanted.check(pruner)
        # How many that leaves is measured later: here as many as can be.
        wanted = Wanted(keep=len(net.units(wanted.units)) - 1, units=wanted.units)
    return planned(pruner, net, wanted)
