"""From a share of parameters to whole widths: near a uniform cut, at the wanted size."""

from __future__ import annotations

import itertools
import math

from tinyfusion.backbones.coupling import Coupling
from tinyfusion.errors import InputError

TOLERANCE = 0.02
"""Largest difference between the share of parameters asked for and the one reached."""

_CLOSE = 0.002  # differences below this are no reason for less even widths
_REACH = 1.3  # how far a width may be from the even cut, as a factor


def widths_for(coupling: Coupling, ratio: float, round_to: int = 8) -> dict[str, int]:
    """Widths at which a share of the parameters is gone.

    The even cut scales every width by one factor (the square root of what stays, where all
    parameters are in products of two widths). Heads can only go whole and the others in steps, so
    widths around it are tried, counted exactly; of those that come close, the most even are taken.

    Args:
        coupling: which tensors each width of the network belongs to.
        ratio: share of the parameters that is to go, in [0, 1).
        round_to: what channels and neurons are a multiple of.

    Returns:
        Units per group by constructor argument.

    Raises:
        InputError: a ratio that no widths reach within `TOLERANCE`.
    """
    source = coupling.widths
    if ratio == 0:
        return dict(source)
    total = coupling.count(source)
    target = (1 - ratio) * total
    scale = _even_scale(coupling, target)
    indivisible = {group.argument for group in coupling.plan.groups if group.unit > 1}
    steps = {key: 1 if key in indivisible else round_to for key in source}
    # The one with the most steps is set last, where it fits.
    finest = max(source, key=lambda key: source[key] / steps[key])
    others = [key for key in source if key != finest]
    found = []
    for values in itertools.product(*(_around(scale, source[k], steps[k]) for k in others)):
        widths = dict(zip(others, values, strict=True))
        for last in _fitting(coupling, widths, finest, source[finest], steps[finest], target):
            tried = {key: {**widths, finest: last}[key] for key in source}
            error = abs(coupling.count(tried) - target) / total
            skew = max(abs(math.log(tried[key] / (scale * source[key]))) for key in source)
            found.append((error > TOLERANCE, max(error, _CLOSE), skew, error, tried))
    is_off, _, _, error, best = min(found, key=lambda entry: _rank(entry[:4]))
    if is_off:
        raise InputError(
            f"pruner.ratio={ratio}: with pruner.round_to={round_to} the closest widths "
            f"({', '.join(f'{k}={v}' for k, v in best.items())}) miss it by {100 * error:.1f} "
            "points; give a smaller round_to (at least 4) or another ratio"
        )
    return best


def _rank(entry: tuple[bool, float, float, float]) -> tuple[float, ...]:
    """Order of candidates: within tolerance, then evenness and size on one scale."""
    is_off, coarse, skew, error = entry
    return (is_off, error if is_off else skew + 10 * (coarse - _CLOSE), error)


def _even_scale(coupling: Coupling, target: float) -> float:
    """Factor on every width that leaves ``target`` parameters, fractions of channels allowed.

    Raises:
        InputError: the parameters that depend on no width are more than ``target``.
    """
    source = coupling.widths
    low, high = 0.0, 1.0
    fixed = coupling.count(dict.fromkeys(source, 0))
    if fixed >= target:
        most = 1 - fixed / coupling.count(source)
        raise InputError(f"pruner.ratio must stay below {most:.3f}: the rest has no width to cut")
    for _ in range(50):
        middle = (low + high) / 2
        if coupling.count({key: middle * width for key, width in source.items()}) < target:
            low = middle
        else:
            high = middle
    return high


def _around(scale: float, width: int, step: int) -> list[int]:
    """Multiples of ``step`` near an even cut, at least one, never more than there were."""
    even = scale * width
    low, high = even / _REACH, min(width, even * _REACH)
    near = [step * k for k in range(max(1, math.ceil(low / step)), math.floor(high / step) + 1)]
    nearest = min(width, max(step, step * round(even / step)))
    return sorted({*near, nearest})


def _fitting(
    coupling: Coupling, widths: dict[str, int], key: str, width: int, step: int, target: float
) -> set[int]:
    """The two widths ``key`` between which the target lies, the others being given."""
    low, high = 1, max(1, width // step)
    while low < high:
        middle = (low + high) // 2
        if coupling.count({**widths, key: step * middle}) < target:
            low = middle + 1
        else:
            high = middle
    return {min(width, step * low), min(width, step * max(1, low - 1))}
