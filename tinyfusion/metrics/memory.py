"""How much memory networks need besides weights, in training and in sampling."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Activations:
    """Counts the bytes that autograd keeps from the forwards run within it.

    Every storage counts once, however many tensors view it. Parameters and whatever else is
    given as ``owned`` do not count; copies of weights in half precision, which autocast makes
    and autograd keeps, do. Values and gradients are what they would be without the count. Works
    on every device, the meta device and fake tensors included.

    Args:
        owned: tensors that are there anyway, such as parameters and inputs.
    """

    def __init__(self, owned: Iterable[Tensor] = ()) -> None:
        # They outlive the count, so that no other storage can take their place.
        self._owned = {_storage(tensor) for tensor in owned}
        self._kept: list[weakref.ref[Tensor]] = []
        self._hooks = saved_tensors_hooks(self._keep, lambda kept: kept)

    @property
    def bytes(self) -> int:
        """What is kept now: to be read while the loss, which holds it all, is there."""
        alive = [tensor for kept in self._kept if (tensor := kept()) is not None]
        return sum({_storage(t): t.untyped_storage().nbytes() for t in alive}.values())

    def __enter__(self) -> Activations:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        # Not the tensor itself: an output that its own graph node holds would never be freed.
        kept = tensor.detach()
        # A parameter that a sharding strategy has gathered for the moment has its own storage.
        if not isinstance(base, nn.Parameter) and _storage(tensor) not in self._owned:
            self._kept.append(weakref.ref(kept))
        return kept


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations within it make, while they are there.

    For devices without a counter of their own, such as the CPU. Every storage counts once. What
    a kernel takes for itself while it runs is not seen, nor is what the allocator holds back.

    Args:
        owned: tensors that are there anyway, such as parameters.

    Attributes:
        now: bytes of the tensors that are there.
        peak: most bytes that were there at once.
    """

    def __init__(self, owned: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        # They outlive the count, so that no other storage can take their place.
        self._known = {_storage(tensor) for tensor in owned}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value)
        return out

    def _count(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key in self._known:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's storage; addresses won't do, as meta tensors have none."""
    return tensor.untyped_storage()._cdata


def bytes_of(net: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))


def peak_gpu_memory(device: torch.device) -> int | None:
    """Most bytes allocated on a CUDA device since the last reset; ``None`` on other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def available_memory(device: torch.device) -> int | None:
    """Free bytes on a device; ``None`` where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(free[0]) * 1024 if free else None
