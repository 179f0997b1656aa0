"""The report script measures the real phases and prints a table; here a miniature on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tinyfusion.pipeline import probe


@pytest.fixture
def report(monkeypatch, script) -> ModuleType:
    monkeypatch.setattr(probe, "STEPS", 3)
    monkeypatch.setattr(probe, "UNTIMED", 1)
    return script("gpu_report")


@pytest.mark.slow
def test_a_miniature_on_the_cpu(report, capsys, tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    options = ["--small", "--sampling-batch", "4", "--micro-batch", "4", "--backend", "eager"]
    report.main([*options, "--output", str(file), "backbone.depth=4", "trainer.threads=1"])
    text = file.read_text()
    assert text in capsys.readouterr().out
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8 and [row[2] for row in rows] == ["no"] * 4 + ["yes"] * 4
    for row in rows[:2]:
        assert row[1] == "8 in 2 x 4" and float(row[3].removesuffix(" samples/s")) > 0
    assert "whole (4 blocks), 2 steps, guidance 1.5" in rows[2][0]
    assert "pruned (2 blocks)" in rows[3][0] and "images/s" in rows[3][3]
    assert "precision bf16-mixed" in text and "median of steps 2 to 3" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_it_wants_a_gpu_for_the_real_thing(report, monkeypatch) -> None:
    monkeypatch.setattr(report.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        report.main([])
