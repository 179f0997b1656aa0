"""The process and sampler of each kind, where a caller names none: quick, or as published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Process
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.autoregressive import AutoregressiveSampler
from tinyfusion.samplers.contract import Sampler
from tinyfusion.samplers.ode import ODESampler
from tinyfusion.samplers.sde import SDESampler
from tinyfusion.training.recipes import Recipe

_PROCESSES: dict[str, Callable[[Backbone], Process]] = {
    GaussianDiffusion.kind: lambda net: GaussianDiffusion(),
    Interpolant.kind: lambda net: Interpolant(),
    MaskedDiffusion.kind: lambda net: MaskedDiffusion(patch_size=net.config()["patch_size"]),
}
_SAMPLERS: dict[str, Callable[[], Sampler]] = {
    GaussianDiffusion.kind: lambda: AncestralSampler(50),
    Interpolant.kind: lambda: ODESampler("heun2", 25),
    MaskedDiffusion.kind: lambda: AutoregressiveSampler(16),
}
_PUBLISHED: dict[str, Callable[..., Sampler]] = {
    GaussianDiffusion.kind: AncestralSampler,
    Interpolant.kind: SDESampler,
    MaskedDiffusion.kind: AutoregressiveSampler,
}


def process_for(net: Backbone) -> Process:
    """The usual process of a network's kind.

    Raises:
        InputError: its kind has none; give ``process=``.
    """
    if net.process_kind not in _PROCESSES:
        raise InputError(
            f"a {type(net).__name__} is of the process kind {net.process_kind!r}: give process="
        )
    return _PROCESSES[net.process_kind](net)


def sampler_for(process: Process, recipe: Recipe | None = None) -> Sampler:
    """A quick sampler of a process's kind, or the one that a recipe was published with.

    Args:
        process: the process.
        recipe: the recipe, of a network of the same kind.

    Raises:
        InputError: its kind has none, or the recipe is one of another kind; give ``sampler=``.
    """
    if process.kind not in _SAMPLERS:
        raise InputError(f"no sampler of the process kind {process.kind!r} is known: give sampler=")
    if recipe is None:
        return _SAMPLERS[process.kind]()
    values: dict[str, Any] = asdict(recipe.sampler)
    try:
        return _PUBLISHED[process.kind](**values)
    except TypeError:
        raise InputError(
            f"recipe= samples a {recipe.source} (by {', '.join(values)}), which does not suit a "
            f"process of the kind {process.kind!r}: give sampler="
        ) from None
