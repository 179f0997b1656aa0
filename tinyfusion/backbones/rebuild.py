"""Whether a backbone can be rebuilt from its ``config()``, before and after pruning.

Every model file rests on that. Commands ask it of classes from outside this package before they
train, because a model that can't be written would otherwise be noticed when it is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import FAMILIES, build_empty, family_of
from tinyfusion.errors import InputError


def check_rebuilds(net: Backbone) -> None:
    """Refuse a backbone that can't be rebuilt from its config, before or after pruning.

    Args:
        net: the backbone; left as it is, and nothing of its size is copied.

    Raises:
        InputError: a class that can't be imported by name, sizes that it does not state, a config
            that is not plain data or does not give the same tensors, or a state dict that model
            files can't hold.
    """
    check_sizes(net)
    check_state(net)
    # Start values are not wanted, nor is what a constructor draws from the global generator.
    with torch.random.fork_rng(devices=[]):
        twin = rebuilt(net)
        _check_same(twin, net, "")
        if net.depth > 1:
            kept = without_one(net)
            twin.keep_blocks(kept)
            if twin.depth != len(kept):
                raise InputError(
                    f"{_name(net)}.keep_blocks was given {len(kept)} blocks and left {twin.depth}"
                )
            after = f" after keep_blocks({list(kept)})"
            _check_same(rebuilt(twin), twin, after)


def check_own(net: Backbone) -> None:
    """As `check_rebuilds`, for classes from outside this package only; the others are known."""
    if family_of(net) not in FAMILIES:
        check_rebuilds(net)


def check_sizes(net: Backbone) -> None:
    """Refuse a backbone that does not state the sizes of its data.

    Raises:
        InputError: an attribute is absent or no positive integer; ``num_classes`` may be 0.
    """
    for name, least in (("in_channels", 1), ("input_size", 1), ("num_classes", 0)):
        value = getattr(net, name, None)
        if type(value) is not int or value < least:
            valid = "a positive integer" if least else "a positive integer, or 0 without classes"
            raise InputError(f"{_name(net)}: self.{name} must be {valid}, found {value!r}")


def rebuilt(net: Backbone) -> Backbone:
    """A network of the class and config of ``net`` as a file would give it back, without weights.

    Raises:
        InputError: the class can't be imported by name, the config can't be stored as JSON, or the
            class refuses its own config.
    """
    return build_empty({"backbone": family_of(net), **plain_config(net)})


def plain_config(net: Backbone) -> dict[str, Any]:
    """``net.config()`` as it comes out of a JSON file.

    Raises:
        InputError: it is no mapping, or holds a value that JSON can't hold.
    """
    config = net.config()
    if not isinstance(config, Mapping):
        raise InputError(
            f"{_name(net)}.config() must give a dict of constructor arguments, got "
            f"{type(config).__name__}"
        )
    for key, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise InputError(
                f"{_name(net)}.config() holds {key}={value!r}, which JSON can't hold; valid: "
                "numbers, text, true, false, None, and lists and dicts of these"
            ) from None
    return json.loads(json.dumps(dict(config)))


def check_state(net: Backbone) -> None:
    """Refuse tensors that model files can't hold.

    Raises:
        InputError: tensors of other than floating types, or two names for the same memory.
    """
    places: dict[tuple[Any, ...], str] = {}
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            raise InputError(
                f"{_name(net)}: tensor {name!r} of its state dict is {tensor.dtype}; model files "
                "hold floating types: register tables of other types with persistent=False"
            )
        if tensor.is_meta or not tensor.numel():
            continue
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        if place in places:
            raise InputError(
                f"{_name(net)}: tensors {places[place]!r} and {name!r} of its state dict share "
                "memory; model files hold every tensor by itself: register one of them"
            )
        places[place] = name


def without_one(net: Backbone) -> tuple[int, ...]:
    """Indices of all blocks but the last one of the longest stack."""
    ends = [0, *net.borders, net.depth]
    stop = max(range(1, len(ends)), key=lambda i: ends[i] - ends[i - 1])
    return tuple(i for i in range(net.depth) if i != ends[stop] - 1)


def _check_same(twin: Backbone, net: Backbone, after: str) -> None:
    """Refuse a twin with other tensors than those of ``net``.

    Raises:
        InputError: a tensor is missing, additional or of another shape (the first three are named).
    """
    given, wanted = _shapes(twin.state_dict()), _shapes(net.state_dict())
    names = [name for name in {**wanted, **given} if given.get(name) != wanted.get(name)]
    if not names:
        return
    raise InputError(
        f"{_name(net)}(**config()) has other tensors than the network whose config it is{after}: "
        f"{_differences(names, wanted, given)}; config() must describe the module as it now is, "
        "so its depth is len(self.blocks)"
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _differences(
    names: Sequence[str],
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
) -> str:
    listed = ", ".join(
        f"{name} is {wanted.get(name, 'absent')} and comes back {given.get(name, 'absent')}"
        for name in names[:3]
    )
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _name(net: Backbone) -> str:
    return type(net).__name__
