"""`tinyfusion prune`: choose the blocks or channels that stay, record it, cut the checkpoint."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.callbacks.resume import RESUME_FILE
from tinyfusion.checkpoints import save_model
from tinyfusion.commands.setup import Setup
from tinyfusion.decision import Decision, find_decision
from tinyfusion.errors import InputError
from tinyfusion.files import write_json
from tinyfusion.pruners.contract import Pruner, PruningContext
from tinyfusion.ranks import is_first_rank
from tinyfusion.scheme import Scheme, check_keep, even_scheme, parse_scheme
from tinyfusion.settings.compose import build
from tinyfusion.surgery import prune

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
PRUNED = "pruned"


def budget(cfg: DictConfig, net: Backbone, pruner: Pruner) -> tuple[Scheme | None, int]:
    """The scheme laid over the model, and the number of blocks that stay.

    A scheme that the pruner does not need is not looked at: it need not fit the model. One that it
    needs and that is not given follows from ``keep`` (see `even_scheme`).

    Raises:
        InputError: neither is given, the scheme does not fit, ``keep`` is out of range, or a
            scheme that is needed keeps another number of blocks.
    """
    if not getattr(pruner, "uses_keep", True):
        return None, 0
    scheme = None
    uses_scheme = getattr(pruner, "uses_scheme", False)
    if cfg.scheme is not None and (uses_scheme or cfg.keep is None):
        scheme = parse_scheme(cfg.scheme, net.depth, net.borders)
    keep = cfg.keep if cfg.keep is not None else scheme and scheme.keep
    if keep is None:
        raise InputError("give scheme= (such as 1:2) or keep= (a number of blocks)")
    if not 0 < keep < net.depth:
        raise InputError(f"keep={keep} must be between 1 and {net.depth - 1}")
    if uses_scheme:
        scheme = check_keep(scheme or even_scheme(keep, net.depth, net.borders), keep)
    return scheme, keep


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``: the decision, ``pruned/`` and ``metrics.json``."""
    setup = Setup(cfg, folder)
    source = setup.load(cfg.checkpoint)
    decision = decide(setup, source)
    if is_first_rank():
        write_metrics(setup, source, decision)
    setup.tracking.finish()
    log.info("prune: pruned checkpoint in %s", folder / PRUNED)


def cuts_width(cfg: DictConfig) -> bool:
    """Whether a command is to cut channels instead of blocks.

    Raises:
        InputError: the given decision can't be read, or the pruner can't be built.
    """
    if cfg.get("decision") is not None:
        return Decision.load(cfg.decision).resized is not None
    return "pruner" in cfg and getattr(build(cfg.pruner), "cuts_width", False)


def decide(setup: Setup, source: Backbone) -> Decision:
    """Choose what stays, write the decision and ``pruned/``; finished work is not repeated.

    Args:
        setup: the job.
        source: the loaded checkpoint; left as it is.

    Returns:
        What stays, written to ``decision.json``.

    Raises:
        InputError: the checkpoint, scheme or pruner don't fit together.
    """
    cfg, folder = setup.cfg, setup.folder
    made = find_decision(folder)
    if made is not None:
        decision = Decision.load(made)
        log.info("prune: taking the decision in %s", made)
    else:
        pruner: Pruner = build(cfg.pruner)
        scheme, keep = budget(cfg, source, pruner)
        method = _method(cfg, pruner)
        if cfg.keep is not None and not getattr(pruner, "uses_keep", True):
            log.warning("prune: keep=%s is not used: %s says itself what stays", cfg.keep, method)
        # The pruner is free to alter its network.
        net = copy.deepcopy(source)
        context = PruningContext(
            net=net.to(setup.device),
            process=setup.process,
            source=setup.source,
            scheme=scheme,
            keep=keep,
            seed=setup.seed,
            folder=folder / "prune",
            fit=lambda module, stage: setup.fit(module, stage, folder / "prune"),
            shared=lambda stage: setup.shared(stage, net),
            source_sha256=setup.source_hash,
        )
        choice = pruner.choose(context)
        setup.log_figures(folder / "prune")
        decision = choice.decision(
            source.depth,
            method=method,
            seed=setup.seed,
            source_sha256=setup.source_hash,
            config=setup.config,
            budget={"keep": keep} if keep else {},
        )
        if is_first_rank():
            decision.save(folder / decision.file_name)
            (folder / "prune" / RESUME_FILE).unlink(missing_ok=True)
    log.info("prune: %s keeps %s", decision.method, decision.description)
    write_pruned(setup, source, decision)
    return decision


def write_pruned(setup: Setup, net: Backbone, decision: Decision) -> None:
    """Cut ``net`` by ``decision`` into ``pruned/`` unless that is there already."""
    target = setup.folder / PRUNED
    if (target / "config.json").is_file() or not is_first_rank():
        return
    provenance = {
        "pruned_from": str(setup.cfg.checkpoint),
        "source_sha256": setup.source_hash,
        "decision": decision.summary(),
        "seed": setup.seed,
    }
    save_model(prune(net, decision), target, provenance)


def write_metrics(setup: Setup, source: Backbone, decision: Decision) -> None:
    """Write ``metrics.json``: size and held-out loss of the source and of the pruned model."""
    models = {
        "source": setup.summary(source),
        "pruned": setup.summary(prune(source, decision), source),
    }
    write_json(setup.folder / METRICS_FILE, unscored(models, decision))
    setup.tracking.scores(flat(models))


def unscored(models: dict[str, Any], decision: Decision | None) -> dict[str, Any]:
    """Content of a ``metrics.json`` without samples, in the form of those with samples."""
    chosen = decision and decision.summary()
    return {"models": models, "protocol": {}, "floor": {}, "decision": chosen}


def flat(models: dict[str, Any]) -> dict[str, Any]:
    """Figures of several models for a tracker: ``model/figure`` to number."""
    return {f"{name}/{key}": value for name, row in models.items() for key, value in row.items()}


def _method(cfg: DictConfig, pruner: Pruner) -> str:
    """Name of the pruner: its attribute ``name``, or what its target is called, in lower case."""
    target = str(cfg.pruner["_target_"]).rpartition(".")[2]
    return str(getattr(pruner, "name", target.lower()))
