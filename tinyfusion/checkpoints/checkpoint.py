"""What reading a checkpoint gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyfusion.checkpoints.lazy_state import LazyState
from tinyfusion.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file or folder holds.

    Attributes:
        state: weights by public name, in the file's types, all finite. They are read when they
            are asked for, and may be mapped from the file: copy before changing them.
        path: the file that holds the weights; of several, their folder.
        sha256: hex digest of that file; of several files, see
            :func:`~tinyfusion.checkpoints.tensors.digest_of`.
        backbone: family (``"dit"``), or ``None`` if the file does not say.
        arguments: constructor arguments, or ``None`` if the file does not say.
        depth: number of blocks, or ``None`` if the file does not say.
        kept_from: for each block its index in the model this one was pruned from, or ``None``.
        source_borders: the borders between stacks in that model.
        hints: constructor arguments that the rest of the file suggests where ``arguments`` are
            not known.
        provenance: how the model came about, as recorded.
        layout: the kind of file in words, such as "bare state dict".
        files: the files that hold the weights.
        dtypes: types of the stored tensors, the one with most elements first.
        also: what else the file holds, in words by key.
        notes: what does not fit together in the file but does not prevent reading it.
    """

    state: LazyState
    path: Path
    sha256: str
    backbone: str | None = None
    arguments: dict[str, Any] | None = None
    depth: int | None = None
    kept_from: tuple[int, ...] | None = None
    source_borders: tuple[int, ...] = ()
    hints: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    layout: str = ""
    files: tuple[Path, ...] = ()
    dtypes: tuple[str, ...] = ()
    also: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def kept_indices(kept: Any, depth: int | None, origin: Path) -> tuple[int, ...] | None:
    """The ``kept_from`` entry of a record.

    Args:
        kept: the value found; ``None`` for a model that was not pruned.
        depth: number of blocks, if known.
        origin: the record's file, for the message.

    Raises:
        InputError: not one increasing index per block.
    """
    if kept is None:
        return None
    if (
        not isinstance(kept, list)
        or not all(type(index) is int and index >= 0 for index in kept)
        or kept != sorted(set(kept))
        or (depth is not None and len(kept) != depth)
    ):
        raise InputError(
            f"{origin}: kept_from must list one increasing index per block, got {kept!r}"
        )
    return tuple(kept)


def border_indices(borders: Any, origin: Path) -> tuple[int, ...]:
    """The ``source_borders`` entry of a record.

    Args:
        borders: the value found; ``None`` for a model of one stack.
        origin: the record's file, for the message.

    Raises:
        InputError: not a list of block indices.
    """
    if borders is None:
        return ()
    if (
        not isinstance(borders, list)
        or not all(type(index) is int and index >= 0 for index in borders)
        or borders != sorted(borders)
    ):
        raise InputError(f"{origin}: source_borders must list block indices, got {borders!r}")
    return tuple(borders)
