"""`tinyfusion benchmark` from end to end on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tinyfusion.cli import main


def read(folder: Path) -> dict:
    return json.loads((folder / "benchmark.json").read_text())


def test_models_and_cuts_of_the_first(tf, root, only_run, tmp_path, make_model) -> None:
    deep = make_model(tmp_path / "a/recovered", depth=8, width=32)
    other = make_model(tmp_path / "b/recovered", depth=2, width=32)
    result = tf("benchmark", f"models=[{deep},{other}]", "depths=[4,2]", "widths=[0.5]")
    assert result.status == 0, result.err
    folder = only_run("benchmark")
    assert {file.name for file in folder.iterdir()} == {
        "benchmark.json",
        "command.txt",
        "config.yaml",
        "finished.json",
        "run.log",
        "speed.json",
        "speed.pdf",
        "speed.png",
        "speed.svg",
        "table.md",
    }
    content = read(folder)
    rows = {row["model"]: row for row in content["rows"]}
    first, second, half, quarter, narrow = rows.values()
    assert [*rows][:3] == ["a/recovered", "b/recovered", "a/recovered, 4 blocks"]
    assert [row["depth"] for row in rows.values()] == [8, 2, 4, 2, 8]
    assert second["parameters"] == quarter["parameters"] and second["macs"] == quarter["macs"]
    assert first["speed_up"] == 1.0 and all(row["it_per_s"] > 0 for row in rows.values())
    # Two images, as SMALL says, in two evaluations.
    for row in rows.values():
        assert row["evaluations"] == 2 and row["weights"] == (
            "random" if row is narrow else "checkpoint"
        )
        assert row["images_per_s"] == pytest.approx(row["it_per_s"])
        assert row["peak_memory_bytes"] > 4 * row["parameters"]
    settings = content["settings"]
    assert (settings["batch_size"], settings["rounds"], settings["threads"]) == (2, 1, 1)
    assert settings["sampler"] == "AncestralSampler(steps=2)" and settings["guidance"] == 1.5
    figure = json.loads((folder / "speed.json").read_text())
    assert [point["label"] for point in figure["series"]["depth"]] == ["4", "2"]
    assert figure["series"]["width"][0]["ratio"] == pytest.approx(0.5, abs=0.1)
    assert figure["series"]["depth"][0]["speed_up"] == half["speed_up"]
    assert [row["model"] for row in figure["whole"]] == ["a/recovered"]
    text = (folder / "table.md").read_text()
    for said in ("it/s: sampling steps of one batch per second", "batch 2, guidance 1.5", "thread"):
        assert said in text and said in " ".join(result.out.split("\n"))
    assert "| a/recovered, 4 blocks |" in text and " mode " not in text


def test_without_cuts_there_is_no_figure(tf, only_run) -> None:
    assert tf("benchmark").status == 0
    folder = only_run("benchmark")
    assert not (folder / "speed.json").exists() and not (folder / "speed.png").exists()
    (row,) = read(folder)["rows"]
    assert row["depth"] == 4


def test_eager_and_compiled_stand_side_by_side(tf, only_run) -> None:
    compiled = ("trainer.compile=true", "trainer.compile_backend=eager")
    result = tf("benchmark", *compiled, "depths=[2]", "trainer.precision=bf16-mixed")
    assert result.status == 0, result.err
    folder = only_run("benchmark")
    content = read(folder)
    assert [(row["depth"], row["compiled"]) for row in content["rows"]] == [
        (4, False),
        (2, False),
        (4, True),
        (2, True),
    ]
    assert content["settings"]["compile_backend"] == "eager"
    assert content["settings"]["precision"] == "bf16-mixed"
    series = json.loads((folder / "speed.json").read_text())["series"]
    assert set(series) == {"depth", "depth, compiled"}
    text = (folder / "table.md").read_text()
    assert " eager " in text and " compiled " in text


def test_narrowed_presets_say_so(tf, only_run) -> None:
    narrow = ("hidden_size=16", "num_heads=2", "input_size=4")
    result = tf("benchmark", "models=[dit_s_2]", *narrow)
    assert result.status == 0, result.err
    (row,) = read(only_run("benchmark"))["rows"]
    # DiT-S/2 as published, the fixed position table included.
    assert row["preset_parameters"] == 32_963_360 > row["parameters"]
    assert row["preset_macs"] / 1e9 == pytest.approx(6.06, abs=0.01)  # DiT paper, table 4
    assert "presets narrowed: hidden_size=16, num_heads=2, input_size=4" in " ".join(
        result.out.split()
    )


@pytest.mark.parametrize(
    ("backbone", "fewer"),
    [
        pytest.param("sit_digits", ("sampler.steps=1",), marks=pytest.mark.slow),
        ("mar_digits", ("sampler.iterations=2", "sampler.head_steps=2")),
    ],
)
def test_other_families(root, only_run, backbone, fewer) -> None:
    overrides = (f"output_root={root}", f"backbone={backbone}", *fewer, "batch_size=2", "rounds=1")
    assert main(["benchmark", *overrides, "depths=[2]"]) == 0
    rows = read(only_run("benchmark"))["rows"]
    assert [row["model"] for row in rows] == [backbone, f"{backbone}, 2 blocks"]
    assert all(row["evaluations"] == 2 for row in rows)


def test_models_are_found_from_any_folder(tf, only_run, tmp_path, make_model, monkeypatch) -> None:
    make_model(tmp_path / "mine", depth=2)
    (tmp_path / "dit_s_2").mkdir()  # no model: the preset is meant
    monkeypatch.chdir(tmp_path)
    narrow = ("hidden_size=16", "num_heads=2", "input_size=8")
    result = tf("benchmark", "models=[mine,dit_s_2]", *narrow)
    assert result.status == 2 and "of (4, 8, 8)" in result.err
    assert tf("benchmark", "models=[mine]").status == 0
    config = yaml.safe_load((only_run("benchmark") / "config.yaml").read_text())
    assert config["models"] == [str(tmp_path / "mine")]


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["models=[nothing]"], "'nothing' does not exist"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["rounds=0"], "rounds=0 must be at least 1"),
        (["depths=[x]"], "depths=['x'] must be a list of whole numbers"),
        (["depths=[4]"], "4 must be between 1 and 3"),
        (["sampler.steps=2000"], "2000"),
        (["guidance.channels=2"], "guidance channels=2, but the data has 1 channel"),
        (["guidance.scale=-1"], "guidance.scale=-1 must"),
        (["trainer.compile=true", "trainer.compile_backend=fast"], "compile_backend='fast'"),
        (["data=digits"], "unknown key 'data'"),
        (["model=[digits]"], "did you mean 'models'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_leaves_nothing(tf, root, overrides, fragment) -> None:
    result = tf("benchmark", *overrides)
    assert result.status == 2 and not root.exists()
    (line,) = result.err.strip().splitlines()
    assert fragment in line
    assert "round 1" not in result.out


def test_models_that_do_not_fit_into_memory(tf, root, monkeypatch) -> None:
    monkeypatch.setattr("tinyfusion.commands.benchmark.available_memory", lambda device: 1000)
    result = tf("benchmark")
    assert result.status == 2 and not root.exists()
    assert "cpu has 0.98 KiB free" in result.err


def test_help_says_what_a_step_is(capsys) -> None:
    assert main(["benchmark", "--help"]) == 0
    out = capsys.readouterr().out
    assert "it/s: sampling steps of one batch per second" in out and "figure_4" in out
