"""All tensors of a weights file by the path to each, whatever nests and prefixes them.

A training file may keep several copies of a network: under keys, under keys of keys, or under
prefixes of names in one state dict. Here all are paths: ``("ema", "module", "blocks", "0", ...)``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tinyfusion.checkpoints.pickles import is_array

Path = tuple[str, ...]

_DEEPEST = 6
"""Mappings inside mappings that are looked into."""
_COUNTERS = re.compile(
    r"(ema_|_)*(decay|beta|n_averaged|num_updates|optimization_step|initted|iter|iteration|"
    r"iterations|epoch|(global_|train_|cur_|num_)?steps?|seen|count(er)?|(num_|n_)?updates|power|"
    r"inv_gamma|update_(after_step|every)|(min|max)_(decay|value)|momentum|warmup(_steps)?)"
)


@dataclass
class Held:
    """Tensors of a file.

    Attributes:
        tensors: by path, shapes and types at least; without what only counts.
        names: of each of them and of counters, its mapping's keys and its name there.
        states: paths of mappings that hold tensors themselves.
        unnamed: lists of tensors, with their lengths.
        counters: single numbers that stand among tensors.
        arrays: mappings that hold arrays of numpy, with how many.
    """

    tensors: dict[Path, Tensor] = field(default_factory=dict)
    names: dict[Path, tuple[Path, str]] = field(default_factory=dict)
    states: list[Path] = field(default_factory=list)
    unnamed: dict[Path, int] = field(default_factory=dict)
    counters: list[Path] = field(default_factory=list)
    arrays: Counter[Path] = field(default_factory=Counter)

    def under(self, prefix: Path) -> list[Path]:
        """Paths of tensors that begin with a prefix."""
        return [path for path in self.tensors if begins(path, prefix)]


def begins(path: Path, prefix: Path) -> bool:
    """Whether a path is under a prefix, or is the prefix."""
    return path[: len(prefix)] == prefix


def held_in(content: Any) -> Held:
    """Find the tensors of what a file holds; the moments of optimizers are passed over.

    Args:
        content: what the file holds, or tensors by name.
    """
    held = Held()
    for state, name, value in _walk(content, ()):
        if isinstance(value, list):
            held.unnamed[(*state, name)] = len(value)
            continue
        if is_array(value):
            held.arrays[state] += 1
            continue
        path = (*state, *parts_of(name))
        if _counts(value, path[-1]):
            held.counters.append(path)
            held.names[path] = (state, name)
            continue
        # Of a name that occurs twice but for a wrapper's prefix both are kept, to be refused.
        if path in held.tensors:
            path = (*state, *name.split("."))
        held.tensors[path] = value
        held.names[path] = (state, name)
        if state not in held.states:
            held.states.append(state)
    return held


def parts_of(name: str) -> Path:
    """A tensor's name in parts, without prefixes of ``DistributedDataParallel`` and compilation."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return tuple(parts)


def _walk(content: Any, at: Path) -> Iterator[tuple[Path, str, Any]]:
    """Every tensor or array, and every list of tensors, with the keys to it and its own."""
    if not isinstance(content, Mapping) or len(at) > _DEEPEST:
        return
    of_optimizer = {"state", "param_groups"} <= set(content)
    for key, value in content.items():
        if of_optimizer and key in ("state", "param_groups"):
            continue  # some keep averages beside these
        if not isinstance(key, str):
            # Averages are kept by number or by decay, too: {"ema": {0.999: ...}}.
            yield from _walk(value, (*at, str(key)))
            continue
        if isinstance(value, Tensor) or is_array(value):
            yield at, key, value
        elif isinstance(value, list | tuple):
            tensors = [item for item in value if isinstance(item, Tensor) and item.ndim]
            if tensors:
                yield at, key, tensors
            for number, item in enumerate(value):
                yield from _walk(item, (*at, key, str(number)))
        else:
            yield from _walk(value, (*at, key))


def _counts(tensor: Tensor, name: str) -> bool:
    """Whether a tensor is a counter or a flag, such as ``num_updates``, and no weight."""
    if tensor.numel() != 1:
        return False
    # A norm of one channel may have a beta.
    named = bool(_COUNTERS.fullmatch(name)) and (not tensor.ndim or name != "beta")
    return not tensor.is_floating_point() or named
