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
    dry = tf("run", "budget.latency=0.7", "dry_run=true", "dry_run_probe=false")
    assert dry.status == 0, dry.err


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
        (["budget.latency=fast"], "budget.latency=fast is neither: valid is"),
        (
            ["keep=2", "budget.protected=[0,1,2]"],
            "must stay (3 protected) it is 3, the nearest",
        ),
        (["keep=2", "budget.protected=[blocks.9]"], "there is no unit 'blocks.9'; valid: 0..3"),
        (["keep=2", "budget.minimum=3"], "it is 3, the nearest"),
        (["scheme=1:2", "+pruner@pruner.start=zd"], "pruner.start orders single units"),
        (["keep=2", "pruner.start_spread=0"], "pruner.start_spread=0"),
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
