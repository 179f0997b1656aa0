"""Typed settings that belong to commands. Nothing in this file imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TeacherSettings:
    """The network that is distilled from, or compared with.

    Attributes:
        path: ``source`` for the unpruned model, a checkpoint, or ``None`` for none.
        weights: key of the weights in a file that holds several; ``None`` for the averaged ones.
    """

    path: str | None = None
    weights: str | None = None


@dataclass
class BudgetSettings:
    """How much of the model stays, where that is not a number of units.

    The first three are shares of the whole model below 1, or amounts such as ``340M``, ``60G`` or
    ``20ms``; at most one is given. See `tinyfusion.pipeline.budgets.Wanted`.

    Attributes:
        parameters: parameters, embedding and head included.
        macs: multiply-accumulates of one forward of one sample.
        latency: seconds of one forward of a batch, measured on the device of the run.
        batch_size: samples per forward whose latency is measured; ``None`` for 64.
        table: file of latencies that were measured before on this device; ``None`` measures.
        protected: units that must stay, by name, or blocks by number.
        minimum: units of each stack that must stay at least, or a list of ``[at least, size]``
            groups.
    """

    parameters: Any = None
    macs: Any = None
    latency: Any = None
    batch_size: int | None = None
    table: str | None = None
    protected: list[Any] = field(default_factory=list)
    minimum: Any = 0


@dataclass
class Iterative:
    """The same keys as `tinyfusion.pipeline.rounds.Rounds`, which says what they mean."""

    depths: list[int] = field(default_factory=list)
    weights: str = "previous"
    teacher: str = "previous"
    previous: str | None = None
