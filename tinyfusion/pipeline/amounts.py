"""What a user says a network may cost: a share of the whole, or an amount with its unit."""

from __future__ import annotations

import math
import re
from typing import Any

from tinyfusion.errors import InputError

PARAMETERS, MACS, LATENCY = "parameters", "macs", "latency"
MEASURES = (PARAMETERS, MACS, LATENCY)
"""What a budget can be given in, besides a number of units."""

_FACTORS = {
    PARAMETERS: {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9},
    MACS: {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    LATENCY: {"s": 1.0, "ms": 1e-3, "us": 1e-6},
}
"""Units of absolute amounts, in small letters."""

_AMOUNTS = {
    PARAMETERS: "a number of parameters, such as 340M",
    MACS: "a number of multiply-accumulates, such as 60G",
    LATENCY: "a time in s, ms or us, such as 20ms",
}


def amount_of(measure: str, value: Any, whole: float) -> float:
    """What a network may cost, from a share of the whole or an absolute amount.

    Args:
        measure: one of `MEASURES`.
        value: what the user gave.
        whole: cost of the whole network.

    Raises:
        InputError: neither.
    """
    refused = InputError(
        f"budget.{measure}={value} must be a share below 1, such as 0.5, or {_AMOUNTS[measure]}"
    )
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise refused
    share = share_of(value)
    if share is not None:
        return share * whole
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", str(value).lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        raise refused from None
    suffix = found[2] if found else ""
    factor = _FACTORS[measure].get(suffix)
    if factor is None or not 0 < number < math.inf or (not suffix and number % 1):
        raise refused
    return number * factor


def share_of(value: Any) -> float | None:
    """A number between 0 and 1, in quotes or not; ``None`` for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1 else None
