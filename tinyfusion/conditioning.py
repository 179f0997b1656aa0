"""What a network is told besides noisy data and time: class labels, or text embeddings.

Guidance, label dropping, sharding of batches and per-sample masks treat it as opaque rows: it can
be dropped, indexed, concatenated and moved, whatever it holds.

Shape suffixes: B batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from tinyfusion.errors import InputError


class Conditioning(ABC):
    """One row for each sample of a batch; immutable."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples B."""

    @abstractmethod
    def arguments(self) -> tuple[Any, ...]:
        """What a network's forward takes behind the process's inputs, by position."""

    @abstractmethod
    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the samples: a slice, indices or a boolean mask over the batch."""

    @abstractmethod
    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""

    @classmethod
    @abstractmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The samples of several batches, one behind the other."""

    @abstractmethod
    def null(self, net: Any) -> Self:
        """As many samples of which the network is told nothing (classifier-free guidance).

        Args:
            net: the backbone.

        Raises:
            NotImplementedError: the backbone knows no "nothing".
        """

    @abstractmethod
    def drop(self, drop_B: Tensor, net: Any) -> Self:
        """The same with the samples of a mask replaced by those of `null`.

        Args:
            drop_B: boolean, shape (B,).
            net: the backbone.
        """

    def check(self, net: Any) -> None:  # noqa: B027 - most need none
        """Refuse what the network can't be told; an index out of range aborts a GPU process.

        Args:
            net: the backbone.

        Raises:
            InputError: such as a label that the network does not have.
        """

    def pin_memory(self) -> Self:
        """The same in page-locked memory; data loaders ask for it."""
        return self


class ClassLabels(Conditioning):
    """Labels of a class-conditional network, whose forward is ``net(*inputs, y)``.

    Args:
        labels: integers, shape (B,).
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ClassLabels({self.labels.tolist()})"

    def arguments(self) -> tuple[Tensor]:
        """The labels."""
        return (self.labels,)

    def __getitem__(self, rows: slice | Tensor) -> ClassLabels:
        return ClassLabels(self.labels[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClassLabels:
        """See `Conditioning`."""
        return ClassLabels(self.labels.to(device, non_blocking=non_blocking))

    @classmethod
    def cat(cls, parts: Sequence[ClassLabels]) -> ClassLabels:
        """See `Conditioning`."""
        return cls(torch.cat([part.labels for part in parts]))

    def null(self, net: Any) -> ClassLabels:
        """The network's null label for every sample."""
        return ClassLabels(torch.full_like(self.labels, net.null_label))

    def drop(self, drop_B: Tensor, net: Any) -> ClassLabels:
        """See `Conditioning`."""
        return ClassLabels(torch.where(drop_B, net.null_label, self.labels))

    def check(self, net: Any) -> None:
        """Refuse labels that the network does not have.

        Raises:
            InputError: a negative label, or one above the classes and the null class, if the
                network has one.
        """
        classes = getattr(net, "num_classes", None)
        if classes is None or not len(self.labels):
            return
        try:
            null: int | None = net.null_label
        except NotImplementedError:
            null = None
        known = (self.labels >= 0) & (self.labels < classes)
        if null is not None:
            known |= self.labels == null
        wrong = self.labels[~known]
        if len(wrong):
            also = "" if null is None else f" (and {null}, the null class)"
            raise InputError(
                f"label {int(wrong[0])} does not exist; the model has classes "
                f"0..{classes - 1}{also}"
            )

    def pin_memory(self) -> ClassLabels:
        """See `Conditioning`."""
        return ClassLabels(self.labels.pin_memory())


def as_conditioning(value: Tensor | Conditioning) -> Conditioning:
    """Labels as `ClassLabels`; whatever is a `Conditioning` as it is."""
    return ClassLabels(value) if isinstance(value, Tensor) else value
