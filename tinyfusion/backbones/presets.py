"""Published sizes by name, and the one place where a name or plain data becomes a backbone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinyfusion.backbones.by_name import dotted_name, loaded_class
from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.sit import SiT
from tinyfusion.errors import InputError

FAMILIES: dict[str, type[Backbone]] = {kind.family: kind for kind in (DiT, SiT, MAR)}
"""Class behind the word that ``config.json`` stores under ``backbone``.

A class from outside this package is stored by its dotted name instead.
"""

DEFAULT_FAMILY = "dit"
"""The family of constructor arguments that name none."""


def _latent(hidden_size: int, depth: int, num_heads: int, patch_size: int = 2) -> dict[str, Any]:
    """Arguments of a DiT or SiT on 32x32x4 latents with 1000 classes."""
    return {
        "input_size": 32,
        "patch_size": patch_size,
        "in_channels": 4,
        "hidden_size": hidden_size,
        "depth": depth,
        "num_heads": num_heads,
        "num_classes": 1000,
    }


# DiT (arXiv 2212.09748), table 1, and SiT (arXiv 2401.08740), which has the same sizes.
PRESETS: dict[str, dict[str, Any]] = {
    f"{family}_{size}_{patch_size}": _latent(*shape, patch_size)
    for family in ("dit", "sit")
    for size, shape in {
        "s": (384, 12, 6),
        "b": (768, 12, 12),
        "l": (1024, 24, 16),
        "xl": (1152, 28, 16),
    }.items()
    for patch_size in (2, 4, 8)
}
"""Constructor arguments by preset name, whose first word is the family."""

# TinyFusion (arXiv 2412.01199), table 1: DiT-XL/2 cut to 7, 14 and 19 blocks, and SiT-XL/2.
PRESETS |= {f"dit_xl_2_d{depth}": _latent(1152, depth, 16) for depth in (7, 14, 19)}
PRESETS |= {f"sit_xl_2_d{depth}": _latent(1152, depth, 16) for depth in (7, 14)}

# Ours: a miniature of DiT-XL/2 for 8x8 digits, with the same 28 blocks. The published start of the
# gates (0) leaves the second half of so small a model unused.
PRESETS["dit_digits"] = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "hidden_size": 32,
    "depth": 28,
    "num_heads": 4,
    "num_classes": 10,
    "class_dropout_prob": 0.1,
    "learn_sigma": True,
    "gate_bias_init": 1.5,
}

# Ours: the same network as a SiT.
PRESETS["sit_digits"] = dict(PRESETS["dit_digits"])


def _masked(
    hidden_size: int, stack_depth: int, num_heads: int, head_depth: int, head_width: int
) -> dict[str, Any]:
    """Arguments of a MAR on 16x16x16 latents with 1000 classes and stacks of equal depth."""
    return {
        "input_size": 16,
        "hidden_size": hidden_size,
        "encoder_depth": stack_depth,
        "decoder_depth": stack_depth,
        "num_heads": num_heads,
        "patch_size": 1,
        "in_channels": 16,
        "num_classes": 1000,
        "buffer_size": 64,
        "head_depth": head_depth,
        "head_width": head_width,
    }


# MAR (arXiv 2406.11838), the released models, and TinyMAR-D16 (arXiv 2412.01199): MAR-L cut to
# 16 of its 32 blocks.
PRESETS |= {
    "mar_base": _masked(768, 12, 12, 6, 1024),
    "mar_large": _masked(1024, 16, 16, 8, 1280),
    "mar_huge": _masked(1280, 20, 16, 12, 1536),
    "mar_large_d16": _masked(1024, 8, 16, 8, 1280),
}

# Ours: a miniature of MAR-L for 8x8 digits, with the same 16+16 blocks.
PRESETS["mar_digits"] = {
    "input_size": 8,
    "hidden_size": 24,
    "encoder_depth": 16,
    "decoder_depth": 16,
    "num_heads": 3,
    "patch_size": 2,
    "in_channels": 1,
    "mlp_ratio": 1.0,
    "num_classes": 10,
    "buffer_size": 4,
    "head_depth": 3,
    "head_width": 64,
}


def preset(name: str) -> dict[str, Any]:
    """A copy of the constructor arguments of preset ``name``.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"backbone {name!r} is unknown; valid presets: {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def preset_family(name: str) -> str:
    """Family of preset ``name``: a key of :data:`FAMILIES`."""
    return name.partition("_")[0]


