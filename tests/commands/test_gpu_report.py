"""The report script measures the real phases and prints a table; here a miniature on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tinyfusion.pipeline import probe

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--small", "--micro-batch", "4", "backbone.depth=2", "trainer.threads=1"]


@pytest.fixture
def report(monkeypatch, script) -> ModuleType:
    monkeypatch.setattr(probe, "STEPS", 3)
    monkeypatch.setattr(probe, "UNTIMED", 1)
    module = script("gpu_report")
    monkeypatch.setattr(module, "SMALL_MATRIX", 64)
    return module


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [line.strip("| ").split(" | ") for line in lines]


@pytest.mark.slow
def test_a_miniature_on_the_cpu(report, capsys, tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    report.main([*TINY, "--backend", "eager", "--output", str(file)])
    text = file.read_text()
    assert text in capsys.readouterr().out
    found = rows(text)
    assert [row[0] for row in found] == [row.what for row in report.ROWS]
    assert [row[2] for row in found] == ["yes" if row.compiled else "no" for row in report.ROWS]
    for row in found:
        assert float(row[3]) > 0 and float(row[5].removesuffix("%")) >= 0
        whole = {"sampling": "4", "straightforward": "8"}
        wanted = [batch for word, batch in whole.items() if word in row[0]]
        assert row[1] == (wanted or ["8 in 2 x 4"])[0]
    assert "precision bf16-mixed" in text and "median of steps" in text and "TFLOP/s" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_rows_that_fail_or_come_too_late_are_said(report, monkeypatch, capsys) -> None:
    def fails(dry) -> None:
        raise RuntimeError("out of everything. And more")

    def found(dry):
        assert dry.objects.trainer.compile and dry.objects.seed == 7
        return report.Measured("8", 2.0, 2**30, 1e6)

    monkeypatch.setattr(report, "matrix_peak", lambda *_: 8e6)
    late = report.Row("late", found)
    monkeypatch.setattr(
        report, "ROWS", [report.Row("a", fails), report.Row("b", found, ("seed=7",), True)]
    )
    report.main(TINY)
    one, other = rows(capsys.readouterr().out)
    assert one == ["a", "-", "no", "failed: RuntimeError: out of everything", "-", "-"]
    # Two operations for each multiply-accumulate.
    assert other == ["b", "8", "yes", "2", "1.00 GiB", "50.0%"]
    report.main([*TINY, "--eager-only"])
    assert len(rows(capsys.readouterr().out)) == 1
    monkeypatch.setattr(report, "ROWS", [late])
    report.main([*TINY, "--minutes", "-1"])
    assert rows(capsys.readouterr().out)[0][3] == "not measured: the -1 minutes were used up"


def test_the_work_of_a_row_is_that_of_its_step(report, monkeypatch) -> None:
    monkeypatch.setattr(report, "probe_training", lambda *_: probe.Probed(0.5, None))
    overrides = [*report.PAPER, *report.SMALL, "trainer.micro_batch=8"]
    dry = report.dry_command_of("run", overrides)
    whole, student = (report.macs(dry.on_meta(a)) for a in (dry.arguments, dry.student))
    assert student < 0.6 * whole
    named = {row.what: row.measure for row in report.ROWS[:6] if "straight" not in row.what}
    found = {name: measure(dry) for name, measure in named.items()}
    assert found["mask learning, LoRA, dense"] == ("8 in 1 x 8", 16.0, None, 2 * whole)
    kept, share = 2 * student, student / whole
    assert found["mask learning, LoRA"].macs == pytest.approx(kept + (1 - share) * whole)
    sampled = found["mask learning, LoRA, 1/4 of the gate gradients"].macs
    assert sampled == pytest.approx(kept + 0.25 * (1 - share) * whole)
    assert found["recovery, with teacher"].macs == pytest.approx(whole + 3 * student)


@pytest.mark.slow
def test_it_needs_little_besides_torch(tmp_path: Path) -> None:
    """What scripts/gpu_wheels.sh leaves out is not imported: it would be more than can be taken."""
    left_out = "scipy matplotlib scikit_learn sklearn diffusers torchvision torch_fidelity wandb"
    for file in Path(torch.__file__).parents[1].iterdir():
        if not file.name.startswith(tuple(left_out.split())) and file.suffix != ".pth":
            (tmp_path / file.name).symlink_to(file)
    program = str(ROOT / "scripts" / "gpu_report.py")
    run = subprocess.run(
        [sys.executable, "-S", program, "--eager-only", *TINY],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    found = rows(run.stdout)
    assert len(found) == 7 and all(float(row[3]) > 0 for row in found), run.stdout


def test_it_wants_a_gpu_for_the_real_thing(report, monkeypatch) -> None:
    monkeypatch.setattr(report.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        report.main([])
