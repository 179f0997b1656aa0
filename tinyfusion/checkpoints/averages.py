"""Which of several copies of a network in one file is the average of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tinyfusion.checkpoints.copies import (
    Copy,
    copies_in,
    difference,
    is_average,
    prefixes_of_averages,
    shapes,
)
from tinyfusion.checkpoints.held_tensors import Held, begins
from tinyfusion.errors import InputError

TOP = "."
"""What stands for the outermost level of a file where keys are given."""
RAW_KEY = "model"
"""The key of the weights that training scripts continue from."""


@dataclass(frozen=True)
class Chosen:
    """The copy that was taken.

    Attributes:
        copy: the tensors, completed by those of ``filled_from`` that it lacks.
        others: further copies of a network.
        filled: names that were taken from another copy.
        filled_from: key of that copy.
        apart: names of tensors beside the copies, of something else.
    """

    copy: Copy
    others: tuple[Copy, ...] = ()
    filled: tuple[str, ...] = ()
    filled_from: str = ""
    apart: tuple[str, ...] = ()


def choose(held: Held, origin: str, wanted: str | None = None) -> Chosen | None:
    """Take the averaged copy of a file's network; of a single copy, that one.

    Args:
        held: all tensors of the file.
        origin: name of the file, for messages.
        wanted: key of the copy to take instead.

    Returns:
        What was taken; ``None`` if no mapping holds tensors.

    Raises:
        InputError: several copies of which none is, or more than one is, known for an average; an
            average whose tensors have no names or are not those of the network beside it; or no
            copy under ``wanted``.
    """
    copies = copies_in(held, origin)
    if wanted is not None:
        return _completed(_asked_for(wanted, copies, origin), copies, held)
    left = _averages_first(copies, 0)
    left = [copy for copy in left if copy.averaged] or left
    if not any(copy.averaged for copy in left):
        _refuse_unusable(held, copies, origin)
    left = _raw_one(left, held)
    if not left:
        return None
    if len(left) > 1:
        kind = "averages" if left[0].averaged else "sets of weights, none of them named an average"
        raise InputError(f"{origin}: holds {len(left)} {kind}; {_advice(left)}")
    (copy,) = left
    raw = [other for other in copies if not other.averaged]
    if copy.averaged and raw and all(difference(copy, other, held) for other in raw):
        raise InputError(
            f"{origin}: the averages under {copy.key!r} are not those of the weights under "
            f"{raw[0].key!r}: {difference(copy, raw[0], held)}; {_advice([copy, *raw])}"
        )
    return _completed(copy, copies, held)


def _advice(copies: Iterable[Copy]) -> str:
    keys = [copy.key or TOP for copy in copies]
    return f"say which: weights={keys[0]}" + "".join(f" or weights={key}" for key in keys[1:])


def _asked_for(wanted: str, copies: list[Copy], origin: str) -> Copy:
    """The copy under a key, which may be shortened as long as it is the only such.

    Raises:
        InputError: there is none, or there are several.
    """
    named = [(copy.key or TOP, copy) for copy in copies]
    found = [copy for key, copy in named if key == wanted] or [
        copy for key, copy in named if f".{wanted}." in f".{key}."
    ]
    if len(found) != 1:
        what = "several sets of weights are" if found else "no set of weights is"
        valid = ", ".join(key for key, _ in named) or "none"
        raise InputError(f"{origin}: {what} under weights={wanted!r}; valid: {valid}")
    return found[0]


def _refuse_unusable(held: Held, copies: list[Copy], origin: str) -> None:
    """Refuse a file whose averages can't be taken, instead of taking the weights beside them.

    Raises:
        InputError: averages that are no tensors or without names, or of names that the weights
            don't have.
    """
    otherwise = ", or take what is not averaged: " if copies else ""
    otherwise += " or ".join(f"weights={copy.key or TOP}" for copy in copies)
    for path, count in held.unnamed.items():
        if not copies or any(map(is_average, path)):
            raise InputError(
                f"{origin}: under {'.'.join(path)!r} are {count} tensors without names; let the "
                "class that made the list put them into the network (such as "
                "ema.copy_to(model.parameters())) and save its state_dict()" + otherwise
            )
    for path, count in held.arrays.items():
        if not copies or any(map(is_average, path)):
            raise InputError(
                f"{origin}: under {'.'.join(path) or TOP!r} are {count} arrays of numpy, not "
                "tensors; save them as {k: torch.as_tensor(v) for k, v in arrays.items()}"
                + otherwise
            )
    used = {path for copy in copies for path in copy.names.values()}
    for at in prefixes_of_averages(held):
        own = {p[len(at) :]: t.shape for p, t in held.tensors.items() if begins(p, at)}
        apart = [p for p in held.tensors if p not in used and not begins(p, at)]
        if used.isdisjoint(held.under(at)) and not any(
            own.get(p[-length:]) == held.tensors[p].shape for p in apart for length in range(len(p))
        ):  # not the averages of something else in the file
            raise InputError(
                f"{origin}: the averages under {'.'.join(at)!r} are not those of the weights "
                f"beside them, which have no tensor {'.'.join(next(iter(own)))!r}" + otherwise
            )


def _completed(copy: Copy, copies: list[Copy], held: Held) -> Chosen:
    """A copy; an average that leaves tensors out, such as fixed tables, with those of the raw."""
    others = tuple(other for other in copies if other is not copy)
    raw = [c for c in others if copy.averaged and not c.averaged and not difference(copy, c, held)]
    # Of several the one that has the fewest further tensors, such as another copy's.
    fewest = min(raw, key=lambda c: len(c.names), default=None)
    missing = tuple(name for name in fewest.names if name not in copy.names) if fewest else ()
    used = {path for each in copies for path in each.names.values()}
    # What stands under a key of its own is named by that.
    keys = {each.at[:1] for each in copies if each.at} | {()}
    apart = tuple(
        ".".join(p)
        for p in (*held.tensors, *held.counters)
        if p not in used and held.names[p][0][:1] in keys
    )
    if fewest is None or not missing:
        return Chosen(copy, others, apart=apart)
    whole = replace(copy, names={name: copy.names.get(name, p) for name, p in fewest.names.items()})
    return Chosen(whole, others, missing, fewest.key or TOP, apart)


def _averages_first(copies: list[Copy], depth: int) -> list[Copy]:
    """Of copies beside each other those that are averages, at every level of their paths."""
    if len(copies) < 2:
        return copies
    beside: dict[str, list[Copy]] = {}
    for copy in copies:
        beside.setdefault(copy.at[depth] if len(copy.at) > depth else "", []).append(copy)
    named = {key: group for key, group in beside.items() if is_average(key)}
    left: list[Copy] = []
    for group in (named or beside).values():
        left += _averages_first(group, depth + 1) if len(group[0].at) > depth else group
    return left


def _raw_one(copies: list[Copy], held: Held) -> list[Copy]:
    """Of several copies, none an average, the one that training goes on from, if it has no twin."""
    kept = [copy for copy in copies if copy.at[-1:] == (RAW_KEY,)]
    if len(kept) != 1 or kept[0].averaged:
        return copies
    own = shapes(kept[0], held)
    twins = [copy for copy in copies if copy is not kept[0] and shapes(copy, held) == own]
    return copies if twins else kept
