"""The colour and marker of a method, the same in every figure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple
from zlib import crc32

from tinyfusion.figures.canvas import COLOURS, GREY

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS


class Look(NamedTuple):
    """How a method is drawn.

    Attributes:
        colour: hexadecimal.
        marker: of matplotlib, so that colour is not all that tells methods apart.
    """

    colour: str
    marker: str


_MARKERS = "os^Dv<>p"

# By the words that a name begins with, the longest first. Names of one line are alternatives.
_KNOWN = {
    ("learned", "learnable", "tinyfusion", "tinydit", "ours"): Look(BLUE, "o"),
    ("oracle",): Look(BLACK, "D"),
    ("sensitivity",): Look(GREEN, "^"),
    ("shortgpt",): Look(ORANGE, "s"),
    ("flux lite",): Look(PURPLE, "v"),
    ("laptop diff", "bk sdm"): Look(SKY, "<"),
    ("diff pruning",): Look(VERMILION, ">"),
    ("random",): Look(GREY, "p"),
    ("uniform", "every other"): Look(SKY, "D"),
    ("first",): Look(GREEN, "s"),
    ("last",): Look(VERMILION, "s"),
    ("masked kd", "masked repkd", "masked distillation"): Look(BLUE, "o"),
    ("finetune", "fine tuning", "fine tune"): Look(VERMILION, "s"),
    ("from scratch", "scratch"): Look(GREY, "^"),
    ("kd",): Look(GREEN, "D"),
    ("repkd",): Look(PURPLE, "v"),
    ("teacher", "model"): Look(BLUE, "o"),
    ("student",): Look(VERMILION, "s"),
    ("depth", "blocks removed"): Look(BLUE, "o"),
    ("width", "widths cut"): Look(VERMILION, "s"),
}
_BY_WORDS = {name: look for names, look in _KNOWN.items() for name in names}


def method_look(name: str) -> Look:
    """Colour and marker of a method.

    Args:
        name: as the command line or the paper has it, in any case, with further words or figures
            behind it: ``"learned 2:4"`` and ``"Learnable"`` are one method.

    Returns:
        That of a known method, or for any other name one that depends on the name alone.
    """
    words = _words(name)
    for length in range(len(words), 0, -1):
        found = _BY_WORDS.get(" ".join(words[:length]))
        if found is not None:
            return found
    return _others()[crc32(" ".join(words).encode()) % len(_others())]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Colours and markers of the methods of one figure, in order, no two of them alike.

    One of several that would look alike has the look of `method_look`, a name without further
    words before others; the rest have another marker in the same colour, or, when those are used
    up, another colour.
    """
    order = list(dict.fromkeys(names))
    found: dict[str, Look] = {}
    for name in sorted(order, key=lambda name: " ".join(_words(name)) not in _BY_WORDS):
        own = method_look(name)
        same = [Look(own.colour, marker) for marker in (own.marker, *_MARKERS)]
        taken = set(found.values())
        free = (look for look in (*same, *_others()) if look not in taken)
        found[name] = next(free, own)
    return {name: found[name] for name in order}


def method_colour(name: str) -> str:
    """Colour of a method: see `method_look`."""
    return method_look(name).colour


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9:%.]+", name.lower().replace("-", " ").replace("_", " "))


def _others() -> list[Look]:
    return [Look(colour, marker) for marker, colour in product(_MARKERS, COLOURS)]
