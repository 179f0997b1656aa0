"""How much memory training needs besides weights: what autograd keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

GIB = 2**30


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


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's storage; addresses won't do, as meta tensors have none."""
    return tensor.untyped_storage()._cdata


def in_gib(size: float) -> str:
    """Bytes as text in GiB, or in MiB below one."""
    if size < GIB:
        return f"{size / 2**20:.2f} MiB"
    return f"{size / GIB:.2f} GiB"


def peak_gpu_memory(device: torch.device) -> int | None:
    """Most bytes allocated on a CUDA device since the last reset; ``None`` on other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
