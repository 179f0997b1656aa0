"""The copies of a network that one file holds, and which of them are called averages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tinyfusion.backbones.presets import FAMILIES
from tinyfusion.checkpoints.held_tensors import Held, Path, begins, parts_of
from tinyfusion.errors import InputError

_WORDS = {"ema", "emas", "avg", "avgs", "average", "averages", "averaged", "shadow", "swa"}
_WORDS |= {"polyak", "lawa"}
_TAILS = ("model", "net", "network", "params", "weights", "state", "dict")
_RAW = {"no", "non", "not", "without", "online", "raw", "live", "backup", "collected"}
_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Copy:
    """One copy of a network in a file.

    Attributes:
        at: path to it.
        names: path of each tensor by the tensor's public name.
        averaged: its own or a surrounding key says that it is an average.
    """

    at: Path
    names: Mapping[str, Path]
    averaged: bool = False

    @property
    def key(self) -> str:
        """The path as users write it; empty for tensors that nothing is around."""
        return ".".join(part for part in self.at if part not in ("module", "_orig_mod"))


def is_average(key: str) -> bool:
    """Whether a key or prefix says that averaged weights are under it."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", key)
    lowered = {word.lower() for word in words}
    glued = {f"{word}{tail}" for word in ("ema", "swa", "avg") for tail in _TAILS}
    glued |= {f"{tail}{word}" for word in ("ema", "swa", "avg") for tail in _TAILS}
    return bool(lowered & (_WORDS | glued)) and not lowered & _RAW


def copies_in(held: Held, origin: str) -> list[Copy]:
    """All copies of a network; those under keys or prefixes of averages are marked as such."""
    averages = prefixes_of_averages(held)
    roots = _marked_roots(held)
    if not roots:
        return _copies_of_unknown(held, averages)
    copies = []
    for root in roots:
        inside = [at for at in (*roots, *averages) if len(at) > len(root) and begins(at, root)]
        names = _named(
            [p for p in held.under(root) if not _under_any(p, inside)], root, origin, held
        )
        copies.append(Copy(root, names, any(map(is_average, root))))
    for at in averages:
        if any(begins(root, at) for root in roots):
            continue  # the copies in it have been found
        twins = [_twin(held.under(at), at, c.names)[1] for c in copies if not c.averaged]
        names = next(filter(None, twins), {})
        if names:
            copies.append(Copy(at, names, averaged=True))
        else:  # a part of the network that has such a name
            more = {path: held.under(at) for path in roots if begins(at, path)}
            copies = [
                replace(c, names={**c.names, **_named(more.get(c.at, []), c.at, origin, held)})
                for c in copies
            ]
    return copies


def _copies_of_unknown(held: Held, averages: list[Path]) -> list[Copy]:
    """Copies of a network whose names tell no family: one in each mapping, or several by prefix."""
    copies: list[Copy] = []
    for state in held.states:
        paths = [path for path in held.under(state) if held.names[path][0] == state]
        inside = [at for at in averages if len(at) > len(state) and begins(at, state)]
        inside = [at for at in inside if any(begins(path, at) for path in paths)]
        rest = {".".join(p[len(state) :]): p for p in paths if not _under_any(p, inside)}
        twins: list[Copy] = []
        root = state
        for at in inside:
            under = held.under(at)
            cut, names = _twin(under, at, rest)
            # A part of the network may have such a name, too; an average has as many tensors.
            if 2 * len(names) >= len(rest) > 0:
                root = max(root, rest[next(iter(names))][:cut], key=len)
                twins.append(Copy(at, names, averaged=True))
            else:
                rest |= {".".join(path[len(state) :]): path for path in under}
        rooted = [replace(twin, names=_rooted(twin.names, rest, root)) for twin in twins]
        names = _rooted(rest, rest, root)
        if names:
            copies.append(Copy(root, names, any(map(is_average, root))))
        copies += rooted
    raw = [copy for copy in copies if not copy.averaged]
    for number, copy in enumerate(copies):
        if copy.averaged and all(difference(copy, other, held) for other in raw):
            twins_of = (_twin(list(copy.names.values()), copy.at, other.names) for other in raw)
            names = next((found for _, found in twins_of if found), dict(copy.names))
            copies[number] = replace(copy, names=names)
    return copies


