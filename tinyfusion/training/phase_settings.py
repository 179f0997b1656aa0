"""Length, batch and rates of one training phase. Nothing in this file imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from tinyfusion.errors import InputError


@dataclass(frozen=True)
class TrainingSettings:
    """One training phase.

    Attributes:
        steps: optimiser steps.
        batch_size: images per optimiser step over all devices (the *global* batch).
        learning_rate: peak rate.
        learning_rate_end: rate where the cosine ends, right after the last step; ``None`` keeps
            the rate constant.
        warm_up: steps of linear warm-up.
        clip_norm: largest global gradient norm.
        label_drop: probability with which conditioning is dropped; ``None`` takes the backbone's
            ``class_dropout_prob``.
        ema_decay: decay per step of the averaged weights (unused by mask learning, whose gates
            have their own).
        ema_warm_up: let the decay grow to ``ema_decay`` over the first steps (see `Ema`); the
            official code does not.
        held_out_every: steps between two held-out scores (pre-training).

    Raises:
        InputError: a value out of range.
    """

    steps: int
    batch_size: int
    learning_rate: float = 1e-4
    learning_rate_end: float | None = None
    warm_up: int = 0
    clip_norm: float = 1.0
    label_drop: float | None = None
    ema_decay: float = 0.9999
    ema_warm_up: bool = True
    held_out_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "held_out_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}={getattr(self, name)} must be positive")
        if self.warm_up < 0:
            raise InputError(f"warm_up={self.warm_up} must be at least 0")
        if self.learning_rate_end is not None and self.learning_rate_end < 0:
            raise InputError(f"learning_rate_end={self.learning_rate_end} must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay={self.ema_decay} must be in [0, 1)")
        if self.label_drop is not None and not 0 <= self.label_drop < 1:
            raise InputError(f"label_drop={self.label_drop} must be in [0, 1)")
