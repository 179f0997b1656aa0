"""Samples and decision figures of runs, as they stand on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from tinyfusion.report.columns import FIGURES
from tinyfusion.report.pictures import Inline, inline, opened, rows_of_grid
from tinyfusion.report.runs import REFERENCE, Run
from tinyfusion.report.tables import primary, protocol_of

PICTURE_BYTES = 2_400_000
"""That all pictures of a page may take; half of it for samples."""


def samples(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Sheets of samples in groups that share their noise: one row of the teacher, one a run."""
    groups: dict[tuple[Any, ...], dict[str, Image]] = {}
    for name, run in runs.items():
        file = run.picture("samples.png")
        if file is None:
            continue
        sheet = opened(file)
        drawn = [model for model in run.models if not model.startswith("recovered (")]
        rows = rows_of_grid(sheet, len(drawn)) if len(drawn) > 1 else None
        # The seed, the process and the sampler make the noise.
        key = (
            run.setting("checkpoint"), run.setting("seed"), protocol_of(run), rows is None,
            None if rows is None else rows[0].size,
        )  # fmt: skip
        pictures = groups.setdefault(key, {})
        if rows is None:
            pictures[name] = sheet
        else:
            if drawn[0] == REFERENCE:
                pictures.setdefault("", rows[0])
            pictures[name] = rows[-1]
    flat = {
        (place, name): picture
        for place, pictures in enumerate(groups.values())
        for name, picture in pictures.items()
    }
    made = _inline(flat, PICTURE_BYTES // 2)
    found = []
    for place, (key, pictures) in enumerate(groups.items()):
        shown = [(_scored_name(name, runs.get(name)), made.get((place, name))) for name in pictures]
        found.append({"about": f"{key[0]}, seed {key[1]}", "rows": shown})
    return found


def _scored_name(name: str, run: Run | None) -> str:
    """A run's name with the figure it is ranked by."""
    figure = None if run is None else primary([run.result])
    if run is None or figure is None:
        return name
    column = FIGURES[figure]
    return f"{name}: {column.header} {format(run.result[figure], column.format)}"


def decisions(runs: Mapping[str, Run]) -> list[tuple[str, Inline | None]]:
    """Figures of how each decision developed, by run."""
    files = {name: run.picture("decision.png") for name, run in runs.items()}
    pictures = {name: opened(file) for name, file in files.items() if file is not None}
    made = _inline(pictures, PICTURE_BYTES // 2)
    return [(name, made.get(name)) for name in pictures]


def _inline(pictures: Mapping[Any, Image], budget: int) -> dict[Any, Inline]:
    by_text = {str(place): picture for place, picture in enumerate(pictures.values())}
    made = inline(by_text, budget)
    return {key: made[str(p)] for p, key in enumerate(pictures) if str(p) in made}