def _rooted(names: Mapping[str, Path], rest: Mapping[str, Path], root: Path) -> dict[str, Path]:
    """Tensors by their names after a root, of the weights that are under it."""
    inside = {name: path for name, path in rest.items() if begins(path, root)}
    return {".".join(inside[n][len(root) :]): p for n, p in names.items() if n in inside}


def prefixes_of_averages(held: Held) -> list[Path]:
    """The shortest prefixes of paths to tensors whose last part is called an average."""
    found: dict[Path, None] = {}
    for path in held.tensors:
        for length in range(1, len(path)):
            if is_average(path[length - 1]):
                found[path[:length]] = None
                break
    return list(found)


def _marked_roots(held: Held) -> list[Path]:
    """Prefixes after which names are those of a family."""
    marks = [
        tuple(mark.rstrip(".").split("."))
        for kind in FAMILIES.values()
        for mark in (kind.public_files.marks if kind.public_files else ())
    ]
    found: dict[Path, None] = {}
    for path in held.tensors:
        for at in range(len(path) - 1):
            if any(path[at : at + len(mark)] == mark for mark in marks):
                found[path[:at]] = None
                break
    return list(found)


def _named(paths: Iterable[Path], root: Path, origin: str, held: Held) -> dict[str, Path]:
    """Paths by public name.

    Raises:
        InputError: a name that occurs twice.
    """
    names: dict[str, Path] = {}
    for path in paths:
        name = ".".join(parts_of(".".join(path[len(root) :])))
        if name in names:
            raise InputError(
                f"{origin}: holds tensor {name!r} twice, the second as {held.names[path][1]!r}"
            )
        names[name] = path
    return names


def _twin(
    paths: Iterable[Path], at: Path, names: Mapping[str, Path]
) -> tuple[int, dict[str, Path]]:
    """Tensors under a prefix of averages by the names that the weights beside them have.

    Names may be written without dots, as modules that hold averages must write them, and may begin
    earlier or later in the path than those of the weights.

    Args:
        paths: tensors under the prefix.
        at: the prefix.
        names: the weights by name.

    Returns:
        Where in the weights' paths the averages' names begin, and the averages by the weights'
        names; none if less than half of them are such.
    """
    own = {".".join(parts_of(".".join(path[len(at) :]))): path for path in paths}
    best: tuple[int, dict[str, Path]] = (0, {})
    before = max((len(p) - len(name.split(".")) for name, p in names.items()), default=0)
    for cut in range(before + 3):
        found: dict[str, Path] = {}
        for name, path in names.items():
            text = ".".join(path[cut:])
            place = own.get(text) or own.get(text.replace(".", ""))
            if text and place:
                found[name] = place
        best = max(best, (cut, found), key=lambda each: len(each[1]))
    return best if 2 * len(best[1]) > len(own) else (0, {})


def difference(average: Copy, raw: Copy, held: Held) -> str:
    """How an average is not one of some weights, in words; empty if it may be.

    It may leave out tensors that are not averaged, but not the last blocks.

    Args:
        average: the average.
        raw: the weights.
        held: the file's tensors.
    """
    own, other = shapes(average, held), shapes(raw, held)
    for name, shape in own.items():
        if name not in other:
            return f"these have no tensor {name!r}"
        if other[name] != shape:
            return f"{name!r} has the shapes {shape} and {other[name]}"
    for blocks in {name[: match.start()] for name in other if (match := _NUMBER.search(name))}:
        few, many = (_numbers(blocks, names) for names in (own, other))
        if few and few == set(range(len(few))) and max(few) < max(many):
            return f"of {blocks!r} they have {len(few)} and {len(many)}"
    return ""


def shapes(copy: Copy, held: Held) -> dict[str, tuple[int, ...]]:
    """Shapes of a copy's tensors by name."""
    return {name: tuple(held.tensors[path].shape) for name, path in copy.names.items()}


def _numbers(blocks: str, names: Iterable[str]) -> set[int]:
    """Numbers of the modules of a list of which there are tensors."""
    found = (_NUMBER.match(name, len(blocks)) for name in names if name.startswith(blocks))
    return {int(match[1]) for match in found if match}


def _under_any(path: Path, prefixes: Iterable[Path]) -> bool:
    return any(begins(path, prefix) for prefix in prefixes)
