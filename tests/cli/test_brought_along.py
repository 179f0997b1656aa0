"""A checkpoint brings its process and sampler along; what is given still wins, and is said."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch

from tinyfusion.backbones.sit import SiT
from tinyfusion.checkpoints import load, save_model
from tinyfusion.commands.composing import brought_groups
from tinyfusion.settings.brought import TRAINED_WITH, brought_along

SIT = ["process=sit", "sampler=ode_heun_10"]


@pytest.mark.parametrize(
    ("command", "checkpoint", "brought"),
    [
        ("sample", "digits", []),
        ("sample", "sit_digits", SIT),
        ("run", "sit_digits", [*SIT, "recovery=masked_kd_sit"]),
        ("recover", "mar_digits", ["process=mar_pixels", "sampler=mar_16", "training=mar_digits"]),
        ("activations", "mar_digits", ["process=mar_pixels"]),
        ("evaluate", "mar_digits", ["process=mar_pixels", "sampler=mar_16"]),
        ("benchmark", "sit_xl_2_d14", ["process=sit", "sampler=sde_euler_250"]),
        ("sample", "no/such/file", []),
    ],
)
def test_packaged_models_bring_what_their_backbone_chooses(command, checkpoint, brought) -> None:
    assert sorted(brought_along(command, checkpoint, [])) == sorted(brought)


@pytest.mark.parametrize(
    ("given", "brought"),
    [
        (["n=4", "sampler.steps=3"], SIT),
        (["process=sit_gvp"], SIT[1:]),
        (["sampler=ode_dopri5"], SIT[:1]),
        (["backbone=sit"], []),
        (["experiment=imagenet/tinysit_d14"], []),
        (["experiment=mine"], SIT[1:]),
        (["experiment=values"], SIT),
    ],
)
def test_what_is_given_is_left_alone(given, brought, tmp_path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text("defaults:\n  - override /process: sit_vp\n")
    (folder / "values.yaml").write_text("# @package _global_\nsampler:\n  steps: 3\n")
    assert brought_along("sample", "sit_digits", given, [tmp_path]) == brought


@pytest.mark.parametrize("models", ["[mar_digits]", "[mar_digits,digits]", "['mar_digits']"])
def test_the_first_of_several_models_brings_what_values_are_given_of(models) -> None:
    given = [f"models={models}", "sampler.iterations=2"]
    assert brought_groups("benchmark", given, []) == ["process=mar_pixels", "sampler=mar_16"]
    assert brought_groups("benchmark", [*given, "models=[digits]"], []) == ["process=ddpm_pixels"]


def test_a_value_of_a_group_without_choice_is_named_whole(tf) -> None:
    result = tf("run", "backbone.depth=3")
    assert result.status == 2
    assert "unknown key 'backbone.depth': the chosen configuration does not have" in result.err


def test_recorded_values_are_written_as_overrides_and_nothing_else_is(tmp_path) -> None:
    net = load("sit_digits")
    process = {
        "_target_": "tinyfusion.processes.interpolant.Interpolant",
        "path": "gvp",
        "prediction": "velocity",
        "loss_weight": None,
        "train_eps": 0.01,
        "sample_eps": None,
    }
    save_model(net, tmp_path, {TRAINED_WITH: {"process": process}})
    assert brought_along("sample", str(tmp_path), []) == [
        "process=sit_gvp",
        "++process.train_eps=0.01",
        "sampler=ode_heun_10",
    ]
    # No class that only a file names, and no text that means something to a configuration.
    save_model(net, tmp_path, {TRAINED_WITH: {"process": {**process, "_target_": "os.system"}}})
    assert brought_along("sample", str(tmp_path), []) == SIT
    hostile = process | {
        "train_eps": "${oc.env:HOME}",
        "path": "x=1,y",
        "sample_eps": {"_target_": 1},
    }
    save_model(net, tmp_path, {TRAINED_WITH: {"process": hostile}})
    assert all("$" not in o and "x=1" not in o for o in brought_along("sample", str(tmp_path), []))


def test_training_files_bring_what_their_arguments_say(tmp_path) -> None:
    state = load("sit_digits").state_dict()
    args = argparse.Namespace(model="SiT-XL/2", path_type="GVP", prediction="velocity")
    torch.save({"ema": state, "args": args}, tmp_path / "sit.pt")
    found = brought_along("sample", str(tmp_path / "sit.pt"), [])
    assert found == ["process=sit_gvp", "sampler=ode_heun_10"]
    torch.save(state, tmp_path / "bare.pt")  # it may be a DiT
    assert brought_along("sample", str(tmp_path / "bare.pt"), []) == []


def test_a_model_of_another_size_brings_the_sampler_that_it_was_trained_with(tmp_path) -> None:
    net = load("sit_digits")
    net.keep_blocks([0, 3])
    save_model(net, tmp_path / "pruned", {})
    assert brought_along("sample", str(tmp_path / "pruned"), []) == SIT
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    config["arguments"]["num_classes"] = 7
    sampler = {"_target_": "tinyfusion.samplers.ode.ODESampler", "method": "euler", "steps": 7}
    process = {"_target_": "tinyfusion.processes.interpolant.Interpolant", "path": "linear"}
    config["provenance"][TRAINED_WITH] = {"process": process, "sampler": sampler}
    (tmp_path / "pruned" / "config.json").write_text(json.dumps(config))
    assert brought_along("sample", str(tmp_path / "pruned"), []) == [
        "process=sit",
        "sampler=ode_euler_50",
        "++sampler.steps=7",
    ]


def test_a_model_folder_of_a_run_works_alone(tf, root: Path, tmp_path, caplog) -> None:
    net = SiT(8, 2, 1, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    save_model(net, tmp_path / "sit", {})
    folder = root / "first"
    result = tf(
        *("prune", f"checkpoint={tmp_path / 'sit'}", "pruner=uniform", "keep=1"),
        *("process.sample_eps=0.01", "sampler=ode_heun_25", "trainer.threads=1"),
        f"hydra.run.dir={folder}",
        exact=True,
    )
    assert result.status == 0, result.err
    record = json.loads((folder / "pruned" / "config.json").read_text())["provenance"]
    assert record[TRAINED_WITH]["process"]["sample_eps"] == 0.01
    assert record[TRAINED_WITH]["sampler"]["method"] == "heun2"
    again = [f"checkpoint={folder / 'pruned'}", "n=2", "trainer.threads=1", f"output_root={root}"]
    result = tf("sample", *again, "sampler.steps=1", exact=True)
    assert result.status == 0, result.err
    said = result.out + result.err + caplog.text
    assert "brings process=sit process.sample_eps=0.01 sampler=ode_heun_25" in said
    caplog.clear()
    result = tf("sample", *again, "sampler.steps=1", "process=sit_gvp", exact=True)
    said = result.out + result.err + caplog.text
    assert "records process.path=linear, but it is run with process.path=gvp" in said
    result = tf("sample", *again, "process=ddpm_pixels", exact=True)
    assert result.status == 2 and "without process= a model folder brings its own" in result.err


def test_every_job_of_a_sweep_has_its_own(tf, root: Path) -> None:
    result = tf(
        *("sample", "-m", "checkpoint=sit_digits,mar_digits", "n=1", f"output_root={root}"),
        *("trainer.threads=1", "batch_size=1"),
        exact=True,
    )
    assert result.status == 0, result.err
    configs = [file.read_text() for file in sorted(root.rglob("config.yaml"))]
    assert ["Interpolant" in text for text in configs] == [False, True]


def test_a_class_of_ones_own_is_found_by_its_configuration(two_streams, tmp_path) -> None:
    (tmp_path / "backbone").mkdir()
    name = f"{two_streams.__name__}.TwoStreams"
    chosen = "# @package _global_\ndefaults:\n  - override /sampler: ddpm_20\n"
    text = f"{chosen}backbone:\n  _target_: {name}\n  depth: 9\n"
    (tmp_path / "backbone" / "mine.yaml").write_text(text)
    save_model(two_streams.TwoStreams(), tmp_path / "model", {})
    found = brought_along("sample", str(tmp_path / "model"), [], [tmp_path])
    assert found == ["backbone=mine", "~backbone.depth", "sampler=ddpm_20"]
    assert brought_along("sample", str(tmp_path / "model"), []) == []


def test_a_teacher_that_was_trained_otherwise_is_told(tf, tmp_path, caplog) -> None:
    process = {"_target_": "tinyfusion.processes.gaussian.GaussianDiffusion", "num_steps": 500}
    save_model(load("digits"), tmp_path / "teacher", {TRAINED_WITH: {"process": process}})
    with caplog.at_level(logging.WARNING):
        result = tf("activations", "checkpoint=digits", f"teacher.path={tmp_path / 'teacher'}")
    assert result.status == 0, result.err
    said = "records process.num_steps=500, but it is run with process.num_steps=1000"
    assert said in result.out + result.err + caplog.text
