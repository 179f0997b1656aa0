"""What a pruner or a recovery is going to train, stated before it trains.

One runner executes, resumes and logs phases (`tinyfusion.pipeline.runner`); a dry run reads the
same list and counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyfusion.decision import Decision
from tinyfusion.training.settings import TrainingSettings

if TYPE_CHECKING:  # Lightning takes seconds to import; phases are stated and checked without it
    from tinyfusion.training.module import DenoiserTraining

RESUME_FILE = "resume.ckpt"
"""Of an interrupted phase, in its folder."""


@dataclass(frozen=True)
class Phase:
    """One training, from its first to its last optimiser step.

    Attributes:
        name: what settings, random draws and logs call it, such as ``mask_learning``.
        module: makes what is trained; called when the phase begins, after all earlier ones. In a
            dry run the networks in it have shapes without values.
        settings: length, batch and rates; ``None`` takes the section ``training.<name>``.
        leaves: a decision of the size that the network has after what follows this phase (how
            many units stay is known beforehand, not which); ``None`` if it stays as it is. A dry
            run counts the pruned network by it.
    """

    name: str
    module: Callable[[], DenoiserTraining]
    settings: TrainingSettings | None = None
    leaves: Decision | None = None
