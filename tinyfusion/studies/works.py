"""The command lines of a study: which there are, what each waits for, and where each runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from tinyfusion.errors import InputError
from tinyfusion.settings.commands import COMMANDS
from tinyfusion.settings.overrides import as_typed, split
from tinyfusion.studies.plans import Row, Study, WorkPlan

CHOICE = "choice"
"""How a work calls the one that made its decision."""

CHOOSING = ("pruner", "selector", "delta", "scheme", "keep", "units", "budget")
CHOOSING_LENGTH = "training.mask_learning"
NOT_OF_PRUNE = ("evaluation", "recovery", "stages", "updates", "teacher", "start", "sampler")
"""Settings that `tinyfusion prune` does not have, or has no use for."""

_TOKEN = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True)
class Work:
    """One command line of a study.

    Attributes:
        name: readable, of the folder.
        command: such as ``run``.
        overrides: its overrides with the seed, ``{name}`` for the folder of a work it needs.
        needs: those by name.
    """

    name: str
    command: str
    overrides: tuple[str, ...]
    needs: tuple[tuple[str, Work], ...] = ()

    @property
    def level(self) -> int:
        """How many works one after the other come before it."""
        return 1 + max((work.level for _, work in self.needs), default=-1)

    def filled(self, places: dict[str, str]) -> list[str]:
        """Its overrides with the works it needs replaced.

        Args:
            places: what stands for each, by its name.
        """
        return [_TOKEN.sub(lambda m: places.get(m[1], m[0]), text) for text in self.overrides]

    def all(self) -> Iterator[Work]:
        """All works before it, and itself."""
        for _, work in self.needs:
            yield from work.all()
        yield self


@dataclass(frozen=True)
class Cell:
    """One run of a row: a row under one seed.

    Attributes:
        row: the row.
        seed: the seed.
        work: what makes it.
    """

    row: Row
    seed: int
    work: Work


def cells_of(study: Study, passed_on: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
    """All cells of a study, seed by seed, so that what is done of it is a fair part.

    Args:
        study: the study.
        passed_on: overrides for every command that has their key; they win over the study's.
        seeds: instead of the study's; rows with seeds of their own keep those among them, or
            their first.

    Raises:
        InputError: a row refers to a work that there is not.
    """
    pairs = []
    for row in () if study.composed else study.rows:
        own = row.seeds if row.seeds is not None else study.seeds
        if seeds:
            own = tuple(seeds) if row.seeds is None else tuple(s for s in own if s in seeds)
            own = own or (row.seeds or ())[:1]
        pairs += [(place, seed, row) for place, seed in enumerate(own) if row.plan is not None]
    pairs.sort(key=lambda pair: pair[0])
    cells = []
    for _, seed, row in pairs:
        assert row.plan is not None
        work = _work(study, row.name, row.plan, seed, passed_on)
        cells.append(Cell(row, seed, work))
    return cells


def _work(study: Study, name: str, plan: WorkPlan, seed: int, passed_on: Sequence[str]) -> Work:
    seed = seed if plan.seed is None else plan.seed
    tokens = [token for text in plan.overrides for token in _TOKEN.findall(text)]
    needs: dict[str, Work] = {}
    for token in dict.fromkeys(tokens):
        if token not in study.works:
            valid = ", ".join(study.works) or "none"
            raise InputError(f"study {study.name}: {{{token}}} is no work of it; valid: {valid}")
        needs[token] = _work(study, token, study.works[token], seed, passed_on)
    own = f"{study.scale}_{name}_seed{seed}"
    overrides = _merged(plan.overrides, passed_on, plan.command)
    if plan.command == "prune":
        overrides = tuple(text for text in overrides if _of_choice(text))
    if plan.command != "run" or plan.whole or any(_key(t) == "decision" for t in overrides):
        return Work(slug(own), plan.command, (*overrides, f"seed={seed}"), tuple(needs.items()))
    own_seed = seed if plan.choice_seed is None else plan.choice_seed
    # What is measured while recovering makes no other choice.
    measured = [text for text in overrides if not _key(text).startswith("callbacks")]
    choosing = [text for text in measured if _of_choice(text)]
    chosen = Work(
        slug(f"{study.scale}_{name}_seed{own_seed}_choice"),
        "prune",
        (*choosing, f"seed={own_seed}"),
        _used(choosing, needs),
    )
    recovering = [text for text in overrides if not _only_of_choice(text)]
    return Work(
        slug(own),
        "run",
        (*recovering, f"decision={{{CHOICE}}}/decision.json", f"seed={seed}"),
        (*_used(recovering, needs), (CHOICE, chosen)),
    )


def _used(overrides: Sequence[str], needs: dict[str, Work]) -> tuple[tuple[str, Work], ...]:
    tokens = {token for text in overrides for token in _TOKEN.findall(text)}
    return tuple((name, work) for name, work in needs.items() if name in tokens)


def _merged(own: Sequence[str], passed_on: Sequence[str], command: str) -> tuple[str, ...]:
    """Later overrides of a key win, as they do for Hydra, and those passed on win over all."""
    own_keys = {field.name for field in fields(COMMANDS[command])}
    others = {field.name for kind in COMMANDS.values() for field in fields(kind)} - own_keys
    passed_on = [text for text in passed_on if _key(text).split(".")[0] not in others]
    merged: dict[str, str] = {}
    for text in [*own, *passed_on]:
        merged.pop(_key(text), None)
        merged[_key(text)] = text
    return tuple(merged.values())


def _of_choice(text: str) -> bool:
    key = _key(text)
    return key.split(".")[0] not in NOT_OF_PRUNE and not key.startswith("training.recovery")


def _only_of_choice(text: str) -> bool:
    key = _key(text)
    return key.split(".")[0] in CHOOSING or key.startswith(CHOOSING_LENGTH)


def _key(override: str) -> str:
    return split(override)[0].lstrip("+~")


def slug(text: str) -> str:
    """A name as part of a folder's name."""
    text = text.replace(":", "of").replace("/", "of").replace("%", "pc").replace(" ", "_")
    return "".join(c if c.isalnum() or c in "=._-" else "-" for c in text.replace(",", ""))


def typed(overrides: Sequence[str]) -> list[str]:
    """Overrides in Hydra's grammar."""
    return [as_typed(text) for text in overrides]
