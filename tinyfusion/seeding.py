"""Random numbers as functions of (seed, purpose, step, position), never of history.

In a training step each sample has draws of its own, by its position in the *global* batch, so a run
that is resumed, spread over devices or accumulated over micro-batches sees the same numbers, and
each device draws only the rows it holds. Draws are made on the CPU in float32: they do not depend
on the device either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*key: int | str) -> int:
    """A hash of ``key`` that fits torch's generators."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a hash of ``key``."""
    return torch.Generator().manual_seed(seed_of(*key))


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Order in which epoch ``epoch`` visits ``size`` items, shape (size,)."""
    return torch.randperm(size, generator=generator(seed, "order", epoch))


@dataclass(frozen=True)
class Rows:
    """Which rows of a global batch a tensor holds.

    Attributes:
        step: optimiser step that the batch belongs to.
        first: position of the first row in the global batch.
        count: number of rows.
    """

    step: int
    first: int
    count: int


@dataclass(frozen=True)
class StepNoise:
    """Draws for the rows of one training step.

    Attributes:
        seed: the run's seed.
        phase: name of the training phase, so that two phases of a run do not share draws.
    """

    seed: int
    phase: str

    def uniform(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), shape (rows.count, *shape)."""
        return self._draw(torch.rand, purpose, rows, shape)

    def normal(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """Standard normal draws, shape (rows.count, *shape)."""
        return self._draw(torch.randn, purpose, rows, shape)

    def gumbel(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """Gumbel(0, 1) draws, shape (rows.count, *shape)."""
        # -log of an exponential draw; the clamp keeps u = 0 finite.
        uniform = self.uniform(purpose, rows, *shape).clamp(min=torch.finfo(torch.float32).tiny)
        return -torch.log(-torch.log(uniform))

    def seed_layers(self, rows: Rows) -> None:
        """Seed the global generators, from which layers such as dropout draw, for some rows.

        What layers draw is for the rows at hand: unlike all other draws, it depends on how the
        global batch is cut.
        """
        torch.manual_seed(seed_of(self.seed, self.phase, "layers", rows.step, rows.first))

    def shared(self, purpose: str, step: int) -> float:
        """One uniform draw in [0, 1) for all samples of an optimiser step."""
        # A hash is as good as a draw, and a dry run, whose tensors have no values, can read it.
        return (seed_of(self.seed, self.phase, purpose, step) >> 10) / 2**53

    def _draw(
        self, draw: Callable[..., Tensor], purpose: str, rows: Rows, shape: Sequence[int]
    ) -> Tensor:
        drawn, of_row = torch.empty(rows.count, *shape), torch.Generator()
        for row in range(rows.count):
            position = rows.first + row
            of_row.manual_seed(seed_of(self.seed, self.phase, purpose, rows.step, position))
            draw(shape, generator=of_row, out=drawn[row])
        return drawn


@dataclass(frozen=True)
class StepDraws:
    """What a process draws from in one training step (`tinyfusion.processes.contract.Draws`).

    Attributes:
        noise: source of the draws of the training phase.
        rows: which rows of which step.
        device: where the draws are wanted.
    """

    noise: StepNoise
    rows: Rows
    device: torch.device

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), shape (rows.count, *shape)."""
        return self.noise.uniform(purpose, self.rows, *shape).to(self.device)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal draws, shape (rows.count, *shape)."""
        return self.noise.normal(purpose, self.rows, *shape).to(self.device)

    def shared(self, purpose: str) -> float:
        """One uniform draw in [0, 1) for the whole global batch."""
        return self.noise.shared(purpose, self.rows.step)


class FixedDraws:
    """Draws for fixed data that is scored in parts, the same whatever the parts' size.

    Args:
        count: number of samples over all parts.
        key: seed of the draws, and what they are for.
    """

    def __init__(self, count: int, *key: int | str) -> None:
        self.count = count
        self._generator = generator(*key)
        self._drawn: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def part(self, rows: slice, shared: float | None = None) -> PartDraws:
        """Draws of some of the samples; parts ask for the same purposes in the same order.

        Args:
            rows: the samples, with both ends.
            shared: what they have in common, in [0, 1); default: the middle of the part, so that
                parts together cover the range evenly.
        """
        middle = (rows.start + rows.stop) / 2 / self.count
        return PartDraws(self, rows, middle if shared is None else shared)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Stratified draws, one in each of ``count`` equal slices of [0, 1), shuffled."""
        return self._once(self._stratified, purpose, shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal draws, shape (count, *shape)."""
        return self._once(torch.randn, purpose, shape)

    def _once(self, draw: Callable[..., Tensor], purpose: str, shape: tuple[int, ...]) -> Tensor:
        key = (purpose, shape)
        if key not in self._drawn:
            self._drawn[key] = draw(self.count, *shape, generator=self._generator)
        return self._drawn[key]

    def _stratified(self, *shape: int, generator: torch.Generator) -> Tensor:
        if len(shape) == 1:
            slices = torch.randperm(self.count, generator=generator)
        else:
            # Slices for each entry of a sample by itself.
            slices = torch.rand(shape, generator=generator).argsort(0)
        return (slices + torch.rand(shape, generator=generator)) / self.count


@dataclass(frozen=True)
class PartDraws:
    """Some rows of `FixedDraws`, see there."""

    draws: FixedDraws
    rows: slice
    middle: float

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), shape (rows, *shape)."""
        return self.draws.uniform(purpose, *shape)[self.rows]

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal draws, shape (rows, *shape)."""
        return self.draws.normal(purpose, *shape)[self.rows]

    def shared(self, purpose: str) -> float:
        """One number in [0, 1) for the whole part."""
        return self.middle


class SampleNoise:
    """Noise for sampling: each sample's draws depend on (seed, index) alone.

    Args:
        seed: sampling seed.
        indices: numbers of the samples in this batch.
        shape: shape of one sample, (C, H, W).
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int]) -> None:
        self._generators = [generator(seed, "sample", int(index)) for index in indices]
        self._shape = tuple(shape)

    def __call__(self) -> Tensor:
        """The next standard normal draw of every sample, shape (B, C, H, W)."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators])
