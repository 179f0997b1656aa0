"""What figures are called in trackers, and which way each is better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

METRICS_FILE = "metrics.json"
"""Figures of a finished run, in its folder."""

_LOWER = {"fid", "best_fid", "sfid", "teacher_distance", "held_out_mse"}
_HIGHER = {"inception_score", "precision", "recall", "images_per_s"}
_NO_TERMS = {"learning_rate", "grad_norm", "skipped_steps"}
"""What is logged under ``train/`` and is no term of the loss."""


def metric_key(name: str) -> str:
    """The name of a figure without blanks and brackets, as queries and sweeps want it.

    Of what stands in brackets the first word stays, and what is no letter, digit, ``_``, ``.``,
    ``-`` or ``/`` becomes ``_``: ``recovered (live weights)/fid`` is ``recovered_live/fid``,
    ``round 1/depth`` is ``round_1/depth``. The files of a run keep their own names.
    """
    name = re.sub(r"\s*\((\w+)[^)]*\)", r"_\1", name)
    return re.sub(r"[^\w./-]+", "_", name)


def flat_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run's ``metrics.json`` by the keys of trackers, such as ``recovered/fid``.

    Args:
        metrics: content of the file, of any command.
    """
    models = {name: metrics[name] for name in ("model", "images") if name in metrics}
    models |= metrics.get("models", {})
    return {
        metric_key(f"{name}/{key}"): float(value)
        for name, row in models.items()
        for key, value in row.items()
        if isinstance(value, int | float)
    }


def goal(name: str) -> Literal["min", "max", "last"]:
    """Which value of a curve is its summary: the best one, or the last where neither is better.

    Args:
        name: key of a figure, such as ``recover/train/loss``.
    """
    rest, _, last = name.rpartition("/")
    if last in _HIGHER:
        return "max"
    is_term = rest.rpartition("/")[2] == "train" and last not in _NO_TERMS
    is_loss = last.startswith("loss") or last.endswith("_loss")
    return "min" if last in _LOWER or is_term or is_loss else "last"
