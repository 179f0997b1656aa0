"""Training from scratch, and freezing at first, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tinyfusion as tf_api

STILL = "training.recovery.learning_rate=1e-12"
"""A rate at which weights stay what they were at the start."""
SEAMS = "stages=seams_first"


@pytest.fixture
def decided(tmp_path: Path) -> str:
    """Override that keeps three of four blocks."""
    return f"decision={tf_api.Decision((0, 2, 3), 4).save(tmp_path / 'decision.json')}"


def provenance(folder: Path) -> dict:
    return json.loads((folder / "recovered/config.json").read_text())["provenance"]


def test_the_shallow_architecture_from_scratch(tf, root, model, decided) -> None:
    constant = "training.recovery.learning_rate_end=null"
    for name, more in {"a": (), "b": (), "seed": ("seed=1",), "kept": ("start=kept",)}.items():
        own = (*more, f"hydra.run.dir={root / name}")
        result = tf("recover", decided, STILL, constant, "start=fresh", *own)
        assert result.status == 0, result.err
    nets = {name: tf_api.load(root / name / "recovered") for name in ("a", "b", "seed", "kept")}
    assert all(net.kept_from == (0, 2, 3) and net.depth == 3 for net in nets.values())
    weight = "blocks.1.attn.qkv.weight"
    values = {name: net.state_dict()[weight] for name, net in nets.items()}
    assert torch.equal(values["a"], values["b"])
    assert not torch.allclose(values["a"], values["seed"], atol=1e-3)
    source = tf_api.load(model).state_dict()["blocks.2.attn.qkv.weight"]
    torch.testing.assert_close(values["kept"], source, atol=1e-6, rtol=0)
    assert not torch.allclose(values["a"], source, atol=1e-3)
    # The class's own start: gates of 0, as this file says nothing else.
    bias = nets["a"].state_dict()["blocks.1.adaLN_modulation.1.bias"]
    assert float(bias.abs().max()) < 1e-6
    assert provenance(root / "a")["start"] == "fresh"
    assert provenance(root / "kept")["start"] == "kept"
    # Blocks are paired by the places that they stand for.
    assert provenance(root / "a")["alignment"] == [[0, 1], [1, 2], [2, 3]]


def test_start_values_that_the_backbone_is_configured_with(tf, root, decided) -> None:
    sizes = ("backbone.depth=4", "backbone.hidden_size=16", "backbone.num_heads=2")
    given = ("backbone=dit_digits", *sizes, "recovery=kd", "start=fresh", STILL)
    constant = "training.recovery.learning_rate_end=null"
    result = tf("recover", *given, decided, constant, f"hydra.run.dir={root}")
    assert result.status == 0, result.err
    bias = tf_api.load(root / "recovered").state_dict()["blocks.1.adaLN_modulation.1.bias"]
    assert float(bias.max()) == pytest.approx(1.5, abs=1e-6)


def test_seams_first_says_what_it_trains(tf, root, decided) -> None:
    stages = (SEAMS, "recovery.stages.share=0.5", "recovery.stages.also=[final]")
    result = tf("recover", *stages, decided, "recovery=kd", f"hydra.run.dir={root}")
    assert result.status == 0, result.err
    assert "until step 2 " in result.out
    assert "the 2 of 3 blocks next to a removal, and final; then" in result.out
    assert provenance(root)["first_stage_steps"] == 2


def test_weights_of_the_pairs_are_measured_and_recorded(tf, root, decided) -> None:
    more = ("recovery=laptop_kd", "recovery.calibration_samples=8", f"hydra.run.dir={root}")
    result = tf("recover", decided, *more)
    assert result.status == 0, result.err
    weights = provenance(root)["feature_weights"]
    assert len(weights) == len(provenance(root)["alignment"]) == 3
    assert min(weights) == 1.0 and max(weights) > 1.01


@pytest.mark.parametrize(
    ("overrides", "message"),
    {
        ("start=cold",): "start='cold' is not known; valid: kept, fresh",
        ("start=fresh", SEAMS): "start=fresh: all weights are new",
        (SEAMS, "recovery.stages.share=1.5"): "recovery.stages.share=1.5",
        ("recovery.stages=3",): "recovery.stages=3 must be a configuration with a _target_",
        (SEAMS, "recovery.stages.also=[nothing]"): "'nothing' is part of no",
        (SEAMS, "recovery.stages.also=adaLN"): "must be a list",
        (SEAMS, "training.recovery.steps=1"): "can't be divided into",
        ("recovery=laptop_kd", "recovery.feature_scale=all"): "recovery.feature_scale='all'",
        (
            SEAMS,
            "pruner=diff_pruning",
            "pruner.round_to=4",
            "recovery=kd",
        ): "a pruner of widths removes none",
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_before_any_work(tf, root, overrides, message) -> None:
    result = tf("run", *overrides)
    assert result.status == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) == 1 and not list(root.rglob("*.json"))


def test_a_model_without_removed_blocks_has_no_seams(tf, root) -> None:
    result = tf("recover", "teacher.path=null", "recovery=finetune", SEAMS)
    assert result.status == 2 and "no removed block is known; give stages=none" in result.err
    assert not list(root.rglob("*.json"))
