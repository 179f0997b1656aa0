"""Saying what went wrong: one line on stderr, from one of the processes that find the same."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time

from tinyfusion.ranks import is_first_rank, place

HOLD = 3.0
"""Seconds that a rank stays after it has said something, so that the others find its claim."""

_IDENTITY = ("SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT", "PMIX_NAMESPACE")
"""Variables that tell one run of several ranks from another."""

_claims: dict[str, socket.socket] = {}


def report(message: str) -> None:
    """Print an error on stderr, on one line.

    Ranks that were started apart mostly fail alike, but one may fail alone: of those on a machine
    that report the same, the first one to do so prints it.

    Args:
        message: what went wrong.
    """
    message = " ".join(message.split())
    several = place().size > 1
    if several and not _claim(message):
        return
    who = f"rank {place().rank}: " if several and not is_first_rank() else ""
    print(f"tinyfusion: error: {who}{message}", file=sys.stderr, flush=True)
    if several:
        time.sleep(HOLD)


def _claim(message: str) -> bool:
    """Whether no other rank of this run, on this machine, is saying this."""
    run = [os.environ.get(name, "") for name in _IDENTITY]
    if not any(run):
        run = [str(os.getppid())]  # what started them
    words = "\0".join([str(os.getuid()), *run, message])
    name = hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=16).hexdigest()
    if name in _claims:
        return True
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # A name without a file, on Linux alone; it is free again when this process has ended.
        claim.bind(f"\0tinyfusion-{name}")
    except OSError:
        claim.close()
        return not sys.platform.startswith("linux")
    _claims[name] = claim
    return True
