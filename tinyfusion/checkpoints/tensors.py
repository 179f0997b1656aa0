"""Tensors of one weights file, written, and read without executing anything in it.

This module holds the only ``torch.load`` of the project.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tinyfusion.checkpoints.lazy_state import LazyState
from tinyfusion.checkpoints.pickles import scan, stand_ins
from tinyfusion.checkpoints.unreadable import unreadable
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of, write_atomic

# The format allows no longer header; what starts with other bytes is no safetensors file.
_LONGEST_HEADER = 100_000_000


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as the safetensors format says: header length, then ``{``.

    Where the beginning is missing or damaged, its name decides how its error is worded.
    """
    with open(path, "rb") as handle:
        start = handle.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return True
    is_torch = start.startswith((b"PK\x03\x04", b"\x80\x02"))
    return path.suffix == ".safetensors" and not is_torch


def read_safetensors(path: Path) -> LazyState:
    """Tensors of a safetensors file, to be read one at a time.

    Raises:
        InputError: damaged or truncated.
    """
    try:
        return LazyState.of_safetensors(str(path))
    except (SafetensorError, OSError) as error:
        raise unreadable(path, "safetensors", error) from None


def read_torch(path: Path) -> Any:
    """Content of a file that ``torch.save`` wrote: tensors, plain values, a Namespace.

    Tensors are mapped from the file, unless it has the format from before torch 1.6.

    Raises:
        InputError: damaged, truncated, or asking for anything else.
    """
    # Mapping reads only the tensors that are used: a training checkpoint holds four copies.
    can_map = zipfile.is_zipfile(path)
    # By this name alone newer versions of torch would take the file for the other format.
    misnamed = path.suffix == ".safetensors"
    found = scan(path)
    allowed: list[Any] = [argparse.Namespace, *stand_ins(found.names if found else ())]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on pickle versions; errors say enough
            with open(path, "rb") if misnamed else contextlib.nullcontext(path) as source:
                return torch.load(
                    source,
                    map_location="cpu",
                    weights_only=True,
                    mmap=can_map and not misnamed,
                )
    except MemoryError:
        raise
    # A damaged pickle can fail in any way: unknown opcodes, bad indices, broken text.
    except Exception as error:
        # torch's own text on pickles advises to load them without protection: not repeated.
        raise unreadable(path, "PyTorch", error) from None


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a weights file, completely or not at all, in the format of its suffix.

    Args:
        path: ``.safetensors``, else a file for ``torch.load``.
        state: contiguous tensors on the CPU, no two of which share memory.

    Raises:
        OSError: it could not be written.
    """

    def write(file: Path) -> None:
        if path.suffix == ".safetensors":
            save_file(dict(state), file, metadata={"format": "pt"})
            return
        with open(file, "wb") as handle:  # given the name, torch would write that into the file
            torch.save(dict(state), handle)

    return write_atomic(path, write)


def is_state(value: Any) -> bool:
    """Whether a value is a state dict: at least one tensor, nothing but tensors, by name."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


_CHUNK = 1 << 18
"""Elements whose values are looked at together."""


def cleaned(path: Path, state: LazyState) -> LazyState:
    """Names without wrapper prefixes; refuses values that no model can hold.

    Every tensor is read once, one after the other.

    Args:
        path: where they were read, for messages.
        state: tensors of the file.

    Raises:
        InputError: a name that occurs twice, a type that is not floating, a value that is not
            finite.
    """
    public: dict[str, str] = {}
    for name, meta in state.meta.items():
        bare = name.replace("_orig_mod.", "")
        while bare.startswith("module."):
            bare = bare.removeprefix("module.")
        if bare in public:
            raise InputError(f"{path}: holds tensor {bare!r} twice, the second as {name!r}")
        if not meta.is_floating_point():
            raise InputError(f"{path}: tensor {name!r} is {meta.dtype}; valid: floating types")
        bad = not_finite(state[name])
        if bad:
            raise InputError(
                f"{path}: tensor {name!r} holds {bad} values that are not finite (NaN or infinity)"
            )
        public[bare] = name
    return state.renamed(public)


def not_finite(tensor: Tensor) -> int:
    """Number of values that are NaN or infinite; takes little memory of its own."""
    parts = tensor.detach().reshape(-1).split(_CHUNK)
    return sum(int((~torch.isfinite(part)).sum()) for part in parts)


def dtypes_of(state: LazyState) -> tuple[str, ...]:
    """Types of some tensors, such as ``("float16", "float32")``, the most frequent first."""
    elements: Counter[str] = Counter()
    for tensor in state.meta.values():
        elements[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return tuple(name for name, _ in elements.most_common())


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, that of the list of theirs.

    The list is what ``sha256sum`` prints for the files in order of their names, so that
    ``sha256sum FILES | sha256sum`` in their folder gives the same.
    """
    if len(files) == 1:
        return sha256_of(files[0])
    ordered = sorted(files, key=lambda file: file.name)
    lines = (f"{sha256_of(file)}  {file.name}\n" for file in ordered)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
