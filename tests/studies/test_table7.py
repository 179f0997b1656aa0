"""The four rows of iterative pruning."""

from __future__ import annotations

from types import ModuleType

import pytest

from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.studies.digits import STEPS


@pytest.fixture
def table7(script) -> ModuleType:
    return script("table7")


def test_rows_share_the_model_of_fourteen_blocks(table7, tmp_path) -> None:
    jobs = table7.plan(tmp_path, [0, 3])
    assert len(jobs) == 2 * 5 and len({job.folder for job in jobs}) == 10
    halved, *rows = jobs[5:]
    assert halved.overrides == ("experiment=digits_study", "scheme=1:2", STEPS, "seed=3")
    previous = f"iterative.previous={halved.folder / 'recovered'}"
    assert all(previous in row.overrides and "seed=3" in row.overrides for row in rows)
    pairs = {(row.overrides[3], row.overrides[4]) for row in rows}
    assert len(pairs) == 4 and ("iterative.weights=source", "iterative.teacher=previous") in pairs


def test_table_shows_live_weights_of_what_is_there(table7, tmp_path) -> None:
    jobs = table7.plan(tmp_path, [0, 3])
    for job in jobs:
        if job.pruner == "previous" and job.recovery == "source":
            write_text(job.folder / "config.yaml", f"seed: {job.seed}\n")
            live = {"fid": 4.0 + job.seed, "recall": 0.9}
            models = {"recovered": {"fid": 99.0}, "recovered (live weights)": live}
            write_json(job.folder / "metrics.json", {"models": models})
    text = table7.report(tmp_path, jobs)
    rows = read_json(tmp_path / "table7.json", "table")
    assert [(row["teacher"], row["weights"], row["seeds"]) for row in rows] == [
        ("28 blocks", "28 blocks", 0),
        ("28 blocks", "14 blocks", 2),
        ("14 blocks", "28 blocks", 0),
        ("14 blocks", "14 blocks", 0),
    ]
    assert rows[1]["fid"][0] == 5.5 and rows[1]["paper_fid"] == 36.69 and "99.0" not in text
    assert "Not finished: 14_seed0, " in text
