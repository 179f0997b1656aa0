"""Figure of measured speed-up by share of parameters, and the script that measures it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.speed import speed_by_ratio

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "speed_by_ratio.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on a network of four blocks."""
    spec = importlib.util.spec_from_file_location("speed_by_ratio", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {"input_size": 4, "hidden_size": 32, "depth": 4, "num_heads": 4}
    monkeypatch.setattr(module, "NARROW", {**module.NARROW, **small})
    return module


def test_draws_every_series(tmp_path: Path) -> None:
    points = [{"ratio": 0.5, "speed_up": 1.9, "label": "14"}, {"ratio": 0.9, "speed_up": 8.0}]
    both = speed_by_ratio({"depth": points, "width": points[:1]}, tmp_path / "both.png")
    one = speed_by_ratio({"depth": points, "width": []}, tmp_path / "one.png")
    assert Image.open(both).size[0] > 600
    assert both.read_bytes() != one.read_bytes()


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"depth": []}, "no point to draw"),
        ({"depth": [{"ratio": 1.0, "speed_up": 2.0}]}, r"depth.*ratio=1\.0"),
        ({"depth": [{"ratio": 0.5, "speed_up": 0.0}]}, r"speed_up=0\.0"),
    ],
)
def test_what_can_not_be_drawn_is_refused(series: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        speed_by_ratio(series, tmp_path / "no.png")


def test_the_script_measures_depth_and_width(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(["--output", str(tmp_path), "--repeats", "1", "--batch", "1", "--ratios", "0.5"])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [point["label"] for point in found["series"]["depth"]] == ["2"]
    (narrow,) = found["series"]["width"]
    assert abs(narrow["ratio"] - 0.5) < 0.02
    assert narrow["parameters"] < found["whole"]["parameters"]
    assert found["whole"]["speed_up"] == 1.0
    assert all(p["it_per_s"] > 0 for points in found["series"].values() for p in points)
    assert found["settings"]["dtype"] == "float32"
    assert (tmp_path / "speed.png").is_file()
    assert "written to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    {
        ("--ratios", "1.5"): "ratio=1.5 must be at least 0 and below 1",
        ("--depths", "4"): "depth 4 must be between 1 and 3",
        ("--depths", "0"): "depth 0 must be between 1 and 3",
        ("--round-to", "6"): "round_to=6 must be a multiple of 4",
        ("--batch", "0"): "'0' must be a whole number, at least 1",
        ("--repeats", "none"): "'none' must be a whole number, at least 1",
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_the_script_refuses_before_it_measures(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], options, message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        script.main(["--output", str(tmp_path / "none"), *options])
    assert left.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "none").exists()
