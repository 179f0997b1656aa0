"""Amounts as people read them, and words as shells read them."""

from __future__ import annotations

import shlex
from pathlib import Path

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def readable_bytes(count: float) -> str:
    """A number of bytes in the largest of GiB, MiB and KiB of which there is one: ``1.50 GiB``."""
    unit, size = next((entry for entry in UNITS if count >= entry[1]), UNITS[-1])
    return f"{count / size:.2f} {unit}"


def readable_duration(seconds: float) -> str:
    """A number of seconds in its two largest units: ``6 h 56 min``, ``1 min 05 s`` or ``12 s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def shell_word(key: str, value: str | Path) -> str:
    """``key=value`` as one word of a command line, to be copied from a message into a shell."""
    return shlex.quote(f"{key}={value}")


def readable_amount(value: float) -> str:
    """A number to six places, and a large one without decimals: ``0.0125``, ``2,461,290``."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.6g}"
