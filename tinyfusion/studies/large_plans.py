"""What pruning large networks would take on many GPUs: memory, operations, samples per second.

Memory and operations follow from counts. Speed follows from them by `Assumptions`, which nobody
has measured here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tinyfusion.metrics.step_work import mask_learning_forwards, recovery_forwards
from tinyfusion.studies.large_networks import Counted

HALF, FULL = 2, 4
"""Bytes of a number in bfloat16 and in float32."""


@dataclass(frozen=True)
class Assumptions:
    """What is not counted but assumed of machines and run.

    Attributes:
        peak: operations per second of a GPU's matrix units (H200, bfloat16).
        utilisation: share of them that a step reaches.
        memory: bytes of a GPU.
        usable: share of them that can be planned with.
        within: bytes per second that a GPU receives from others of its machine (NVLink).
        between: the same from other machines (400 Gb/s a GPU).
        per_machine: GPUs of a machine.
        batch: samples of an optimiser step over all GPUs.
    """

    peak: float = 989e12
    utilisation: float = 0.4
    memory: float = 141e9
    usable: float = 0.9
    within: float = 450e9
    between: float = 50e9
    per_machine: int = 8
    batch: int = 256


ASSUMED = Assumptions()


@dataclass(frozen=True)
class Work:
    """One way of training; trained weights are sharded over all GPUs.

    Attributes:
        name: what it is.
        forwards: what a step is worth, in forwards of the whole network.
        kept: share of the network's activations that are kept for the backward pass, and of its
            work that recomputing them takes.
        trained: share of the network's parameters that is trained, in float32; 0 for low-rank
            updates.
        averaged: whether an average of them is kept, too.
        frozen_passes: passes of a step in which weights are read that are not trained, all of the
            network's, in bfloat16; 0 if there are none.
    """

    name: str
    forwards: float
    kept: float
    trained: float = 0.0
    averaged: bool = False
    frozen_passes: int = 0


def works(kept: float = 0.5, sampled: float = 0.25) -> list[Work]:
    """Mask learning, dense, sparse and with sampled gate gradients, and recovery with a teacher.

    Args:
        kept: share of units that stay, taken as that of parameters, work and activations.
        sampled: share of dropped units that the sampled option evaluates; with 1, which is no
            sampling, it is left out.
    """
    found = []
    for full in (False, True):
        name = f"mask learning, {'full' if full else 'LoRA'}"
        # The frozen weights under a low-rank update are read forward and backward.
        trained, passes = (1.0, 0) if full else (0.0, 2)
        ways = [("dense", None, 1.0, 1.0), ("sparse", kept, kept, 1.0)]
        if sampled < 1:
            ways.append((f"sparse, {sampled:.0%} of the gate gradients", kept, kept, sampled))
        for how, share, held, part in ways:
            forwards = mask_learning_forwards(full, share, part)
            found.append(Work(f"{name}, {how}", forwards, held, trained, False, passes))
    recovery = recovery_forwards(kept)
    return [*found, Work("recovery, with teacher", recovery, kept, kept, True, 1)]


class Plan(NamedTuple):
    """A way of training on some GPUs.

    Attributes:
        state: bytes on a GPU of trained weights, gradients, moments, averages, and what is
            gathered of them.
        frozen: bytes on a GPU of frozen weights, or what is gathered of them.
        activations: bytes on a GPU.
        micro_batch: samples that a GPU takes at once; 0 if not even one fits.
        recomputes: whether blocks are recomputed.
        per_second: samples per second of all GPUs; 0 if nothing fits.
        waits: whether the exchange of weights takes longer than the work.
    """

    state: float
    frozen: float
    activations: float
    micro_batch: int
    recomputes: bool
    per_second: float
    waits: bool

    @property
    def total(self) -> float:
        """Bytes on a GPU."""
        return self.state + self.frozen + self.activations


def plan(
    net: Counted, work: Work, gpus: int, shards_frozen: bool, assumed: Assumptions = ASSUMED
) -> Plan:
    """The fastest plan that fits, by micro-batch and whether blocks are recomputed.

    Where none fits: that of one sample with blocks recomputed.

    Args:
        net: the network.
        work: the way of training.
        gpus: how many there are.
        shards_frozen: whether frozen weights, such as a teacher's, are sharded, too.
        assumed: what is assumed.
    """
    trained = work.trained * net.parameters or net.low_rank
    per_parameter = (5 if work.averaged else 4) * FULL
    gathered = HALF * net.gathered
    state = per_parameter * trained / gpus + (gathered if work.trained else 0.0)
    frozen = HALF * net.parameters if work.frozen_passes else 0.0
    if frozen and shards_frozen:
        frozen = frozen / gpus + gathered
    # Received per micro-batch: weights forward and backward, and gradients in float32.
    received = (2 * HALF + FULL) * work.trained * net.parameters
    if shards_frozen:
        received += HALF * work.frozen_passes * net.parameters
    exchange = received / (assumed.within if gpus <= assumed.per_machine else assumed.between)

    def of(samples: int, recomputes: bool) -> Plan:
        each = work.kept * net.activations
        if recomputes:
            each = work.kept * net.recomputed + net.block
        forwards = work.forwards + (work.kept if recomputes else 0.0)
        seconds = samples * forwards * 2 * net.macs / (assumed.peak * assumed.utilisation)
        per_second = gpus * samples / max(seconds, exchange)
        return Plan(
            state, frozen, samples * each, samples, recomputes, per_second, exchange > seconds
        )

    share = max(1, assumed.batch // gpus)
    possible = [
        of(samples, recomputes)
        for samples in range(1, share + 1)
        if share % samples == 0
        for recomputes in (False, True)
    ]
    room = assumed.memory * assumed.usable
    fitting = [found for found in possible if found.total <= room]
    if not fitting:
        return of(1, True)._replace(micro_batch=0, per_second=0.0)
    # Of equal ones the first: the smallest micro-batch, without recomputing.
    return max(fitting, key=lambda found: round(found.per_second, 9))


def plans(
    net: Counted, work: Work, counts: tuple[int, ...] = (8, 64), assumed: Assumptions = ASSUMED
) -> Iterator[tuple[int, bool | None, Plan]]:
    """Plans on some numbers of GPUs, with frozen weights whole and sharded.

    Yields:
        GPUs, whether frozen weights are sharded (``None`` if there are none), and the plan.
    """
    for gpus in counts:
        for shards in (False, True) if work.frozen_passes else (None,):
            yield gpus, shards, plan(net, work, gpus, bool(shards), assumed)
