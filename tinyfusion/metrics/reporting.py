"""What stands in tables and beside them: protocols and scores in a line or a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyfusion.samplers.contract import Sampler


def floor_line(floor: Mapping[str, float]) -> str:
    """What `Evaluation.floor` found, to stand beside a table; empty if it is not known."""
    if not floor:
        return ""
    return (
        f"FID between halves of the real data {floor['fid_real_halves']:.2f} +- "
        f"{floor['fid_real_halves_std']:.2f}"
    )


def settings_of(sampler: Sampler) -> str:
    """A sampler in one line: its class and its plain settings."""
    plain = (str, int, float, bool, type(None))
    settings = {
        name: value
        for name, value in vars(sampler).items()
        if not name.startswith("_") and isinstance(value, plain)
    }
    return f"{type(sampler).__name__}({', '.join(f'{k}={v}' for k, v in settings.items())})"


def for_table(row: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a row of `Evaluation.score` with FID and its spread in one cell.

    Args:
        row: values by key; other keys stay as they are.

    Returns:
        With ``fid_std`` in ``row``, ``fid`` is the pair (mean, spread), which tables show as
        "mean ± spread", and ``fid_std`` is gone.
    """
    cells = dict(row)
    spread = cells.pop("fid_std", None)
    if spread is not None:
        cells["fid"] = (cells["fid"], spread)
    return cells


def guidance_words(protocol: dict[str, Any]) -> str:
    """Guidance of a sampling protocol, such as ``guidance 1.5 at noise levels 0.3 to 5``."""
    interval = protocol.get("guidance_interval")
    levels = "" if interval is None else f" at noise levels {interval[0]:g} to {interval[1]:g}"
    return f"guidance {protocol['guidance']}{levels}"
