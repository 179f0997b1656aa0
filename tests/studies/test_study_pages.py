"""The pages of studies' runs, whose folders are here or which are known from records alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.studies.outcomes import models, outcome, record
from tinyfusion.figures.speed import printed_speed
from tinyfusion.files import write_json
from tinyfusion.metrics.state_summary import symlog_edges
from tinyfusion.report.paper import paper_figure
from tinyfusion.report.runs import Run
from tinyfusion.studies import paper_figures, written
from tinyfusion.studies.definition import read_study
from tinyfusion.studies.records import run_of
from tinyfusion.studies.session import StudySession


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that a page is made of."""
    found: list[Run] = []

    def page(runs: list[Run], *_: Any) -> str:
        found.extend(runs)
        return ""

    monkeypatch.setattr(written, "page", page)
    return found


def test_a_page_has_the_runs_of_records(tmp_path: Path, shown: list[Run]) -> None:
    session = StudySession.begin(read_study("table8"), tmp_path)
    session.report(session.outcome(), tmp_path / "report")
    assert [run.setting("seed") for run in shown] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    rates = [run.setting("training.recovery.learning_rate") for run in shown]
    assert len(set(rates[:3])) == 3 and rates[:3] == rates[3:6]
    assert all(run.result["fid"] > 0 and run.state == "finished" for run in shown)
    assert all(run.command_line.startswith("tinyfusion run ") for run in shown)


def test_a_run_is_read_from_its_folder_where_it_is_here(tmp_path: Path) -> None:
    known = record(
        results=models(2.0, 0.3), curves={"recover/evaluate/fid": [[300, 4.0], [600, 2.0]]}
    )
    alone = run_of(known, tmp_path / "gone", {"seed": 3})
    assert alone.result["fid"] == 2.0 and alone.setting("seed") == 3
    assert alone.curves() == {"recover/evaluate/fid": [(300, 4.0), (600, 2.0)]}
    here = tmp_path / "here"
    write_json(here / "metrics.json", models(5.0, 0.3))
    write_json(here / "finished.json", {"seconds": 1.0, "finished": "", "version": ""})
    (here / "config.yaml").write_text("command: run\nseed: 4\n")
    found = run_of(known, here, {"seed": 3})
    assert found.result["fid"] == 5.0 and found.setting("seed") == 4


def test_the_best_is_marked_within_a_group(tmp_path: Path) -> None:
    fids = {"ShortGPT, 19 of 28": 0.9, "TinyDiT-D14 (KD), 100K": 1.3, "ShortGPT, 14 of 28": 1.1}
    fids |= {"TinyDiT-D19 (KD), 100K": 0.8, "DiT-XL/2, 7000K": 0.5}
    found = outcome(
        "table1",
        lambda cell: (
            {"results": {"models": {cell.row.model: models(fid, 0.3)["models"]["recovered"]}}}
            if (fid := fids.get(cell.row.labels["method"])) and cell.seed == 0
            else None
        ),
    )
    text = written.write(found, tmp_path)[0]
    # The teacher is compared with nothing, and 19 blocks not with 14.
    assert "**0.800**" in text and "**1.100**" in text and "**0.500**" not in text


def test_figure_8_is_drawn_with_the_papers_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Mapping[str, Any]] = []

    def draw(models: Any, edges: Any, path: Path, printed: Mapping[str, Any]) -> Path:
        drawn.append(printed)
        assert len(edges) == len(symlog_edges())
        path.touch()
        return path

    monkeypatch.setattr(paper_figures, "massive_activations", draw)
    whole = {"max": 9.0, "min": -8.0, "std": 1.0}
    states = {"teacher": {"depth": 28, "whole": whole}, "student": {"depth": 14, "whole": whole}}
    results = {"results": {"activations": {"models": states}}}
    found = outcome("figure8", lambda cell: results)
    folder = tmp_path / "run"
    edges = symlog_edges().tolist()
    write_json(folder / "activations.json", {"models": states, "edges": edges})
    found.folders[found.cells[0].work] = folder  # type: ignore[index]
    report = written.made(found, tmp_path)
    assert report.pictures == ["figure8_fine-tuned.png"]
    (printed,) = drawn
    assert printed["teacher"]["min"] == paper_figure(8)["rows"][0]["min"]


def test_figure_4_is_drawn_with_the_papers_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def draw(series: Any, path: Path, printed: Any) -> None:
        drawn.append(printed)

    monkeypatch.setattr(paper_figures, "speed_by_ratio", draw)
    series = {"depth": [{"label": "14", "ratio": 0.5, "speed_up": 1.9}]}
    results = {"results": {"speed": {"settings": {"device": "CPU"}, "series": series}}}
    written.made(outcome("figure4", lambda cell: results), tmp_path)
    assert drawn == [printed_speed(paper_figure(4))] and drawn[0]
