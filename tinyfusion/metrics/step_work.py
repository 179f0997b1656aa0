"""Work of a training step, in forwards of the whole network on the same samples.

A matrix product costs as much again in a backward pass for the gradient of its input, and once
more for that of its weights. With a low-rank update the gradients of the weights are next to
nothing, as is all that is no matrix product.
"""

from __future__ import annotations


def mask_learning_forwards(
    full: bool = False, kept: float | None = None, sampled: float = 1.0
) -> float:
    """Forwards that a step of mask learning is worth.

    Args:
        full: all weights are trained, not a low-rank update.
        kept: share of units that a mask keeps, under sparse gating: of dropped ones there is no
            backward pass. ``None`` for dense gating, which runs all units both ways.
        sampled: share of the dropped units that are evaluated for the gradients of their gates.
    """
    passes = 3.0 if full else 2.0
    return passes if kept is None else passes * kept + (1 - kept) * sampled


def recovery_forwards(student: float, teacher: float = 1.0) -> float:
    """Forwards that a step of recovery is worth: the student both ways, the teacher forward.

    Args:
        student: the student's share of the network's work.
        teacher: the teacher's; 0 for none.
    """
    return 3 * student + teacher
