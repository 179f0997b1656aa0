"""Libraries, and parts of this package, made to say less for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_least(level: int, name: str) -> Iterator[None]:
    """Within this context the logger ``name`` passes on messages from ``level`` up only."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
