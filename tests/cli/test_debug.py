"""The ``debug=`` presets, and values for a group that is left out."""

from __future__ import annotations

import pytest

import tinyfusion as tf_api
from tinyfusion.errors import InputError
from tinyfusion.training.settings import PhaseSettings, TrainerSettings, TrainingSettings

COMMANDS = ("pretrain", "prune", "recover", "run")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_phase_is_two_steps(command: str, tf, only_run, tmp_path) -> None:
    decided = ()
    if command == "recover":
        decided = (f"decision={tf_api.Decision((0, 2), 4).save(tmp_path / 'kept.json')}",)
    result = tf(command, "debug=default", *decided)
    assert result.status == 0, result.err
    said = (only_run(command) / "run.log").read_text().splitlines()
    phases = [line for line in said if "steps x global batch" in line]
    assert len(phases) == (2 if command == "run" else 1)
    assert all(": 2 steps x global batch 8 = 16 images" in line for line in phases)
    assert not list(only_run(command).rglob("resume.ckpt"))


def test_a_profile_is_left_in_the_folder_of_every_phase(tf, only_run) -> None:
    result = tf("run", "debug=profiler", "evaluation=none", "training.max_steps=2", small=False)
    assert result.status == 0, result.err
    for phase in ("prune", "recover"):
        text = (only_run("run") / phase / "fit-profile.txt").read_text()
        assert "optimizer_step" in text and "Total time" in text


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_anomaly_detection_names_the_operation_of_a_nan(tf) -> None:
    rate = "training.mask_learning.learning_rate=1e30"
    with pytest.raises(RuntimeError, match=r"'\w+Backward\d+' returned nan"):
        tf("prune", "debug=anomaly", rate)


def test_only_commands_that_train_have_presets(tf) -> None:
    result = tf("evaluate", "debug=default")
    assert result.status == 2 and "unknown key 'debug'" in result.err
    result = tf("run", "debug=nothing")
    assert result.status == 2 and "valid: anomaly, default, profiler" in result.err


def test_settings_of_presets_are_checked() -> None:
    with pytest.raises(InputError, match=r"trainer\.profiler=slow .* simple, advanced"):
        TrainerSettings(profiler="slow")
    with pytest.raises(InputError, match=r"training\.max_steps=0 must be at least 1"):
        PhaseSettings(max_steps=0)
    longer = TrainingSettings(steps=100, batch_size=8, warm_up=50)
    cut = PhaseSettings(recovery=longer, max_steps=10).of("recovery")
    assert (cut.steps, cut.warm_up, cut.batch_size) == (10, 9, 8)
    assert PhaseSettings(recovery=longer, max_steps=100).of("recovery") == longer


NOTED = "evaluation.num_samples= changes nothing: evaluation=none leaves that out"


@pytest.mark.parametrize("value", ["evaluation.num_samples=20", "++evaluation.num_samples=20"])
def test_values_of_a_group_that_is_left_out_are_noted(value: str, tf, only_run, caplog) -> None:
    result = tf("run", "evaluation=none", value, "pruner=first", "debug=default", small=False)
    assert result.status == 0, result.err
    assert NOTED in caplog.text
    assert not (only_run("run") / "samples.png").exists()


def test_a_sweep_may_leave_a_group_out_in_one_run(tf, root, caplog) -> None:
    values = ("evaluation=none,digits", "evaluation.num_samples=20")
    result = tf("run", "-m", *values, "pruner=first", "debug=default", small=False)
    assert result.status == 0, result.err
    assert caplog.text.count(NOTED) >= 1
    assert len(list(root.glob("run/*/*/metrics.json"))) == 2
    assert len(list(root.glob("run/*/*/samples.png"))) == 1
