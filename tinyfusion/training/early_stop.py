"""When mask learning may end before its last step."""

from __future__ import annotations

from dataclasses import dataclass

from tinyfusion.errors import InputError


@dataclass(frozen=True)
class EarlyStop:
    """When mask learning may end before its last step.

    Attributes:
        patience: share of the run's steps for which the averaged decision must not have changed.
        margin: what its margin (`GateState.margin`) must be at least.

    Raises:
        InputError: a patience that is no share, or a margin that is no probability.
    """

    patience: float = 0.2
    margin: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.patience < 1:
            raise InputError(
                f"pruner.stop.patience={self.patience} must be a share of the steps, more than 0 "
                "and less than 1"
            )
        if not 0 <= self.margin <= 1:
            raise InputError(f"pruner.stop.margin={self.margin} must be in [0, 1]")

    def steps(self, total_steps: int) -> int:
        """The patience in steps."""
        return max(1, round(self.patience * total_steps))

    def every(self, total_steps: int) -> int:
        """Steps between two looks at the decision, for which the device is waited for."""
        return max(1, self.steps(total_steps) // 10)
