"""Budgets and branches as commands: what is asked for, what is met, what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import tinyfusion as tf_api
from tinyfusion.metrics.speed import macs, parameters

SIMPLE = "tinyfusion.gating.draws.ConditionalBernoulli"
BRANCHES = ("units=branches", "keep=5")


@pytest.mark.parametrize("pruner", ["learned", "sensitivity"])
def test_branches_are_pruned_recovered_scored_and_sampled(tf, only_run, pruner: str) -> None:
    result = tf("run", *BRANCHES, f"pruner={pruner}")
    assert result.status == 0, result.err
    decision = tf_api.Decision.load(only_run("run") / "decision.json")
    gone = [*decision.removed, *(f"blocks.{n}" for n in range(4) if n not in decision.kept)]
    assert len(decision.removed) + 2 * (4 - len(decision.kept)) == 3, gone
    student = tf_api.load(only_run("run") / "recovered")
    held = [name for block in student.blocks for name in block.branches()]
    assert len(held) == 5
    sampled = tf("sample", f"checkpoint={only_run('run') / 'recovered'}", "n=2")
    assert sampled.status == 0, sampled.err
    exported = tf(
        "convert", str(only_run("run") / "recovered"), str(only_run("run") / "out"),
        "--to", "diffusers", small=False, exact=True,
    )  # fmt: skip
    assert exported.status == 2 and "branch" in exported.err


@pytest.mark.parametrize(("measure", "cost"), [("parameters", parameters), ("macs", macs)])
@pytest.mark.parametrize("pruner", ["learned", "shortgpt"])
def test_a_share_of_the_cost_is_met(tf, only_run, model, measure, cost, pruner) -> None:
    result = tf("prune", f"budget.{measure}=0.6", "units=branches", f"pruner={pruner}")
    assert result.status == 0, result.err
    whole, small = (cost(tf_api.load(path)) for path in (model, only_run("prune") / "pruned"))
    assert small <= 0.6 * whole
    record = json.loads((only_run("prune") / "decision.json").read_text())["budget"]
    cheapest = min(cost for name, cost in record["costs"].items())
    assert small + cheapest > 0.6 * whole, "a further unit would have fitted"


@pytest.mark.usefixtures("work_as_time")
def test_latency_is_measured_stored_and_taken_up_again(tf, root, only_run) -> None:
    first = tf("prune", "pruner=shortgpt", "budget.latency=0.7", "budget.batch_size=2")
    assert first.status == 0, first.err
    table = only_run("prune") / "prune/latency.json"
    given = (f"budget.table={table}", "pruner=first", "budget.latency=0.7")
    again = tf("prune", *given, "budget.batch_size=2", f"hydra.run.dir={root / 'again'}")
    assert again.status == 0, again.err
    other = tf("prune", *given, "budget.batch_size=3", f"hydra.run.dir={root / 'other'}")
    assert other.status == 2 and not (root / "other").exists()
    assert "batch_size=2, but this run has batch_size=3" in other.err
    shown = tf("inspect", str(table), small=False, exact=True)
    assert shown.status == 0 and "batch_size 2" in shown.out and "blocks.3 " in shown.out
    dry = tf("run", "budget.latency=0.7", "dry_run=true", "dry_run_probe=false")
    assert dry.status == 0, dry.err
    assert "budget.latency=0.7 is measured when the command runs; counted here" in dry.out
    assert "budget.macs=0.7" in dry.out


def test_logits_may_start_in_the_order_of_a_criterion(tf, root) -> None:
    def inclusion(*overrides: str) -> torch.Tensor:
        folder = root / str(len(overrides))
        own = (*overrides, "training.mask_learning.steps=1", f"hydra.run.dir={folder}")
        result = tf("prune", "keep=2", *own)
        assert result.status == 0, result.err
        found = json.loads((folder / "decision.json").read_text())["scores"]["inclusion"]
        return torch.tensor(list(found.values()))

    started = inclusion("+pruner@pruner.start=zd", "pruner.start_spread=10")
    criterion = tf("prune", "keep=2", "pruner=zd", f"hydra.run.dir={root / 'zd'}")
    assert criterion.status == 0, criterion.err
    kept = json.loads((root / "zd/decision.json").read_text())["kept"]
    assert (started[kept] > 0.99).all() and (inclusion() < 0.99).all()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["keep=4"], "keep=4 must be between 1 and 3"),
        (["keep=0"], "keep=0 must be between 1 and 3"),
        (["keep=8", "units=branches"], "keep=8 must be between 1 and 7"),
        (["units=heads"], "units=heads"),
        (["units=branches", "scheme=1:2"], "scheme=1:2 groups blocks, but units=branches"),
        (["scheme=1:2", "budget.macs=0.5"], "scheme=1:2 says how many blocks stay"),
        (["keep=2", "budget.macs=0.5"], "two budgets"),
        (["budget.parameters=0.01"], "the nearest"),
        (["budget.macs=200G"], "would remove nothing"),
        (["budget.latency=fast"], "budget.latency=fast must be a share below 1"),
        (
            ["keep=2", "budget.protected=[0,1,2]"],
            "must stay (3 protected) it is 3, the nearest",
        ),
        (["keep=2", "budget.protected=[blocks.9]"], "there is no unit 'blocks.9'; valid: 0..3"),
        (["keep=2", "budget.minimum=3"], "it is 3, the nearest"),
        (["scheme=1:2", "+pruner@pruner.start=zd"], "pruner.start orders single units"),
        (["scheme=1:2", f"pruner.draw._target_={SIMPLE}"], "pruner.draw=ConditionalBernoulli"),
        (["keep=2", "pruner.start_spread=1"], "give it by +pruner@pruner.start="),
        (["keep=2", "+pruner@pruner.start=zd", "pruner.start_spread=0"], "pruner.start_spread=0"),
        (["keep=2", "pruner.start=zd"], "put there by +pruner@pruner.start=zd"),
        (["keep=2", "+pruner.draw.weight=3"], "'pruner.draw.weight'; GumbelTopK takes no keys"),
        (
            ["pruner=oracle", "budget.protected=[1]"],
            "keep=2: the fixed pattern of pruner=oracle does not meet budget.protected",
        ),
        (
            ["pruner=sensitivity", "selector=group_budgets", "selector.sizes=5"],
            "selector.sizes=5: there are only 4 units",
        ),
        (["keep=2", "+pruner@pruner.start=oracle"], "pruner.start: a Oracle gives no scores"),
        (["keep=2", "budget.protected=[0,1]"], "there is nothing to learn"),
        (["scheme=1:2", "budget.protected=[0]"], "budget.protected: pruner=learned does not know"),
        (["scheme=1:2", "keep=1", "pruner=first"], "scheme=1:2 keeps 2 of 4 blocks but keep=1"),
        (["budget.latency=0.5", "budget.batch_size=0"], "budget.batch_size=0 must be at least 1"),
        (
            ["budget.macs=0.6", "units=branches", f"pruner.draw._target_={SIMPLE}"],
            "choose pruner.draw._target_=",
        ),
    ],
)
def test_what_can_not_be_met_is_refused_before_any_work(tf, root, overrides, said: str) -> None:
    result = tf("run", *overrides)
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.splitlines()) == 1 and not list(root.rglob("decision.json"))


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pruner=uniform"], "the decision of 'uniform' holds none as scores of its blocks"),
        (["pruner=indices", "pruner.kept=[0,3]"], "the decision of 'indices' holds none"),
        (["units=branches"], "is about other units; give updates=none"),
        (["recovery.updates.scores=loss"], "holds no such scores of blocks; it holds inclusion"),
        (["keep=3", "recovery.updates.frozen=3"], "leaves none of the 3 blocks to train"),
        (["budget.latency=0.5", "recovery.updates.frozen=3"], "leaves none of the 3 blocks"),
        (
            ["updates=none", "start=averaged", "units=branches"],
            "start=averaged takes means of blocks that are alike",
        ),
    ],
)
def test_a_recovery_that_the_choice_can_not_serve_is_refused_first(
    tf, root, overrides, said: str, dry: bool
) -> None:
    if dry and "budget.latency=0.5" in overrides:
        overrides = ["keep=3", *overrides[1:]]
    more = ["dry_run=true", "dry_run_probe=false"] if dry else []
    result = tf("run", "updates=inverse_importance", *overrides, *more)
    assert result.status == 2 and said in result.err, result.err
    assert not list(root.rglob("*.json"))


def test_what_changes_nothing_is_said_in_a_run_and_in_a_dry_run(tf) -> None:
    given = ("pruner=shortgpt", "scheme=1:2")
    for result in (tf("prune", *given), tf("prune", *given, "dry_run=true")):
        assert result.status == 0, result.err
        assert "scheme=1:2 says no more than how many blocks stay" in result.err + result.out
    ignored = tf("prune", "pruner=indices", "pruner.kept=[0,3]", "units=branches", "keep=3")
    assert ignored.status == 0, ignored.err
    assert "keep=3, units=branches: not used, as pruner=indices says" in ignored.err + ignored.out


def test_branches_by_hand(tf, only_run) -> None:
    result = tf("prune", "pruner=indices", "pruner.kept=[blocks.0.attn,2,blocks.3]")
    assert result.status == 0, result.err
    decision = tf_api.Decision.load(only_run("prune") / "decision.json")
    assert decision.kept == (0, 2, 3) and decision.removed == ("blocks.0.mlp",)
    out = only_run("prune") / "out"
    cut = str(only_run("prune") / "pruned")
    assert (
        "without blocks.0.mlp"
        in tf("convert", cut, str(out), "--to", "ours", small=False, exact=True).out
    )
    card = (out / "README.md").read_text()
    assert "of 3 blocks (less 1 branch of them)" in card
    assert "- **Removed branches**: blocks.0.mlp" in card
    shown = tf("inspect", cut, small=False, exact=True).out
    assert "without       blocks.0.mlp (numbers in this model)" in shown


def test_a_sweep_over_pruners_may_set_what_they_share(tf, root) -> None:
    given = ("pruner=shortgpt,sensitivity", "pruner.num_samples=3", "keep=2")
    result = tf("prune", "-m", *given)
    assert result.status == 0, result.err
    found = [json.loads(file.read_text()) for file in root.rglob("decision.json")]
    assert sorted(one["method"] for one in found) == ["sensitivity", "shortgpt"]
    assert all(one["config"]["pruner"]["num_samples"] == 3 for one in found)
    refused = tf("prune", "-m", "pruner=shortgpt,oracle", "pruner.num_samples=3", "keep=2")
    assert refused.status != 0 and "pruner.num_samples" in refused.err
