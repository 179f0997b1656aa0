"""What a way of choosing blocks gets and gives.

A pruner is any object with one method, ``choose(context) -> Choice``, and a configuration file
that names its class in ``_target_``. A user's own needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.conditioning import Conditioning
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.processes.contract import Process
from tinyfusion.scheme import Scheme
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.widths import WidthDecision


class Choice(NamedTuple):
    """What a pruner decided.

    Attributes:
        kept: blocks that stay, ascending.
        scheme: the groups, if the choice was made within groups.
        probabilities: per group, the learned distribution over its keep-patterns.
        scores: further evidence by name, as plain data.
        widths: channels that stay, of a pruner that cuts widths instead of blocks; ``kept`` are
            then all blocks. What the run knows (evidence, seed, hash) is filled in later.
    """

    kept: tuple[int, ...]
    scheme: Scheme | None = None
    probabilities: list[list[float]] | None = None
    scores: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never written to
    widths: WidthDecision | None = None


@dataclass(frozen=True)
class PruningContext:
    """What a pruner may use.

    Attributes:
        net: the source model; the pruner's own copy, which it may alter.
        process: the process.
        source: images.
        scheme: the N:M scheme laid over the model, or ``None`` if the pruner uses none or none
            was given.
        keep: number of blocks that stay; 0 for a pruner that needs none (``uses_keep``).
        seed: the run's seed.
        folder: where the pruner may write.
        fit: runs a training stage with the job's trainer, resuming it if it was interrupted:
            ``fit(module, settings_key)``.
        shared: keyword arguments of `DenoiserTraining` for a settings key.
        source_sha256: hash of the source model's weights; ``None`` if they came from no file.
    """

    net: Backbone
    process: Process
    source: ImageSource
    scheme: Scheme | None
    keep: int
    seed: int
    folder: Path
    fit: Callable[[DenoiserTraining, str], None]
    shared: Callable[[str], dict[str, Any]]
    source_sha256: str | None = None

    def checked_keep(self) -> int:
        """``keep``, held against the model's depth.

        Raises:
            InputError: all blocks or none would stay.
        """
        if not 0 < self.keep < self.net.depth:
            raise InputError(f"keep={self.keep} must be between 1 and {self.net.depth - 1}")
        return self.keep

    def calibration(self, num_samples: int) -> HeldOutLoss:
        """A fixed noised batch of training images, the same for every candidate.

        Args:
            num_samples: noised samples, at least 1; images are taken in a seeded order and come
                again with other noise where there are fewer images than samples.
        """
        return calibration_batch(self.process, self.source, num_samples, self.seed)

    def calibration_images(self, num_samples: int) -> tuple[Tensor, Conditioning]:
        """The images (N, C, H, W) of `calibration`, without noise, and their conditioning.

        Raises:
            InputError: no samples.
        """
        return calibration_images(self.source, num_samples, self.seed)


def calibration_batch(
    process: Process, source: ImageSource, num_samples: int, seed: int
) -> HeldOutLoss:
    """A fixed noised batch of training images; see `PruningContext.calibration`."""
    images, conditioning = calibration_images(source, num_samples, seed)
    return HeldOutLoss(process, images, conditioning, repeats=1, seed=seed)


def calibration_images(
    source: ImageSource, num_samples: int, seed: int
) -> tuple[Tensor, Conditioning]:
    """Images in a seeded order; see `PruningContext.calibration_images`."""
    import torch

    from tinyfusion.seeding import permutation

    if num_samples < 1:
        raise InputError(f"pruner.num_samples={num_samples} must be at least 1")
    order = permutation(seed, 0, len(source))
    repeats = -(-num_samples // len(order))
    return source.plain(torch.cat([order] * repeats)[:num_samples])


class Pruner(Protocol):
    """A way of choosing blocks; what ``conf/pruner/*.yaml`` builds.

    A class that decides within the groups of a scheme says so by ``uses_scheme = True``; for
    others, which may leave the attribute out, the scheme is only another way to say ``keep``.
    ``uses_keep = False`` (default: true) says that the number of blocks is the pruner's own.
    ``name`` (default: the class's, in lower case) is what decisions call the method.
    ``cuts_width = True`` (default: false) says that channels go instead of blocks; such a pruner
    has a second method, ``plan(net) -> WidthDecision``, that says the widths without choosing.
    """

    uses_scheme: bool

    def choose(self, context: PruningContext) -> Choice:
        """Choose ``context.keep`` of the model's blocks."""
