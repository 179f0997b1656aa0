"""What travels from block to block: one tensor, or a tuple of them (image and text streams).

Everything that handles hidden states (gates, feature collection, candidate scoring, summaries)
goes through these functions, so that it works for both.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

States = Tensor | tuple[Tensor, ...]
"""One stream of shape (B, T, D), or one tensor a stream; all have the batch in front."""


def streams(states: States) -> tuple[Tensor, ...]:
    """The streams of hidden states, one or several."""
    return (states,) if isinstance(states, Tensor) else tuple(states)


def like_streams(states: States, found: Sequence[Tensor]) -> States:
    """Streams as hidden states of the form of others: one tensor, or a tuple."""
    return found[0] if isinstance(states, Tensor) else tuple(found)


def map_streams(function: Callable[..., Tensor], *states: States) -> States:
    """Apply a function stream by stream.

    Args:
        function: takes one tensor of each of ``states`` and gives a tensor.
        states: hidden states with the same number of streams.

    Returns:
        A tensor if the first of ``states`` is one, otherwise a tuple.

    Raises:
        ValueError: the numbers of streams differ.
    """
    mapped = [function(*parts) for parts in zip(*map(streams, states), strict=True)]
    return like_streams(states[0], mapped)


def batch_of(states: States) -> int:
    """Number of samples."""
    return len(streams(states)[0])


def rows_of(states: States, rows: slice | Tensor) -> States:
    """Some samples of hidden states.

    Args:
        states: hidden states of B samples.
        rows: a slice, indices or a boolean mask over the batch.
    """
    return map_streams(lambda stream: stream[rows], states)


def rows_of_condition(condition: Any, rows: slice | Tensor) -> Any:
    """Some samples of what blocks are told, of which every tensor has the batch in front.

    Args:
        condition: tensors, in tuples, lists, dicts and dataclasses. Numbers, words, ``None`` and
            tensors without axes are the same for all samples.
        rows: see `rows_of`.

    Raises:
        TypeError: something else, of which it is not known what it holds.
    """
    if isinstance(condition, Tensor):
        return condition[rows] if condition.ndim else condition
    if condition is None or isinstance(condition, bool | int | float | str):
        return condition
    if isinstance(condition, dict):
        return {name: rows_of_condition(value, rows) for name, value in condition.items()}
    if isinstance(condition, tuple | list):
        items = [rows_of_condition(value, rows) for value in condition]
        return type(condition)(*items) if hasattr(condition, "_fields") else type(condition)(items)
    if dataclasses.is_dataclass(condition) and not isinstance(condition, type):
        names = [field.name for field in dataclasses.fields(condition)]
        parts = {name: rows_of_condition(getattr(condition, name), rows) for name in names}
        return dataclasses.replace(condition, **parts)
    raise TypeError(
        f"rows of a condition of type {type(condition).__name__} are not known; give the backbone "
        "a method condition_rows(condition, rows)"
    )


def split_states(states: States, size: int) -> list[States]:
    """Hidden states in batches of ``size`` samples, the last one perhaps smaller."""
    count = batch_of(states)
    return [rows_of(states, slice(first, first + size)) for first in range(0, count, size)]


def cat_states(parts: Sequence[States]) -> States:
    """Hidden states of several batches, one behind the other."""
    return map_streams(lambda *same: torch.cat(same), *parts)


def mean_over_entries(values: States) -> Tensor:
    """Mean over all entries of all streams, sample by sample, shape (B,).

    Args:
        values: numbers of each stream, shape (B, ...): a stream counts by how many it has.
    """
    parts = streams(values)
    total = sum(part.numel() for part in parts)
    means = (part.mean(tuple(range(1, part.ndim))) * (part.numel() / total) for part in parts)
    return torch.stack(list(means)).sum(0)


def blend(keep_B: Tensor, out: States, states: States) -> States:
    """``keep * out + (1 - keep) * states``, sample by sample and stream by stream.

    Args:
        keep_B: shape (B,), of any floating type; 1 takes ``out``.
        out: states after a block.
        states: states before it.
    """

    def mix(out_BTD: Tensor, states_BTD: Tensor) -> Tensor:
        # Of the states' type, not of the inputs', which may be integers.
        keep = keep_B.to(states_BTD.dtype).view(-1, *[1] * (states_BTD.ndim - 1))
        return keep * out_BTD + (1 - keep) * states_BTD

    return map_streams(mix, out, states)
