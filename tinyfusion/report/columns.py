"""How the figures of runs are headed, formatted and judged, wherever they are shown."""

from __future__ import annotations

from tinyfusion.figures.table import Column

FIGURES: dict[str, Column] = {
    "fid": Column("FID", ".3f", "lower"),
    "sfid": Column("sFID", ".3f", "lower"),
    "inception_score": Column("IS", ".2f", "higher"),
    "precision": Column("precision", ".3f", "higher"),
    "recall": Column("recall", ".3f", "higher"),
    "held_out_loss": Column("held-out loss", ".4f", "lower"),
    "teacher_distance": Column("distance to teacher", ".5f", "lower"),
    "calibration_loss": Column("loss after the cut", ".4f"),
    "parameters": Column("parameters", ",.0f"),
    "macs": Column("MACs per sample", ",.0f"),
    "depth": Column("depth", ".0f"),
    "images_per_s": Column("images/s", ".1f", "higher"),
    "speed_up": Column("speed-up", ".2f", "higher"),
    "first_feature_loss": Column("first loss of hidden states", ".4g"),
    "first_loss": Column("first distillation loss", ".4g"),
}
"""Figures by the names they have in records."""

PRIMARY = ("fid", "held_out_loss", "teacher_distance")
"""What runs are ranked by: the first that was measured."""

USUAL = (
    *("fid", "sfid", "inception_score", "precision", "recall", "held_out_loss"),
    *("teacher_distance", "depth", "parameters", "speed_up"),
)
"""What tables show if no columns are named."""

SHORT = ("fid", "inception_score", "held_out_loss", "teacher_distance", "depth", "speed_up")
"""What is shown where there is little room."""