def build(name_or_arguments: str | Mapping[str, Any]) -> Backbone:
    """Build a freshly initialised backbone.

    Args:
        name_or_arguments: a name in :data:`PRESETS`, or constructor arguments. Arguments may
            hold the family under ``backbone`` (:data:`DEFAULT_FAMILY` if left out): a key of
            :data:`FAMILIES`, or the dotted name of a class that was imported.

    Returns:
        The backbone, in training mode, on the current default device.

    Raises:
        InputError: unknown preset, family or argument, a class that was not imported, or values
            that can't be built.
    """
    if isinstance(name_or_arguments, str):
        name = name_or_arguments
        name_or_arguments = {"backbone": preset_family(name), **preset(name)}
    arguments = dict(name_or_arguments)
    family = arguments.pop("backbone", DEFAULT_FAMILY)
    kind = class_of(family)
    _check(family, kind, arguments)
    if family in FAMILIES:
        return kind(**arguments)
    try:
        return kind(**arguments)
    except InputError:
        raise
    except Exception as error:  # the author's own code, which refuses in its own way
        raise InputError(
            f"backbone {family} can't be built from {_listed(arguments)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def build_empty(name_or_arguments: str | Mapping[str, Any]) -> Backbone:
    """As :func:`build`, but parameters hold whatever their memory held; to be loaded into.

    Large models are ready at once and claim no memory: pages are only reserved until written.
    """
    with _WithoutInitialisation():
        return build(name_or_arguments)


class _WithoutInitialisation(TorchFunctionMode):
    """Makes filling a parameter do nothing; buffers and tables are computed as usual.

    The meta device would serve as well, but it leaves tables without values and some operations
    on it import the whole compiler, which takes seconds.
    """

    _fills: ClassVar = {
        torch.Tensor.uniform_,
        torch.Tensor.normal_,
        torch.Tensor.zero_,
        torch.Tensor.fill_,
    }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._fills or getattr(func, "__module__", None) == nn.init.__name__:
            target = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **kwargs)


def family_of(net: Backbone | type[Backbone]) -> str:
    """The word under which ``config.json`` stores the class of ``net``.

    Args:
        net: a backbone, or its class.

    Raises:
        InputError: a class from outside this package that can't be imported by name.
    """
    kind = net if isinstance(net, type) else type(net)
    return kind.family or dotted_name(kind)


def families_by(state: Mapping[str, Tensor]) -> list[str]:
    """Families whose public files look like a bare state dict; several if theirs look the same."""
    return [
        family
        for family, kind in FAMILIES.items()
        if kind.public_files is not None and kind.public_files.fit(state)
    ]


def class_of(family: str) -> type[Backbone]:
    """The class behind a family's name; imports nothing, so the name may come from a file.

    Args:
        family: a key of :data:`FAMILIES`, or the dotted name of a class.

    Raises:
        InputError: neither a family nor the dotted name of a class that has been imported.
    """
    kind = FAMILIES.get(family) or loaded_class(family)
    if kind is not None:
        return kind
    module, dot, _ = family.rpartition(".")
    if not dot:
        raise InputError(f"backbone {family!r} is unknown; valid families: {', '.join(FAMILIES)}")
    raise InputError(
        f"backbone {family!r} is no family of this package and no class that was imported, and "
        f"reading a file never imports what the file names: give backbone= (on the command line a "
        f"configuration with _target_: {family}, to convert --backbone {family}, in Python "
        f"backbone={family!r}), or 'import {module}' first"
    )


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"


def _check(family: str, kind: type[Backbone], arguments: Mapping[str, Any]) -> None:
    """Refuse unknown names and values of the wrong type, which arrive from files and YAML."""
    valid = inspect.signature(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in valid.values()):
        return
    for name, value in arguments.items():
        if name not in valid:
            raise InputError(
                f"backbone {family!r} has no argument {name!r}; valid: {', '.join(valid)}"
            )
        if family not in FAMILIES:
            continue  # what values mean is its author's to say
        default = valid[name].default
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(default, bool):
            fits, wanted = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            # Of several stacks one may be empty.
            may_be_empty = len(kind.depth_arguments) > 1 and name in kind.depth_arguments
            least = 0 if may_be_empty else 1
            fits = is_integer and value >= least
            wanted = "a positive integer" if least else "an integer of at least 0"
        elif isinstance(default, float):
            fits, wanted = is_integer or isinstance(value, float), "a number"
        else:
            continue
        if not fits:
            raise InputError(f"backbone argument {name} must be {wanted}, got {value!r}")
