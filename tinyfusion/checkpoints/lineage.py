"""How a model came about, gathered from its record and from the run folder it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tinyfusion.checkpoints.checkpoint import Checkpoint
from tinyfusion.decision import Decision, find_decision
from tinyfusion.errors import InputError
from tinyfusion.files import read_json

# Row of a run's metrics.json by the name of its model folders.
_ROWS = {
    "pruned": "pruned",
    "recovered": "recovered",
    "recovered_live": "recovered (live weights)",
}


def lineage(checkpoint: Checkpoint) -> dict[str, Any]:
    """The provenance of a checkpoint, completed by what lies beside it.

    A model folder of a run (``<run>/recovered``) is completed by the run's ``decision.json``,
    ``config.yaml`` and ``metrics.json``. What the checkpoint itself records is never replaced.

    Args:
        checkpoint: as read.

    Returns:
        Plain data; ``decision``, ``recovery``, ``metrics``, ``source_metrics`` and ``protocol`` as
        far as they are known.
    """
    known = dict(checkpoint.provenance)
    folder = checkpoint.path.absolute().parent
    if folder.name not in _ROWS or "metrics" in known:
        return known
    run = folder.parent
    decision = _decision(find_decision(run), checkpoint)
    if decision is not None:
        known["decision"] = decision | known.get("decision", {})
    if "recovered_from" in known and "recovery" not in known:
        known |= _recipe(run / "config.yaml")
    return known | _metrics(run / "metrics.json", _ROWS[folder.name])


def _decision(file: Path | None, checkpoint: Checkpoint) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        decision = Decision.load(file)
    except InputError:
        return None  # a damaged record must not keep an intact model from being exported
    arguments = checkpoint.arguments or {}
    depth = checkpoint.depth or arguments.get("depth")
    if decision.is_about_blocks and len(decision.origins) != depth:
        return None  # the decision of another run
    widths = {} if decision.resized is None else decision.resized.widths
    if any(arguments.get(key, width) != width for key, width in widths.items()):
        return None  # as above
    known = {"seed": decision.seed, "source_sha256": decision.source_sha256}
    return decision.summary() | known


def _recipe(file: Path) -> dict[str, Any]:
    """What the recovery minimised, from the configuration of the run."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        objective, teacher = dict(content["recovery"]), content["teacher"]["path"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return {}  # as above
    objective.pop("_target_", None)
    return {"recovery": {"objective": objective, "teacher": teacher}}


def _metrics(file: Path, row: str) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = read_json(file, "metrics")
        found = {
            "metrics": content["models"][row],
            "source_metrics": content["models"].get("source"),
            "protocol": content.get("protocol"),
        }
    except (InputError, KeyError, TypeError, AttributeError):
        return {}  # as above
    return {key: value for key, value in found.items() if value}


def source_depth(checkpoint: Checkpoint) -> int | None:
    """Blocks of the model that ``kept_from`` points into, or ``None`` if that is not known.

    A decision made for a model that had been pruned before records the depth of that model only.
    """
    decision = lineage(checkpoint).get("decision")
    if not isinstance(decision, dict) or checkpoint.kept_from is None:
        return None
    if list(checkpoint.kept_from) != decision.get("kept"):
        return None
    depth = decision.get("source_depth")
    return depth if isinstance(depth, int) else None
