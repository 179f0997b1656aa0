"""What a network is told besides noisy data and time: class labels, or text embeddings.

Guidance, label dropping, sharding of batches and per-sample masks treat it as opaque rows: it can
be dropped, indexed, concatenated and moved, whatever it holds.

Shape suffixes: B batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from tinyfusion.errors import InputError


class Conditioning(ABC):
    """One row for each sample of a batch; immutable.

    A subclass is constructed from the tensors that `arguments` gives, in their order, and defines
    `null`; one whose batches differ in more than their number of rows, such as texts of different
    lengths, defines `cat` as well.

    Args:
        tensors: what a network's forward takes behind the process's inputs, each of shape
            (B, ...).
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors

    @abstractmethod
    def null(self, net: Any) -> Self:
        """As many samples of which the network is told nothing (classifier-free guidance).

        Its tensors have the shapes of this one's.

        Args:
            net: the backbone.

        Raises:
            NotImplementedError: the class of the backbone has nothing that stands for that.
            InputError: this backbone was made without it.
        """

    def arguments(self) -> tuple[Tensor, ...]:
        """What a network's forward takes behind the process's inputs, by position."""
        return self._tensors

    def __len__(self) -> int:
        return len(self.arguments()[0])

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the samples: a slice, indices or a boolean mask over the batch."""
        return self._map(lambda tensor: tensor[rows])

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The samples of several batches, one behind the other."""
        return cls(*map(torch.cat, zip(*(part.arguments() for part in parts), strict=True)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in page-locked memory; data loaders ask for it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def drop(self, drop_B: Tensor, net: Any) -> Self:
        """The same with the samples of a mask replaced by those of `null`.

        Args:
            drop_B: boolean, shape (B,).
            net: the backbone.

        Raises:
            NotImplementedError: see `null`.
            InputError: see `null`.
        """
        pairs = zip(self.null(net).arguments(), self.arguments(), strict=True)
        return type(self)(*(torch.where(_as_wide(drop_B, own), null, own) for null, own in pairs))

    def check(self, net: Any) -> None:  # noqa: B027 - most need none
        """Refuse what the network can't be told; an index out of range aborts a GPU process.

        Args:
            net: the backbone.

        Raises:
            InputError: such as a label that the network does not have.
        """

    def record(self) -> Mapping[str, Tensor]:
        """What is stored beside samples, by name, each of shape (B, ...); nothing by default."""
        return {}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*map(change, self.arguments()))


def _as_wide(mask_B: Tensor, tensor: Tensor) -> Tensor:
    """A mask over the batch with as many axes as ``tensor``."""
    return mask_B.view(-1, *[1] * (tensor.ndim - 1))


class ClassLabels(Conditioning):
    """Labels of a class-conditional network, whose forward is ``net(*inputs, y)``.

    Args:
        labels: integers, shape (B,).
    """

    def __init__(self, labels: Tensor) -> None:
        super().__init__(labels)
        self.labels = labels

    def __repr__(self) -> str:
        return f"ClassLabels({self.labels.tolist()})"

    def null(self, net: Any) -> ClassLabels:
        """The network's null label for every sample; see `Conditioning`."""
        return ClassLabels(torch.full_like(self.labels, net.null_label))

    def check(self, net: Any) -> None:
        """Refuse labels that the network does not have.

        Raises:
            InputError: a label that is neither one of the network's classes nor its null class,
                if it has one; or the network is not class-conditional.
        """
        if net.num_classes < 1:
            raise InputError("the model is not class-conditional, so it takes no class labels")
        null = _null_label(net)
        known = (self.labels >= 0) & (self.labels < net.num_classes)
        if null is not None:
            known |= self.labels == null
        wrong = self.labels[~known]
        if len(wrong):
            also = "it has no null class" if null is None else f"and {null}, the null class"
            raise InputError(
                f"label {int(wrong[0])} does not exist; the model has classes "
                f"0..{net.num_classes - 1} ({also})"
            )

    def record(self) -> Mapping[str, Tensor]:
        """The labels."""
        return {"labels": self.labels}


def _null_label(net: Any) -> int | None:
    try:
        return net.null_label
    except (NotImplementedError, InputError):  # of a class, or of a network, that has none
        return None


def as_conditioning(value: Tensor | Conditioning) -> Conditioning:
    """Labels as `ClassLabels`; whatever is a `Conditioning` as it is.

    Args:
        value: a conditioning, or integer labels of shape (B,).

    Raises:
        InputError: ``value`` is neither a `Conditioning` nor a tensor of integer labels.
    """
    if isinstance(value, Conditioning):
        return value
    if not isinstance(value, Tensor):
        raise InputError(
            f"conditioning of type {type(value).__name__}; valid: a tensor of class labels, or a "
            "tinyfusion.Conditioning"
        )
    if value.ndim != 1 or value.is_floating_point():
        raise InputError(
            f"class labels of shape {tuple(value.shape)} and type {value.dtype}; valid: integers "
            "of shape (N,)"
        )
    return ClassLabels(value)
