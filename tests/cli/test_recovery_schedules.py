"""Blocks that fade out in recovery, averaged starts and updates by importance, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tinyfusion as tf_api
from tinyfusion.recovery.fading import FadeOut, Fading
from tinyfusion.recovery.objective import Objective

STILL = ("training.recovery.learning_rate=1e-12", "training.recovery.learning_rate_end=null")
FADE, INVERSE, AVERAGED = "stages=fade_out", "updates=inverse_importance", "start=averaged"
SCORED = ("pruner=sensitivity", "pruner.num_samples=16", "keep=2")


@pytest.fixture
def decided(tmp_path: Path) -> str:
    """Override that keeps two of four blocks."""
    return f"decision={tf_api.Decision((0, 2), 4).save(tmp_path / 'decision.json')}"


def provenance(folder: Path, name: str = "recovered") -> dict:
    return json.loads((folder / name / "config.json").read_text())["provenance"]


def test_a_run_that_removes_blocks_in_recovery(tf, root) -> None:
    result = tf("run", *SCORED, FADE, INVERSE, f"hydra.run.dir={root}")
    assert result.status == 0, result.err
    decision = tf_api.Decision.load(root / "decision.json")
    for name in ("pruned", "recovered", "recovered_live"):
        net = tf_api.load(root / name)
        assert net.kept_from == decision.kept and net.depth == 2
    found = provenance(root)
    order = [f"blocks.{block}" for block in decision.scores["order"]]
    assert found["fade_out"] == {"order": order, "steps": [1, 2], "window": 1}
    assert f"{order[0]} at step 1, {order[1]} at step 2" in result.out
    # One share for each block of the whole model.
    assert len(found["block_rates"]) == 4 and max(found["block_rates"]) == 1.0
    assert [b for _, b in found["alignment"]] == [decision.kept[1] - 1, 3]


def test_a_given_decision_and_weights_that_stand_still(tf, root, model, decided) -> None:
    folders = {"fade": (FADE,), "kept": (), "mean": (AVERAGED,)}
    for name, more in folders.items():
        result = tf("recover", decided, *STILL, *more, f"hydra.run.dir={root / name}")
        assert result.status == 0, result.err
    nets = {name: tf_api.load(root / name / "recovered").state_dict() for name in folders}
    source = tf_api.load(model).state_dict()
    rest = "attn.qkv.weight"
    for name in ("fade", "kept"):
        for block, origin in enumerate((0, 2)):
            value, wanted = nets[name][f"blocks.{block}.{rest}"], source[f"blocks.{origin}.{rest}"]
            torch.testing.assert_close(value, wanted, atol=1e-6, rtol=0)
    mean = (source[f"blocks.0.{rest}"] + source[f"blocks.1.{rest}"]) / 2
    torch.testing.assert_close(nets["mean"][f"blocks.0.{rest}"], mean, atol=1e-6, rtol=0)
    assert provenance(root / "mean")["start"] == "averaged"
    rows = [json.loads((root / n / "metrics.json").read_text())["models"] for n in ("fade", "kept")]
    assert rows[0]["pruned"] == rows[1]["pruned"], "the row of the cut, not of the whole model"


def test_killed_amid_a_window_and_resumed_to_the_same_bytes(tf, root, decided, monkeypatch) -> None:
    steps = ("training.recovery.steps=8", "trainer.resume_every=3", FADE, decided)
    assert tf("recover", *steps, f"hydra.run.dir={root / 'whole'}").status == 0
    run_block, killed = Fading.run_block, []

    def until(fading, net, step):
        if step == 4 and not killed:
            killed.append(step)
            raise RuntimeError("killed")
        return run_block(fading, net, step)

    monkeypatch.setattr(Fading, "run_block", until)
    with pytest.raises(RuntimeError, match="killed"):
        tf("recover", *steps, f"hydra.run.dir={root / 'cut'}")
    assert (root / "cut/recover/resume.ckpt").is_file()
    result = tf("recover", f"resume={root / 'cut'}", exact=True)
    assert result.status == 0 and "resumed from" in result.out, result.err
    for name in ("recovered", "recovered_live"):
        file = f"{name}/model.safetensors"
        assert (root / "cut" / file).read_bytes() == (root / "whole" / file).read_bytes()


def test_rounds_take_all_of_them(tf, root) -> None:
    rounds = ("experiment=iterative", "iterative.depths=[3,2]", "scheme=null")
    for name, more in {"fade": (FADE,), "mean": (AVERAGED,)}.items():
        own = (*SCORED[:2], INVERSE, *more, f"hydra.run.dir={root / name}")
        result = tf("run", *rounds, *own)
        assert result.status == 0, result.err
        first = provenance(root / name, "round_1/recovered")
        last = provenance(root / name)
        assert len(first["block_rates"]) == (4 if more == (FADE,) else 3)
        assert ("fade_out" in last) == (more == (FADE,))
        assert tf_api.load(root / name / "recovered").depth == 2


def test_a_dry_run_counts_the_whole_model(tf) -> None:
    sizes = {}
    for stages in (FADE, "stages=none"):
        result = tf("run", *SCORED, INVERSE, stages, "dry_run=true")
        assert result.status == 0, result.err
        trained = [line for line in result.out.splitlines() if "parameters are trained" in line]
        sizes[stages] = int(trained[-1].split()[0].replace(",", ""))
    assert sizes[FADE] > 1.5 * sizes["stages=none"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    {
        (FADE, "start=fresh"): "start=fresh: this recovery begins with the whole model",
        (FADE, AVERAGED): "start=averaged: this recovery begins with the whole model",
        (
            FADE,
            "pruner=diff_pruning",
            "pruner.round_to=4",
            "recovery=kd",
        ): "a pruner of widths removes none",
        (
            AVERAGED,
            "pruner=diff_pruning",
            "pruner.round_to=4",
            "recovery=kd",
        ): "start=averaged takes means of blocks",
        (FADE, "recovery.stages.share=2"): "recovery.stages.share=2 must be more than 0",
        (FADE, "training.recovery.steps=1"): "training.recovery.steps=1 leaves no step",
        (INVERSE, "start=fresh"): "start=fresh: all weights are new, so that no block is important",
        (
            INVERSE,
            "pruner=diff_pruning",
            "pruner.round_to=4",
            "recovery=kd",
        ): "which a pruner of widths does not give",
        (INVERSE, "recovery.updates.least=3"): "recovery.updates.least=3",
        ("recovery.updates=3",): "recovery.updates=3 must be a configuration with a _target_",
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_before_any_work(tf, root, overrides, message) -> None:
    result = tf("run", *overrides)
    assert result.status == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) == 1 and not list(root.rglob("*.json"))


def test_a_decision_without_scores_is_refused_first(tf, root, decided) -> None:
    for command in ("run", "recover"):
        result = tf(command, INVERSE, decided)
        assert result.status == 2 and "'indices' holds none as scores of its blocks" in result.err
        assert not list(root.rglob("resume.ckpt")) and not list(root.rglob("recovered"))


def test_a_cut_model_alone_does_not_say_what_was_removed(tf, root) -> None:
    for more, message in {
        FADE: "give the whole model as checkpoint= with decision=PATH",
        AVERAGED: "give the whole model as checkpoint= with decision=PATH",
        INVERSE: "takes the scores of a decision: give decision=PATH",
    }.items():
        result = tf("recover", "teacher.path=null", "recovery=finetune", more)
        assert result.status == 2 and message in result.err, result.err


def test_from_python(make_model, tmp_path) -> None:
    net = tf_api.load(make_model(tmp_path / "net"))
    images = torch.randn(16, 1, 8, 8)
    batches = [(images, torch.arange(16) % 10)]
    decision = tf_api.Decision((0, 2), 4)
    objective = Objective(stages=FadeOut())
    student = tf_api.recover(
        net, batches, objective=objective, decision=decision, steps=4, batch_size=16
    )
    assert student.kept_from == (0, 2) and net.depth == 4
    x, t, y = images[:2], torch.tensor([5, 500]), torch.tensor([0, 1])
    assert student(x, t, y).isfinite().all()
