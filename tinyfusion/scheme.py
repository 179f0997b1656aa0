"""N:M schemes: which runs of consecutive blocks keep how many of their own.

Shape suffixes: C choices of a group, M positions in a group.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Any

from tinyfusion.errors import InputError

EVEN = "even"
"""Word for the smallest equal groups that keep a number of blocks, see `even_scheme`."""

EXAMPLES = (
    "valid: '1:2', '2:4', '7:14', even (equal groups that keep keep=), or a list of [keep, size] "
    "groups such as [[3,4],[2,4]]"
)

MAX_CHOICES = 100_000
"""More keep-patterns than this in one group can't be learned (and would fill the memory)."""


@dataclass(frozen=True)
class BlockGroup:
    """``size`` consecutive blocks from block ``start`` on, of which ``keep`` stay."""

    start: int
    keep: int
    size: int

    @property
    def blocks(self) -> range:
        """Indices of the group's blocks."""
        return range(self.start, self.start + self.size)

    @property
    def num_choices(self) -> int:
        """Number of keep-patterns, C(size, keep)."""
        return comb(self.size, self.keep)

    def choices(self) -> list[tuple[int, ...]]:
        """Kept positions of every pattern, in lexicographic order."""
        return list(combinations(range(self.size), self.keep))


@dataclass(frozen=True)
class Scheme:
    """Consecutive, non-overlapping groups that cover a model's blocks."""

    groups: tuple[BlockGroup, ...]

    @property
    def depth(self) -> int:
        """Number of blocks covered."""
        return sum(group.size for group in self.groups)

    @property
    def keep(self) -> int:
        """Number of blocks that stay."""
        return sum(group.keep for group in self.groups)

    @property
    def sizes(self) -> list[list[int]]:
        """The groups as ``[[keep, size], ...]``, a value that `parse_scheme` reads back."""
        return [[group.keep, group.size] for group in self.groups]

    @property
    def first_of_each(self) -> tuple[int, ...]:
        """As many blocks of each group as stay in it, its first ones: for what only counts."""
        return tuple(block for group in self.groups for block in group.blocks[: group.keep])

    def __str__(self) -> str:
        pairs = {(group.keep, group.size) for group in self.groups}
        if len(pairs) == 1:
            return "{}:{}".format(*pairs.pop())
        return str(self.sizes).replace(" ", "")


def parse_scheme(value: Any, depth: int, borders: Sequence[int] = ()) -> Scheme:
    """Read a scheme as a user writes it and lay it over a model.

    Args:
        value: ``"N:M"`` (repeated over the depth), or a list of ``[keep, size]`` pairs whose
            sizes add up to the depth; lists may also come as text.
        depth: number of blocks of the model.
        borders: block indices that no group may cross (see `Backbone.borders`).

    Returns:
        The groups with their places.

    Raises:
        InputError: the value can't be read, keeps all or no blocks, or doesn't fit the model.
    """
    if isinstance(value, bool) or value is None:
        raise InputError(f"scheme={value!r} is not a scheme; {EXAMPLES}")
    if isinstance(value, int | float):
        # YAML 1.1 reads an unquoted 1:2 as the base-60 number 62.
        keep, size = divmod(int(value), 60) if math.isfinite(value) else (0, 0)
        if value == keep * 60 + size and 0 < keep < size:
            raise InputError(
                f"scheme={value} is a number: YAML reads an unquoted {keep}:{size} as {value} "
                f'(base 60); write scheme: "{keep}:{size}" with quotes'
            )
        raise InputError(f"scheme={value} is a number, not a scheme; {EXAMPLES}")
    pairs = _repeated(value, depth, borders) if _is_ratio(value) else group_sizes(value)
    for keep, size in pairs:
        if not 0 < keep <= size:
            raise InputError(
                f"scheme={_show(value)}: a group can't keep {keep} of {size} blocks; "
                "valid: 1 <= keep <= size"
            )
    total = sum(size for _, size in pairs)
    if total != depth:
        raise InputError(
            f"scheme={_show(value)} covers {total} blocks but the model has {depth}; "
            "the group sizes must add up to the depth"
        )
    if all(keep == size for keep, size in pairs):
        raise InputError(f"scheme={_show(value)} keeps every block; valid: N < M in some group")
    groups, start = [], 0
    for keep, size in pairs:
        group = BlockGroup(start, keep, size)
        if group.num_choices > MAX_CHOICES:
            raise InputError(
                f"scheme={_show(value)}: {keep} of {size} blocks can be kept in "
                f"{group.num_choices:,} ways; at most {MAX_CHOICES:,} per group can be learned, "
                "use smaller groups"
            )
        crossed = [border for border in borders if start < border < start + size]
        if crossed:
            raise InputError(
                f"scheme={_show(value)}: the group of blocks {start}..{start + size - 1} crosses "
                f"the border at block {crossed[0]}, where another kind of block begins; valid: "
                f"groups of which one ends before block {crossed[0]}"
            )
        groups.append(group)
        start += size
    return Scheme(tuple(groups))


