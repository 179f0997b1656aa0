"""`tinyfusion activations` from end to end on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import tinyfusion as tf_api
from tinyfusion.backbones.contract import forward_with_states
from tinyfusion.checkpoints import load
from tinyfusion.data.digits import Digits
from tinyfusion.metrics.activations import noised_batches
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.recovery.features import feature_distance


def refused(result, root: Path, *fragments: str) -> None:
    assert result.status == 2, result.err
    assert result.err.count("\n") == 1
    for fragment in fragments:
        assert fragment in result.err, result.err
    assert not root.exists()


@pytest.fixture
def pruned(model: Path, tmp_path: Path) -> Path:
    """Blocks 1 and 2 of the four."""
    tf_api.save_model(tf_api.prune(tf_api.load(model), [1, 2]), tmp_path / "pruned", {})
    return tmp_path / "pruned"


def test_one_model_alone(tf, only_run) -> None:
    result = tf("activations")
    assert result.status == 0, result.err
    folder = only_run("activations")
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "activations.json",
        "activations.pdf",
        "activations.png",
        "activations.svg",
        "command.txt",
        "config.yaml",
        "finished.json",
        "run.log",
    }
    found = json.loads((folder / "activations.json").read_text())
    assert list(found["models"]) == ["model"] and found["pairs"] == []
    blocks = found["models"]["model"]["blocks"]
    assert [block["block"] for block in blocks] == [0, 1, 2, 3]
    assert all(block["count"] == 16 * 16 * 16 == sum(block["histogram"]) for block in blocks)
    assert len(found["edges"]) == len(blocks[0]["histogram"]) + 1
    assert found["settings"]["num_sigmas"] == [0.1, 2.0, 4.0]
    assert found["settings"]["precision"] == "float32"
    assert blocks[0]["dropped"]["0.1"] > blocks[0]["dropped"]["2"] > 0
    assert "> 2 sigma" in result.out and "model, all blocks" in result.out
    assert "unpruned" not in result.out and "unmasked" not in result.out
    assert Image.open(folder / "activations.png").size == (288, 224)


def test_student_and_teacher(tf, only_run, model, pruned) -> None:
    result = tf("activations", f"checkpoint={pruned}", f"teacher.path={model}", "num_sigmas=[3,1]")
    assert result.status == 0, result.err
    found = json.loads((only_run("activations") / "activations.json").read_text())
    assert list(found["models"]) == ["teacher", "student"]
    places = [block["place"] for block in found["models"]["student"]["blocks"]]
    assert places == found["models"]["student"]["kept_from"] == [1, 2]
    pairs = [(pair["student_block"], pair["teacher_block"]) for pair in found["pairs"]]
    assert pairs == [(0, 1), (1, 3)]
    for pair in found["pairs"]:
        assert list(pair["dropped_by_either"]) == ["1", "3"]
        mine = found["models"]["student"]["blocks"][pair["student_block"]]
        theirs = found["models"]["teacher"]["blocks"][pair["teacher_block"]]
        for key, either in pair["dropped_by_either"].items():
            alone = mine["dropped"][key], theirs["dropped"][key]
            assert max(alone) <= either <= sum(alone)
    assert "unpruned" in result.out and "intersection 3" in result.out


def test_figures_are_those_of_the_states_themselves(tf, only_run, model, pruned) -> None:
    student, teacher = load(str(pruned)), load(str(model))
    assert tf("activations", f"checkpoint={pruned}", f"teacher.path={model}").status == 0
    found = json.loads((only_run("activations") / "activations.json").read_text())
    (seen,) = noised_batches(GaussianDiffusion(clip=True), Digits(), 16, 16, 0)
    with torch.no_grad():
        _, mine = forward_with_states(student, *seen, range(2))
        _, theirs = forward_with_states(teacher, *seen, range(4))
    block = found["models"]["teacher"]["blocks"][2]
    assert block["max"] == pytest.approx(float(theirs[2].max()), rel=1e-4)
    assert block["std"] == pytest.approx(float(theirs[2].std()), rel=1e-4)
    distance = feature_distance(mine[1], theirs[3], "separate", 2.0).mean()
    assert found["pairs"][1]["distance"]["separate"]["2"] == pytest.approx(
        float(distance), rel=1e-3
    )


def test_groups_of_the_decision_choose_the_pairs(tf, only_run, tmp_path, model) -> None:
    """The decision that the recovery recorded decides, as it did there."""
    decision = tf_api.Decision((0, 3), 4, scheme=[[2, 4]]).save(tmp_path / "decision.json")
    assert tf("recover", f"decision={decision}").status == 0
    recovered = only_run("recover") / "recovered"
    used = json.loads((recovered / "config.json").read_text())["provenance"]["alignment"]
    assert tf("activations", f"checkpoint={recovered}", f"teacher.path={model}").status == 0
    found = json.loads((only_run("activations") / "activations.json").read_text())
    pairs = [[pair["student_block"], pair["teacher_block"]] for pair in found["pairs"]]
    # A decision without groups would give one more.
    assert pairs == used == [[1, 3]]


def test_two_models_of_one_depth(tf, only_run, tmp_path, make_model) -> None:
    other = make_model(tmp_path / "other", seed=1)
    assert tf("activations", f"teacher.path={other}").status == 0
    found = json.loads((only_run("activations") / "activations.json").read_text())
    pairs = [(pair["student_block"], pair["teacher_block"]) for pair in found["pairs"]]
    assert pairs == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert all(pair["distance"]["none"] > 0 for pair in found["pairs"])


@pytest.mark.parametrize("family", ["sit", "mar"])
def test_other_families(tf, only_run, family) -> None:
    overrides = (f"backbone={family}_digits", f"checkpoint={family}_digits", "samples=8")
    result = tf("activations", *overrides)
    assert result.status == 0, result.err
    found = json.loads((only_run("activations") / "activations.json").read_text())
    assert found["models"]["model"]["depth"] == {"sit": 28, "mar": 32}[family]
    assert found["models"]["model"]["whole"]["non_finite"] == 0


def test_scalars_and_figure_are_tracked(tf, only_run, model, pruned) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    both = (f"checkpoint={pruned}", f"teacher.path={model}")
    assert tf("activations", *both, "logger=tensorboard").status == 0
    folder = only_run("activations")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["activations"]
    found = json.loads((folder / "activations.json").read_text())["models"]["teacher"]["whole"]
    logged = events.Scalars("teacher/max")[0].value
    assert logged == pytest.approx(found["max"], rel=1e-6)
    assert {"student/std", "student/dropped_2_sigma"} <= set(events.Tags()["scalars"])


def test_broken_weights_are_pointed_out(tf, only_run, tmp_path, model) -> None:
    net = tf_api.load(model)
    with torch.no_grad():
        net.blocks[2].mlp.fc2.weight.mul_(1e38)
        net.blocks[2].mlp.fc1.weight.mul_(1e38)
    tf_api.save_model(net, tmp_path / "broken", {})
    result = tf("activations", f"checkpoint={tmp_path / 'broken'}")
    assert result.status == 0, result.err
    assert "hidden states of the model are no finite numbers" in result.out
    found = json.loads((only_run("activations") / "activations.json").read_text())
    blocks = found["models"]["model"]["blocks"]
    assert [block["non_finite"] > 0 for block in blocks] == [False, False, True, True]


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["samples=0"], ["samples=0 must be at least 1"]),
        (["samples=100000"], ["samples=100000", "training images", "or fewer"]),
        (["batch_size=0"], ["batch_size=0 must be at least 1"]),
        (["num_sigmas=[]"], ["num_sigmas=[] names no threshold"]),
        (["num_sigmas=[2,0]"], ["num_sigmas=[0,2]: 0 is no number of deviations"]),
        (["num_sigmas=two"], ["num_sigmas"]),
        (["teacher=from_source"], ["teacher.path=source", "teacher.path=PATH"]),
        (["teacher.path=absent"], ["'absent' does not exist"]),
        (["checkpoint=null"], ["checkpoint= must be given"]),
        (["sampler=ddim_50"], ["unknown key 'sampler' for 'tinyfusion activations'"]),
        (["backbone=sit_digits"], ["is a 'dit', but backbone='sit' was given"]),
    ],
)
def test_what_can_not_be_done_is_refused(tf, root, overrides, fragments) -> None:
    refused(tf("activations", *overrides), root, *fragments)


def test_teachers_that_can_not_be_compared(tf, root, tmp_path, make_model, model, pruned) -> None:
    wide = make_model(tmp_path / "wide", width=32)
    result = tf("activations", f"teacher.path={wide}")
    refused(result, root, "hidden_size: 16 and 32", "with teacher=none")
    # Three blocks that nobody knows the origin of.
    three = make_model(tmp_path / "three", depth=3)
    result = tf("activations", f"checkpoint={three}", f"teacher.path={model}")
    refused(result, root, "(3 blocks)", "(4 blocks)", "which blocks")
    tf_api.save_model(tf_api.DiT(8, 2, 3, 16, 4, 2, num_classes=10), tmp_path / "colour", {})
    result = tf("activations", f"teacher.path={tmp_path / 'colour'}")
    refused(result, root, "in_channels=3 but the data has 1")
    result = tf("activations", f"checkpoint={tmp_path / 'colour'}")
    refused(result, root, "in_channels=3 but the data has 1")
