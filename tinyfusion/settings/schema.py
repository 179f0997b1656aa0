"""Typed settings that belong to commands. Nothing in this file imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field


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
class Iterative:
    """The same keys as `tinyfusion.pipeline.rounds.Rounds`, which says what they mean."""

    depths: list[int] = field(default_factory=list)
    weights: str = "previous"
    teacher: str = "previous"
    previous: str | None = None
