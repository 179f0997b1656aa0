"""What a way of choosing units (by default blocks) is given and returns.

A pruner is any object with one method, ``choose(context) -> Choice``, and a configuration file
that names its class in ``_target_``. A user's own needs nothing else. One that trains lists
what in a second method, ``phases(context)``: phases are executed, resumed and logged before it
chooses, and counted in a dry run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.unit_view import seen_as_blocks
from tinyfusion.budget import Budget
from tinyfusion.changes import Replacement, Resizing
from tinyfusion.conditioning import Conditioning
from tinyfusion.data.source import ImageSource
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.processes.contract import Process
from tinyfusion.scheme import Scheme
from tinyfusion.training.phases import Phase
from tinyfusion.units import Unit, kept_and_removed

if TYPE_CHECKING:  # imports Lightning, which takes seconds
    from tinyfusion.training.module import DenoiserTraining


class Choice(NamedTuple):
    """What a pruner decided; what the run knows (seed, hash) is added by `decision`.

    Attributes:
        kept: blocks that stay as they are, ascending; ``None`` if all do.
        scheme: the groups, if the choice was made within groups.
        probabilities: per group, the learned distribution over its keep-patterns.
        scores: further evidence by name, as plain data.
        removed: branches that go from blocks that stay, by name.
        replaced: intervals of blocks for each of which one block stands.
        resized: channels that stay, of a pruner that cuts widths.
        budget: the budget by name, where that is not a number of units.
    """

    kept: tuple[int, ...] | None
    scheme: Scheme | None = None
    probabilities: list[list[float]] | None = None
    scores: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never written to
    removed: tuple[str, ...] = ()
    replaced: tuple[Replacement, ...] = ()
    resized: Resizing | None = None
    budget: dict[str, Any] = {}  # noqa: RUF012 - as above

    def decision(self, depth: int, **known: Any) -> Decision:
        """The choice as a record.

        Args:
            depth: number of blocks of the source model.
            known: further fields of `Decision`.

        Raises:
            InputError: the choice does not fit a model of this depth (see `Decision`).
        """
        own = {**self._asdict(), "scheme": self.scheme.sizes if self.scheme else None}
        own["budget"] = self.budget or known.get("budget", {})
        return Decision(**{**known, **own, "source_depth": depth})


@dataclass(frozen=True)
class PruningContext:
    """What a pruner may use.

    Attributes:
        net: the source model; the pruner's own copy, which it may alter.
        process: the process.
        source: images.
        budget: how many of which units stay; ``None`` for a pruner whose numbers are its own
            (``uses_keep``).
        seed: the run's seed.
        folder: where the pruner may write.
        shared: ``shared(name, settings=None)``: keyword arguments of `DenoiserTraining` for the
            phase of this name, with its own settings or those that are configured under its name.
        source_sha256: hash of the source model's weights; ``None`` if they came from no file.
        trained: modules of the pruner's phases by name, trained; empty before.
    """

    net: Backbone
    process: Process
    source: ImageSource
    budget: Budget | None
    seed: int
    folder: Path
    shared: Callable[..., dict[str, Any]]
    source_sha256: str | None = None
    trained: Mapping[str, DenoiserTraining] = field(default_factory=dict)

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units to choose among, in the order in which they run."""
        return self._budget.units

    @property
    def kind(self) -> str:
        """Kind of these units, see `Backbone.units`."""
        return self.units[0].kind

    @property
    def scheme(self) -> Scheme | None:
        """The N:M groups to decide within, if there are any."""
        return self._budget.scheme

    @property
    def keep(self) -> int:
        """Number of units that stay, from 1 to one less than there are.

        Raises:
            InputError: the budget is not a number of units; `Budget.fill` meets any.
        """
        budget = self._budget
        if not budget.counts:
            raise InputError(
                f"{budget}: this pruner chooses a number of units, not by what they cost; give "
                "keep=, or choose another pruner="
            )
        return budget.keep

    @property
    def as_blocks(self) -> Backbone:
        """The model as a chain of these units: what knows only blocks can number them."""
        return seen_as_blocks(self.net, self.units)

    def choice(self, kept: Iterable[int], **further: Any) -> Choice:
        """The choice that keeps some units.

        Args:
            kept: numbers of units.
            further: other fields of `Choice`.
        """
        blocks, removed = kept_and_removed(self.units, kept, self.net.depth)
        return Choice(blocks, removed=removed, **further)

    @property
    def _budget(self) -> Budget:
        assert self.budget is not None, "asked for by a pruner that has numbers of its own"
        return self.budget

    def calibration(self, num_samples: int) -> HeldOutLoss:
        """A fixed noised batch of training images, the same for every candidate.

        Args:
            num_samples: noised samples, at least 1; images are taken in a seeded order and
                repeated with other noise where there are fewer of them.
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
    """A way of choosing units; what ``conf/pruner/*.yaml`` builds.

    A class that decides within the groups of a scheme says so by ``uses_scheme = True``, and by
    ``needs_scheme = True`` if it can't do without; for others, which may leave both out, the scheme
    is only another way to say ``keep``. ``kinds`` (default: blocks alone) lists the kinds of units
    that it can choose among.
    ``uses_keep = False`` (default: true) says that the number of units is the pruner's own.
    ``name`` (default: the class's, in lower case) is what decisions call the method.
    ``cuts_width = True`` (default: false) says that channels go instead of blocks.
    ``unit_scores`` (default: not known) names the evidence in `Choice.scores` that holds a number
    for each unit, so that what goes by it is validated before anything is trained.
    ``plan(net) -> Choice`` says the size of a choice whose numbers are the pruner's own, without
    data or training. ``phases(context) -> Sequence[Phase]`` (default: none) lists what is trained
    before `choose`, which finds the trained modules in ``context.trained``.
    """

    uses_scheme: bool

    def choose(self, context: PruningContext) -> Choice:
        """Choose within ``context.budget``, such as ``context.keep`` of the model's units."""


def method_of(pruner: Pruner) -> str:
    """What decisions call a pruner: its attribute ``name``, or its class's in lower case."""
    return str(getattr(pruner, "name", type(pruner).__name__.lower()))


def phases_of(pruner: Pruner, context: PruningContext) -> Sequence[Phase]:
    """What a pruner trains before it chooses; nothing for most.

    Args:
        pruner: the pruner.
        context: what it may use; in a dry run its network has shapes without values.
    """
    phases = getattr(pruner, "phases", None)
    return [] if phases is None else phases(context)
