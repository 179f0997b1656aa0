"""`tinyfusion prune`: choose the blocks or channels that stay, record it, cut the checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.checkpoints import save_model
from tinyfusion.commands.loading import (
    check_budget,
    check_loaded,
    check_training,
    flat,
    load,
    ranks_of,
    runner_of,
    start_tracking,
    summary,
    trained_with,
)
from tinyfusion.decision import Decision, find_decision
from tinyfusion.files import write_json
from tinyfusion.notices import notice
from tinyfusion.pipeline.pruning import choose
from tinyfusion.pipeline.runner import PhaseRunner, forget
from tinyfusion.ranks import is_first_rank
from tinyfusion.settings.objects import Objects, objects_of
from tinyfusion.surgery import prune
from tinyfusion.tracking.keys import METRICS_FILE

log = logging.getLogger(__name__)

PRUNED = "pruned"
MODELS = (PRUNED,)
"""Model folders that the command writes."""


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``: the decision, ``pruned/`` and ``metrics.json``."""
    objects = objects_of(cfg)
    source = load(objects, objects.checkpoint)
    check_budget(objects, source)
    check_loaded(objects, source, objects.checkpoint)
    check_training(objects, source)
    tracking = start_tracking(objects, folder)
    decision = decide(objects, source, runner_of(objects, tracking), folder)
    if is_first_rank():
        models = {
            "source": summary(objects, source),
            "pruned": summary(objects, prune(source, decision), source),
        }
        write_json(folder / METRICS_FILE, unscored(models, decision))
        tracking.scores(flat(models))
    tracking.finish()
    log.info("prune: pruned checkpoint in %s", folder / PRUNED)


def decide(objects: Objects, source: Backbone, runner: PhaseRunner, folder: Path) -> Decision:
    """Choose what stays, write the decision and ``pruned/``; finished work is not repeated.

    Args:
        objects: the command's.
        source: the loaded checkpoint; left as it is.
        runner: executes the pruner's phases.
        folder: the run's folder.

    Raises:
        InputError: the checkpoint, scheme or pruner don't fit together.
    """
    group = ranks_of(objects)
    # Asked for once: the first rank may have written it before another one looks.
    made = group.from_first(lambda: find_decision(folder))
    if made is not None:
        decision = Decision.load(made)
        log.info("prune: taking the decision in %s", made)
    else:
        pruner = objects.pruner
        assert pruner is not None
        for line in objects.wanted.ignored(pruner):
            notice(line)
        decision = choose(
            pruner,
            source,
            runner,
            objects.wanted,
            folder=folder / "prune",
            device=objects.device,
            source_sha256=objects.source_sha256,
            config=objects.config,
            group=group,
        )
        # A near-tie may fall otherwise on another device: all take the first rank's.
        decision = group.broadcast_object(decision)
        if is_first_rank():
            decision.save(folder / decision.file_name)
            forget(folder / "prune")
    log.info("prune: %s keeps %s", decision.method, decision.description)
    write_pruned(objects, source, decision, folder)
    return decision


def write_pruned(objects: Objects, net: Backbone, decision: Decision, folder: Path) -> None:
    """Cut ``net`` by ``decision`` into ``pruned/`` unless that is there already."""
    target = folder / PRUNED
    if (target / "config.json").is_file() or not is_first_rank():
        return
    provenance = {
        "pruned_from": str(objects.checkpoint),
        "source_sha256": objects.source_sha256,
        "decision": decision.summary(),
        "seed": objects.seed,
        **trained_with(objects),
    }
    save_model(prune(net, decision), target, provenance)


def unscored(models: dict[str, Any], decision: Decision | None) -> dict[str, Any]:
    """Content of a ``metrics.json`` without samples, in the form of those with samples."""
    chosen = decision and decision.summary()
    return {"models": models, "protocol": {}, "floor": {}, "decision": chosen}
