"""TinyFusion: learn which blocks of a diffusion transformer to keep, then recover the rest.

Public names are loaded when they are first used, so that ``import tinyfusion`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinyfusion.version import __version__

if TYPE_CHECKING:
    from tinyfusion.backbones.contract import Backbone
    from tinyfusion.backbones.dit import DiT
    from tinyfusion.backbones.mar import MAR
    from tinyfusion.backbones.sit import SiT
    from tinyfusion.checkpoints import (
        load,
        push_to_hub,
        remap_lora,
        save_diffusers,
        save_model,
        save_public,
        set_convention,
        use_published_convention,
    )
    from tinyfusion.conditioning import ClassLabels, Conditioning
    from tinyfusion.conformance import check_backbone
    from tinyfusion.decision import Decision
    from tinyfusion.errors import InputError
    from tinyfusion.metrics.held_out import HeldOutLoss
    from tinyfusion.pipeline.api import choose, learn_mask, recover, sample, score
    from tinyfusion.processes.contract import Process
    from tinyfusion.processes.gaussian import GaussianDiffusion
    from tinyfusion.processes.interpolant import Interpolant
    from tinyfusion.processes.masked import MaskedDiffusion
    from tinyfusion.pruners.contract import Choice, PruningContext
    from tinyfusion.pruners.scored import Scored
    from tinyfusion.samplers.generate import generate
    from tinyfusion.scheme import Scheme, parse_scheme
    from tinyfusion.surgery import prune
    from tinyfusion.training import recipes
    from tinyfusion.units import Unit

_HOMES = {
    "Backbone": "tinyfusion.backbones.contract",
    "Choice": "tinyfusion.pruners.contract",
    "ClassLabels": "tinyfusion.conditioning",
    "Conditioning": "tinyfusion.conditioning",
    "Decision": "tinyfusion.decision",
    "DiT": "tinyfusion.backbones.dit",
    "GaussianDiffusion": "tinyfusion.processes.gaussian",
    "HeldOutLoss": "tinyfusion.metrics.held_out",
    "InputError": "tinyfusion.errors",
    "Interpolant": "tinyfusion.processes.interpolant",
    "MAR": "tinyfusion.backbones.mar",
    "MaskedDiffusion": "tinyfusion.processes.masked",
    "Process": "tinyfusion.processes.contract",
    "PruningContext": "tinyfusion.pruners.contract",
    "Scheme": "tinyfusion.scheme",
    "Scored": "tinyfusion.pruners.scored",
    "SiT": "tinyfusion.backbones.sit",
    "Unit": "tinyfusion.units",
    "check_backbone": "tinyfusion.conformance",
    "choose": "tinyfusion.pipeline.api",
    "generate": "tinyfusion.samplers.generate",
    "learn_mask": "tinyfusion.pipeline.api",
    "load": "tinyfusion.checkpoints",
    "parse_scheme": "tinyfusion.scheme",
    "prune": "tinyfusion.surgery",
    "push_to_hub": "tinyfusion.checkpoints",
    "recover": "tinyfusion.pipeline.api",
    "remap_lora": "tinyfusion.checkpoints",
    "sample": "tinyfusion.pipeline.api",
    "save_diffusers": "tinyfusion.checkpoints",
    "save_model": "tinyfusion.checkpoints",
    "save_public": "tinyfusion.checkpoints",
    "score": "tinyfusion.pipeline.api",
    "set_convention": "tinyfusion.checkpoints",
    "use_published_convention": "tinyfusion.checkpoints",
}

_MODULES = {"recipes": "tinyfusion.training.recipes"}
"""Modules that are public with all their names."""

__all__ = [
    "MAR",
    "Backbone",
    "Choice",
    "ClassLabels",
    "Conditioning",
    "Decision",
    "DiT",
    "GaussianDiffusion",
    "HeldOutLoss",
    "InputError",
    "Interpolant",
    "MaskedDiffusion",
    "Process",
    "PruningContext",
    "Scheme",
    "Scored",
    "SiT",
    "Unit",
    "__version__",
    "check_backbone",
    "choose",
    "generate",
    "learn_mask",
    "load",
    "parse_scheme",
    "prune",
    "push_to_hub",
    "recipes",
    "recover",
    "remap_lora",
    "sample",
    "save_diffusers",
    "save_model",
    "save_public",
    "score",
    "set_convention",
    "use_published_convention",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name == "WidthDecision":
        raise AttributeError(
            "tinyfusion.WidthDecision is part of tinyfusion.Decision now: see its field 'resized'"
        )
    raise AttributeError(f"module 'tinyfusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
