"""Random numbers as functions of (seed, purpose, step, position), never of history.

Every draw of a training step is made for the whole *global* batch and then cut to the rows a
device or micro-batch holds, so a run that is resumed, spread over devices or accumulated over
micro-batches sees the same numbers. Draws are made on the CPU in float32: they do not depend on
the device either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a hash of ``key``."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Order in which epoch ``epoch`` visits ``size`` items, shape (size,)."""
    return torch.randperm(size, generator=generator(seed, "order", epoch))


@dataclass(frozen=True)
class Rows:
    """Which rows of which global batch a tensor holds.

    Attributes:
        step: optimiser step that the batch belongs to.
        first: position of the first row in the global batch.
        count: number of rows.
        global_size: rows of the whole global batch.
    """

    step: int
    first: int
    count: int
    global_size: int


@dataclass(frozen=True)
class StepNoise:
    """Draws for the rows of one training step.

    Attributes:
        seed: the run's seed.
        stage: name of the stage, so that two stages of one run do not share draws.
    """

    seed: int
    stage: str

    def uniform(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), shape (rows.count, *shape)."""
        return self._cut(torch.rand, purpose, rows, shape)

    def normal(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """Standard normal draws, shape (rows.count, *shape)."""
        return self._cut(torch.randn, purpose, rows, shape)

    def gumbel(self, purpose: str, rows: Rows, *shape: int) -> Tensor:
        """Gumbel(0, 1) draws, shape (rows.count, *shape)."""
        # -log of an exponential draw; the clamp keeps u = 0 finite.
        uniform = self.uniform(purpose, rows, *shape).clamp(min=torch.finfo(torch.float32).tiny)
        return -torch.log(-torch.log(uniform))

    def _cut(self, draw, purpose: str, rows: Rows, shape: Sequence[int]) -> Tensor:
        whole = draw(
            rows.global_size, *shape, generator=generator(self.seed, self.stage, purpose, rows.step)
        )
        return whole[rows.first : rows.first + rows.count]


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
