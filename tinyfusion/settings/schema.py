"""Typed settings that belong to commands. Nothing in this file imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TeacherSettings:
    """The network that is distilled from, or compared with.

    Attributes:
        path: ``source`` for the unpruned model, a checkpoint, or ``None`` for none.
    """

    path: str | None = None


@dataclass
class Iterative:
    """Pruning in several rounds, each of which starts from the recovered model of the one before.

    Attributes:
        depths: blocks that each round leaves, the last one's included.
        weights: what the last round cuts: ``previous``, the model of the round before, or
            ``source``, the first model.
        teacher: what it distils from, likewise.
        previous: a checkpoint to take for the model of the round before the last, which is then
            not made.
    """

    depths: list[int] = field(default_factory=list)
    weights: str = "previous"
    teacher: str = "previous"
    previous: str | None = None
