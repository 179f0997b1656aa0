"""The runs of the comparison of pruners and of recoveries on the digits teacher.

Decisions are made once per pruner and seed (once for a pruner that no seed changes) and shared by
the recoveries, so that recoveries are compared on the same students.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyfusion.errors import InputError
from tinyfusion.studies.jobs import Job


@dataclass(frozen=True)
class Pruning:
    """One way of choosing blocks.

    Attributes:
        overrides: what chooses it on the command line.
        seeded: whether its choice depends on the seed (of training, calibration data or draw).
    """

    overrides: tuple[str, ...]
    seeded: bool = True


STEPS = "training.mask_learning.steps=150"
"""Length of mask learning within schemes, with which docs/results.md was measured."""

PRUNERS: dict[str, Pruning] = {
    "learned 1:2": Pruning(("pruner=learned", "scheme=1:2", STEPS)),
    "learned 2:4": Pruning(("pruner=learned", "scheme=2:4", STEPS)),
    "learned 7:14": Pruning(("pruner=learned", "scheme=7:14", STEPS)),
    "shortgpt": Pruning(("pruner=shortgpt", "scheme=1:2")),
    "flux_lite": Pruning(("pruner=flux_lite", "scheme=1:2")),
    "sensitivity": Pruning(("pruner=sensitivity", "scheme=1:2")),
    "sensitivity, greedy": Pruning(("pruner=sensitivity", "selector=greedy", "scheme=1:2")),
    "laptop_diff": Pruning(("pruner=laptop_diff", "scheme=1:2")),
    "oracle": Pruning(("pruner=oracle", "scheme=1:2"), seeded=False),
    "uniform": Pruning(("pruner=uniform", "scheme=1:2"), seeded=False),
    "first": Pruning(("pruner=first", "scheme=1:2"), seeded=False),
    "last": Pruning(("pruner=last", "scheme=1:2"), seeded=False),
    "random": Pruning(("pruner=random", "scheme=1:2")),
}
"""Pruners of half the blocks; to most of them the scheme only gives that number."""

WIDTH: dict[str, Pruning] = {
    f"diff_pruning, {100 * ratio:.0f} %": Pruning(
        ("pruner=diff_pruning", f"pruner.ratio={ratio}", "pruner.round_to=4")
    )
    for ratio in (0.25, 0.5, 0.75)
}
"""Pruners that remove no block, by the share of the parameters that they remove."""

RECOVERIES: dict[str, tuple[str, ...]] = {
    "kd": ("recovery=kd",),
    "masked_kd": ("recovery=masked_kd", "recovery.feature_mask=intersection"),
    "masked_kd, separate": ("recovery=masked_kd", "recovery.feature_mask=separate"),
    "finetune": ("recovery=finetune",),
    "repkd": ("recovery=repkd",),
    "laptop_kd": ("recovery=laptop_kd",),
    "kd, seams first": ("recovery=kd", "stages=seams_first"),
    # The start values that the teacher had.
    "kd, from scratch": ("recovery=kd", "start=fresh", "backbone=dit_digits"),
    "finetune, from scratch": ("recovery=finetune", "start=fresh", "backbone=dit_digits"),
}

OTHERS: tuple[tuple[str, str], ...] = (
    # From scratch it does not matter which blocks were kept.
    ("oracle", "kd, from scratch"),
    ("oracle", "finetune, from scratch"),
    ("diff_pruning, 50 %", "finetune"),
    ("laptop_diff", "laptop_kd"),
    ("shortgpt", "kd, seams first"),
    ("learned 2:4", "kd, seams first"),
    ("learned 1:2", "finetune"),
    ("learned 1:2", "repkd"),
    ("learned 1:2", "masked_kd, separate"),
)
"""Pairs of pruner and recovery beyond the comparison of pruners."""


def plan(
    root: Path,
    seeds: Sequence[int],
    added: Mapping[str, Path] | None = None,
    finetune: bool = False,
) -> list[Job]:
    """All jobs of the study, every decision before the runs that use it.

    What matters most comes first: every pruner recovered by ``kd``, seed by seed, then by
    ``masked_kd``, then what is compared with one or two pruners only.

    Args:
        root: folder of the study.
        seeds: seeds of decision, recovery and random draw alike.
        added: further decisions by name: files, or folders that hold one.
        finetune: recover every pruner by fine-tuning, too.

    Raises:
        InputError: the name of a further decision is taken, or can't name a folder.
    """
    added = added or {}
    taken = set(map(slug, PRUNERS | WIDTH))
    for name in added:
        if slug(name) in taken or "/" in name:
            raise InputError(
                f"decision {name!r}: the name is taken or has a slash in it; give another one"
            )
        taken.add(slug(name))
    every = [*PRUNERS, *added]
    rounds = [
        [*((name, "kd") for name in (*every, *WIDTH)), OTHERS[0]],
        [(name, "masked_kd") for name in every],
        list(OTHERS[1:]),
    ]
    if finetune:
        rounds.append([(name, "finetune") for name in every if name != "learned 1:2"])
    jobs: dict[Path, Job] = {}
    for pairs in rounds:
        for seed in seeds:
            for pruner, recovery in pairs:
                if pruner in added:
                    decided = added[pruner]
                else:
                    decision = _decision(root, pruner, seed, seeds[0])
                    decided = decision.folder
                    jobs.setdefault(decided, decision)
                folder = root / "runs" / f"{slug(pruner)}__{slug(recovery)}__seed{seed}"
                overrides = ("experiment=digits_study", f"seed={seed}", *RECOVERIES[recovery])
                jobs[folder] = Job(folder, "run", overrides, pruner, recovery, seed, decided)
    return list(jobs.values())


def _decision(root: Path, pruner: str, seed: int, first_seed: int) -> Job:
    """The job that decides; `prune` draws no samples and so takes no experiment."""
    choice = (PRUNERS | WIDTH)[pruner]
    seed = seed if choice.seeded else first_seed
    folder = root / "decisions" / (slug(pruner) + (f"_seed{seed}" if choice.seeded else ""))
    return Job(folder, "prune", (*choice.overrides, f"seed={seed}"), pruner, "", seed)


def slug(text: str) -> str:
    """A name as part of a folder's name."""
    text = (
        text.replace(" ", "_")
        .replace(":", "of")
        .replace("/", "of")
        .replace(",", "")
        .replace("_%", "")
    )
    return text.replace("budget.", "").replace("=", "_")
