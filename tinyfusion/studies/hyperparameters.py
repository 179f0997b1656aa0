"""Table 6: hyper-parameters that the published experiments are composed with, and the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyfusion.figures.table import Column, Table
from tinyfusion.report.paper import paper_table
from tinyfusion.settings.composed import composed
from tinyfusion.studies.outcome import Outcome
from tinyfusion.studies.works import typed
from tinyfusion.studies.written import Report

KEYS = {
    "optimizer": "optimizer._target_",
    "lr": "training.recovery.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "cosine_eta_min": "training.recovery.learning_rate_end",
    "alpha_kd": "recovery.output_weight",
    "alpha_gt": "recovery.task_weight",
    "beta_start": "recovery.feature_weight",
    "beta_end": "recovery.feature_weight_end",
    "grad_clip": "training.recovery.clip_norm",
}
"""Columns of the table, and where a configuration has them."""


def report(outcome: Outcome, folder: Path) -> Report:
    """The table of hyper-parameters; nothing is run for it.

    Args:
        outcome: a study whose rows are experiments.
        folder: not used; there is no picture.
    """
    study = outcome.study
    table = paper_table(study.paper["table"])
    rows = []
    for row in study.rows:
        assert row.plan is not None
        printed = table.row(row.paper)
        config = composed(row.plan.command, typed(row.plan.overrides))
        made: dict[str, Any] = dict(row.labels)
        for name in KEYS:
            made[name] = _differing(value_of(config, name), printed[name])
        made["pruning_config"] = _differing(pruning_of(config), printed["pruning_config"])
        rows.append(made)
    columns = {key: Column(key.replace("_", " ")) for key in rows[0]}
    return Report([Table(rows, columns)])


def value_of(config: Mapping[str, Any], name: str) -> Any:
    """What a configuration has in a column of the table; a class by its own name."""
    value: Any = config
    for key in KEYS[name].split("."):
        value = value[key]
    return value.rpartition(".")[2] if isinstance(value, str) else value


def pruning_of(config: Mapping[str, Any]) -> str:
    """Weight update and scheme, as the table names them."""
    update = {"Lora": "LoRA"}.get(
        kind := str(config["pruner"]["delta"]["_target_"]).rpartition(".")[2], kind
    )
    scheme = config["scheme"]
    return f"{update}-{scheme if isinstance(scheme, str) else 'mixed groups'}"


def _differing(here: Any, printed: Any) -> str:
    """One text if both agree, else both."""
    own = f"{here:g}" if isinstance(here, float) else str(here)
    other = f"{printed:g}" if isinstance(printed, float) else str(printed)
    return own if own == other else f"{own} (paper: {other})"
