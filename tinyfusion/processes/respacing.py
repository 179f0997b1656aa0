"""Which times of a long chain a shorter one visits."""

from __future__ import annotations

from tinyfusion.errors import InputError


def respaced_times(spec: int | str, num_steps: int, key: str = "sampler.steps") -> list[int]:
    """Original times that a respaced process keeps, ascending.

    Args:
        spec: a number of steps (spread evenly, end points included), ``"ddimN"`` (fixed integer
            stride from 0) or a comma list such as ``"10,15,25"`` (equal sections, each with its
            own count).
        num_steps: length of the full process.
        key: where the specification is configured, for messages.

    Raises:
        InputError: the specification can't be read or asks for more steps than there are.
    """
    text = str(spec).strip()
    if text.startswith("ddim"):
        count = _positive(text[4:], spec, key)
        for stride in range(1, num_steps):
            if len(range(0, num_steps, stride)) == count:
                return list(range(0, num_steps, stride))
        raise InputError(
            f"{key}={spec!r}: no integer stride visits exactly {count} of "
            f"{num_steps} steps; give a plain number instead"
        )
    counts = [_positive(part, spec, key) for part in text.split(",")]
    size, extra = divmod(num_steps, len(counts))
    start, times = 0, []
    for section, count in enumerate(counts):
        length = size + (1 if section < extra else 0)
        if count > length:
            raise InputError(
                f"{key}={spec!r}: {count} steps asked of a section of {length}; "
                f"valid: 1 to {length}"
            )
        step = 1.0 if count == 1 else (length - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            times.append(start + round(position))
            position += step
        start += length
    return times


def _positive(text: str, spec: int | str, key: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise InputError(
            f"{key}={spec!r} can't be read: give a number such as 50, 'ddim50', or a "
            "comma list such as '10,15,25'"
        )
    return int(text)
