"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import tinyfusion

README = Path(__file__).resolve().parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[number], f"README.md, example {number + 1}", "exec"), names)
    student, pictures = names["student"], names["pictures"]
    assert student.depth == 14 and pictures.shape == (10, 1, 8, 8)
    assert {"fid", "held_out_loss", "teacher_distance"} <= names["scores"].keys()
    again = tinyfusion.load(tmp_path / "my-model")
    x, t, y = torch.randn(2, 1, 8, 8), torch.full((2,), 500), torch.arange(2)
    assert torch.equal(again(x, t, y), student(x, t, y))
    assert tinyfusion.Decision.load(tmp_path / "decision.json") == names["decision"]


def test_there_is_an_example_of_at_most_fifteen_lines() -> None:
    assert EXAMPLES and len(EXAMPLES[0].strip().splitlines()) <= 16
