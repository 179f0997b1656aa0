"""How fast our steps are next to the straightforward ones, in one process and in turn.

Ours train inside ``Trainer.fit`` as a phase does: from the end of one step to the end of another
lies all that the trainer, the data and the callbacks do. Between two rounds of our steps as many
straightforward ones are taken, so that drifting load hits both alike.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tinyfusion.backbones.contract import Backbone, compile_blocks
from tinyfusion.callbacks.memory import MemoryReport
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.metrics.memory import Activations
from tinyfusion.metrics.speed import Clock, quartiles, sampling_run, seconds_of, time_in_turn
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.quiet import at_least
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.scheme import even_scheme
from tinyfusion.seeding import SampleNoise
from tinyfusion.studies.plain_sampling import guided_samples
from tinyfusion.studies.plain_steps import plain_batches
from tinyfusion.studies.step_sides import Setting, Sides
from tinyfusion.surgery import prune
from tinyfusion.text import readable_bytes
from tinyfusion.training.recipes import tinydit_d14 as recipe

PLAIN = "straightforward"
"""What the side that ours is compared with is called in rows."""

COLUMNS = {
    "work": Column("work"),
    "network": Column("network"),
    "batch": Column("batch"),
    "compiled": Column("ours compiled"),
    "against": Column("against"),
    "base_ms": Column("that, ms", ".1f"),
    "ours_ms": Column("ours, ms", ".1f"),
    "ratio": Column("ratio [quartiles]"),
    "base_bytes": Column("that, activations"),
    "ours_bytes": Column("ours, activations"),
}


class StepsInTurn(Callback):
    """Lets a trainer and another routine take turns, and times both.

    Args:
        other: the other side's round.
        steps: optimiser steps of the trainer in a round.
        clock: what tells the time.

    Attributes:
        ours: seconds of the trainer's rounds, from the end of one step to the end of another.
        others: seconds of the other side's rounds.
        activations: bytes that the trainer's first forward kept; ``None`` if not counted.
    """

    def __init__(self, other: Callable[[], object], steps: int, clock: Clock) -> None:
        self.other, self.steps, self.clock = other, steps, clock
        self.ours: list[float] = []
        self.others: list[float] = []
        self.activations: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first round."""
        self._began = self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a round let the other side have its own."""
        if trainer.global_step % self.steps:
            return
        self.ours.append(self.clock() - self._began)
        self.others.append(seconds_of(self.other, self.clock))
        self._began = self.clock()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the trainer's own callback counted."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
            if isinstance(callback, MemoryReport):
                self.activations = callback.activations


def training_row(work: str, sides: Sides, setting: Setting) -> dict[str, Any]:
    """Time both sides of a training, and count what their forwards keep for the backward pass.

    Args:
        work: what is trained, for the row.
        sides: both sides; they are trained.
        setting: what they were made by.

    Returns:
        See `row_of`; seconds are of one optimiser step.
    """
    noise, settings = sides.plain.noise, sides.plain.settings
    batches = plain_batches(sides.runner.source, noise, settings, setting.device)

    def others() -> None:
        for _ in range(setting.steps):
            sides.plain.step(next(batches))

    turns = StepsInTurn(others, setting.steps, setting.clock)
    runner = replace(sides.runner, make_callbacks=lambda: [turns])
    # What a phase says of itself is not wanted here.
    with TemporaryDirectory() as folder, at_least(logging.CRITICAL, "tinyfusion"):
        runner.run([sides.phase], Path(folder))
    first = next(plain_batches(sides.runner.source, noise, settings, setting.device))
    owned = [first.images, *first.conditioning.arguments()]
    with Activations(owned) as kept:
        loss = sides.plain.loss(first)
        plain_bytes = kept.bytes
    del loss
    seconds = ([taken / setting.steps for taken in side[1:]] for side in (turns.others, turns.ours))
    row = row_of(work, setting, PLAIN, *seconds)
    return row | {
        "batch": setting.batch,
        "base_bytes": plain_bytes,
        "ours_bytes": turns.activations,
    }


def sampling_rows(setting: Setting, keep: Sequence[int]) -> list[dict[str, Any]]:
    """Time guided sampling of both sides, from the whole network and from pruned ones.

    Args:
        setting: network and sampler.
        keep: blocks that the pruned networks have.

    Returns:
        See `row_of`: ours against the straightforward sampler at each depth, then ours on the
        whole network against ours on each pruned one.

    Raises:
        InputError: a number of blocks that can't stay.
    """
    whole = setting.net().eval()
    nets: dict[int, Backbone] = {setting.depth: whole}
    for count in keep:
        nets[count] = prune(whole, even_scheme(count, setting.depth).first_of_each).eval()
    process, sampler = GaussianDiffusion(), AncestralSampler(setting.sampling_steps)
    guidance = Guidance(**asdict(recipe.guidance))
    runs: dict[str, Callable[[], object]] = {}
    for depth, net in nets.items():
        runs[f"{PLAIN} {depth}"] = partial(plain_sampling, copy.deepcopy(net), setting)
        if setting.compiled:
            compile_blocks(net, "inductor", dynamic=False if net.fixed_shapes else None)
        runs[f"ours {depth}"] = sampling_run(net, process, sampler, guidance, setting.images)
    seconds = time_in_turn(runs, setting.rounds, clock=setting.clock)
    rows = [
        row_of(f"sampling, {depth} blocks", setting, PLAIN, seconds[f"{PLAIN} {depth}"], own)
        for depth in nets
        for own in [seconds[f"ours {depth}"]]
    ]
    base = seconds[f"ours {setting.depth}"]
    rows += [
        row_of(
            f"sampling, {depth} blocks",
            setting,
            f"ours, {setting.depth} blocks",
            base,
            seconds[f"ours {depth}"],
        )
        for depth in nets
        if depth != setting.depth
    ]
    return [row | {"batch": setting.images} for row in rows]


def plain_sampling(net: Backbone, setting: Setting) -> int:
    """Sample once by `guided_samples`, as `sampling_run` does; the number of images."""
    shape = (net.in_channels, net.input_size, net.input_size)
    samples = guided_samples(
        net,
        GaussianDiffusion(),
        SampleNoise(0, range(setting.images), shape),
        net.example_conditioning(setting.images, setting.device),
        recipe.guidance.scale,
        recipe.guidance.channels,
        setting.sampling_steps,
    )
    return len(samples.cpu())


def row_of(
    work: str, setting: Setting, against: str, base: Sequence[float], ours: Sequence[float]
) -> dict[str, Any]:
    """What two sides' rounds say.

    Args:
        work: what they did.
        setting: network.
        against: what ours is compared with.
        base: its seconds, round by round.
        ours: our seconds in the same rounds.

    Returns:
        ``base_s`` and ``ours_s``, the medians; ``ratio``, the median over rounds of its seconds
        over ours (above 1: ours is faster), and ``ratio_q1`` and ``ratio_q3``, the quartiles; what
        was given; and ``base_bytes`` and ``ours_bytes``, which are ``None``.
    """
    ratios = [slow / fast for slow, fast in zip(base, ours, strict=True)]
    return {
        "work": work,
        "network": str(setting),
        "compiled": setting.compiled,
        "against": against,
        "base_s": median(base),
        "ours_s": median(ours),
        "ratio": median(ratios),
        **quartiles("ratio", ratios),
        "rounds": len(ratios),
        "base_bytes": None,
        "ours_bytes": None,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `row_of` as Markdown."""
    return markdown_table([_cells(row) for row in rows], COLUMNS)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    sizes = {
        name: None if row[name] is None else readable_bytes(row[name])
        for name in ("base_bytes", "ours_bytes")
    }
    return {
        **row,
        **sizes,
        "compiled": "yes" if row["compiled"] else "no",
        "base_ms": 1e3 * row["base_s"],
        "ours_ms": 1e3 * row["ours_s"],
        "ratio": f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]",
    }