def check_keep(scheme: Scheme | None, keep: int) -> Scheme:
    """The groups to decide within, validated against the number of blocks that are to stay.

    Raises:
        InputError: ``scheme`` is ``None``, or its groups keep another number of blocks than
            ``keep``.
    """
    if scheme is None:
        raise InputError(f"keep={keep}: what decides within groups needs a scheme; {EXAMPLES}")
    if scheme.keep != keep:
        raise InputError(
            f"scheme={scheme} keeps {scheme.keep} of {scheme.depth} blocks but keep={keep}: leave "
            f"keep out, or give scheme=null for any {keep} blocks (even: equal groups)"
        )
    return scheme


def even_scheme(keep: int, depth: int, borders: Sequence[int] = ()) -> Scheme:
    """The smallest equal groups that keep ``keep`` blocks, every stack in the same proportion.

    7 of 28 blocks are 1:4, 14 of 28 are 1:2, 19 of 28 one group of 28.

    Args:
        keep: number of blocks that stay.
        depth: number of blocks of the model.
        borders: block indices at which a stack of another type begins.

    Raises:
        InputError: a stack that can't be kept in proportion, or a group with too many
            keep-patterns.
    """
    pairs: list[list[int]] = []
    ends = sorted({0, *borders, depth})
    for start, end in pairwise(ends):
        size = end - start
        if keep * size % depth:
            sizes = " and ".join(str(b - a) for a, b in pairwise(ends))
            raise InputError(
                f"keep={keep}: stacks of {sizes} blocks can't be cut in the same proportion; give "
                "scheme= as a list of [keep, size] groups"
            )
        here = keep * size // depth
        groups = math.gcd(here, size)
        pairs += [[here // groups, size // groups]] * groups
    try:
        return parse_scheme(pairs, depth, borders)
    except InputError as error:
        raise InputError(
            f"keep={keep} in equal groups (scheme={EVEN}): {error}; scheme=null has no groups"
        ) from None


def evenly_spaced(size: int, count: int) -> tuple[int, ...]:
    """``count`` of ``size`` places, evenly spaced from the first on."""
    return tuple(place * size // count for place in range(count))


def _is_ratio(value: Any) -> bool:
    return isinstance(value, str) and not value.strip().startswith("[")


def _repeated(value: str, depth: int, borders: Sequence[int]) -> list[tuple[int, int]]:
    parts = value.strip().split(":")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"scheme={value!r} can't be read; {EXAMPLES}")
    keep, size = int(parts[0]), int(parts[1])
    if not 0 < keep < size:
        raise InputError(f"scheme={value} must keep fewer blocks than it has; valid: 1 <= N < M")
    if depth % size:
        ends = (*borders, depth)
        fitting = [str(m) for m in range(2, depth + 1) if not any(end % m for end in ends)]
        valid = f" group sizes: {', '.join(fitting)}, or a list" if fitting else ": a list"
        raise InputError(
            f"scheme={value} does not fit a model of {depth} blocks: {depth} is not a multiple of "
            f"{size}; valid{valid} of groups"
        )
    return [(keep, size)] * (depth // size)


def group_sizes(value: Any, key: str = "scheme", first: str = "keep") -> list[tuple[int, int]]:
    """Pairs of two whole numbers, from a list or its text.

    Args:
        value: what the user gave.
        key: name of the value in messages.
        first: what the first number of a pair is called there.

    Raises:
        InputError: anything else, or no pair.
    """
    valid = EXAMPLES if key == "scheme" else f"valid: a list of [{first}, size] groups"
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, TypeError, SyntaxError):
            raise InputError(f"{key}={value!r} can't be read; {valid}") from None
    pairs = []
    for pair in value if isinstance(value, Iterable) else [value]:
        items = list(pair) if isinstance(pair, Iterable) and not isinstance(pair, str) else []
        if len(items) != 2 or not all(
            isinstance(i, int) and not isinstance(i, bool) for i in items
        ):
            raise InputError(f"{key}={_show(value)}: {pair!r} is not a [{first}, size] pair")
        pairs.append((items[0], items[1]))
    if not pairs:
        raise InputError(f"{key}={_show(value)} has no groups; {valid}")
    return pairs


def _show(value: Any) -> str:
    return str(value).replace(" ", "")
