"""Figures as they are when they are written."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from tinyfusion.figures import canvas


@pytest.fixture
def saved(monkeypatch) -> list[Figure]:
    """Figures that a test draws, in order; their files are written all the same."""
    found: list[Figure] = []
    plain = canvas._write

    def remember(figure, path, *, form, dots_per_inch):
        if figure not in found:
            found.append(figure)
        plain(figure, path, form=form, dots_per_inch=dots_per_inch)

    monkeypatch.setattr(canvas, "_write", remember)
    return found
