"""State dicts whose tensors are read one at a time, so that a model is never in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from safetensors import safe_open
from torch import Tensor

_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types by the names that safetensors files have for them."""


class LazyState(Mapping[str, Tensor]):
    """Tensors by name, each of which is read when it is asked for, and again when asked again.

    Shapes and types are known without reading: ask ``meta`` for them.

    Args:
        readers: what gives each tensor, by name.
        meta: tensors of the same shapes and types without content, on the meta device.
    """

    def __init__(
        self, readers: Mapping[str, Callable[[], Tensor]], meta: Mapping[str, Tensor]
    ) -> None:
        assert readers.keys() == meta.keys()
        self._readers, self.meta = dict(readers), dict(meta)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LazyState:
        """Tensors that are there already."""
        return cls(
            {name: partial(_same, tensor) for name, tensor in tensors.items()},
            {name: _on_meta(tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
        )

    @classmethod
    def of_safetensors(cls, path: str) -> LazyState:
        """Tensors of a safetensors file, which stays open as long as they can be asked for.

        Raises:
            SafetensorError: damaged or truncated.
            OSError: it can't be read.
        """
        # Read, not mapped: pages of a mapped file stay in memory as long as it is mapped.
        handle = safe_open(path, framework="pt", backend="pread")
        readers, meta = {}, {}
        for name in handle.keys():
            header = handle.get_slice(name)
            dtype = _FLOATS.get(header.get_dtype()) or handle.get_tensor(name).dtype
            readers[name] = partial(handle.get_tensor, name)
            meta[name] = _on_meta(header.get_shape(), dtype)
        return cls(readers, meta)

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __or__(self, other: LazyState) -> LazyState:
        return LazyState(self._readers | other._readers, self.meta | other.meta)

    def take(self, name: str) -> Tensor:
        """Read a tensor for the last time; memory that only this state held is freed with it."""
        del self.meta[name]
        return self._readers.pop(name)()

    def renamed(self, names: Mapping[str, str]) -> LazyState:
        """The same tensors under other names.

        Args:
            names: old names by new ones.
        """
        return LazyState(
            {new: self._readers[old] for new, old in names.items()},
            {new: self.meta[old] for new, old in names.items()},
        )


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _on_meta(shape: torch.Size | list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
