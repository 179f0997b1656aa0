"""Rows of a batch, whatever the process that made the batch keeps its tensors in."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor


def copies_of(value: Tensor, count: int) -> Tensor:
    """``count`` copies of a batch, one behind the other."""
    return value.repeat(count, *[1] * (value.ndim - 1))


def first_rows(value: Any, count: int, rows: int) -> Any:
    """The first ``rows`` of a batch of ``count``."""
    return value if rows == count else map_rows(value, count, lambda tensor: tensor[:rows])


def map_rows(value: Any, count: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to all tensors of ``count`` rows in a value, however it holds them.

    Args:
        value: a tensor, or tuples, lists, dicts and objects with tensors among their attributes.
        count: rows of a batch; tensors of other lengths are the same for all samples.
        change: what to do with the tensors.
    """
    if isinstance(value, Tensor):
        return change(value) if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {name: map_rows(item, count, change) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_rows(item, count, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        changed = copy.copy(value)
        for name in _attributes(value):
            # Past the lock of frozen dataclasses: the copy is nobody else's yet.
            object.__setattr__(changed, name, map_rows(getattr(value, name), count, change))
        return changed
    return value


def _attributes(value: Any) -> list[str]:
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    return list(vars(value))
