"""Studies with made-up records, to see what their reports make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyfusion.studies.definition import read_study
from tinyfusion.studies.outcome import Outcome
from tinyfusion.studies.records import Record, Records
from tinyfusion.studies.works import Cell, cells_of

Made = Callable[[Cell], dict[str, Any] | None]
"""Fields of a cell's record; ``None`` for one that has not been run."""


def record(**fields: Any) -> Record:
    """A record, of which only what matters is given."""
    usual: dict[str, Any] = {
        "identity": "0" * 16, "command": "run", "overrides": (), "results": {}, "decision": {},
        "outputs": {}, "seconds": 1.0, "finished": "", "version": "", "code": "",
    }  # fmt: skip
    return Record(**(usual | fields))


def outcome(name: str, made: Made, scale: str = "digits") -> Outcome:
    """A shipped study with the records that ``made`` gives."""
    study = read_study(name, scale)
    cells = cells_of(study)
    fields = [made(cell) for cell in cells]
    records = [None if own is None else record(**own) for own in fields]
    return Outcome(study, cells, records, Records())


def models(fid: float, loss: float, distance: float = 0.01) -> dict[str, Any]:
    """Figures of a run: recovered, and right after the cut."""
    row = {
        "fid": fid, "sfid": fid, "inception_score": 4.0, "held_out_loss": 0.07 + fid / 1000,
        "teacher_distance": distance, "precision": 0.5, "recall": 0.9,
    }  # fmt: skip
    return {
        "models": {
            "recovered": row,
            "recovered (live weights)": row,
            "pruned": row | {"fid": 10 * fid, "held_out_loss": loss},
        }
    }
