"""Units decided while the mask is learned: a condition of the draws, and no longer paid for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from tests.gating.conftest import units_of
from tests.training.conftest import state
from tinyfusion.budget import Budget
from tinyfusion.errors import InputError
from tinyfusion.gating.contract import Gates, GateState
from tinyfusion.gating.deltas import Frozen, Full
from tinyfusion.gating.draws import ConditionalBernoulli, GumbelTopK
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.gating.penalised import PenalisedCost
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.gating.unit_gates import decide as best_set
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.learned import Learned
from tinyfusion.scheme import parse_scheme
from tinyfusion.training.early_stop import EarlyStop
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.schedules import Linear


def test_settled_units_are_a_condition_of_the_draws() -> None:
    gates = UnitGates(Budget.of(units_of(4), 2), GumbelTopK())
    states = [GateState((0, 1), (0.995, 0.6, 0.4, 0.005)), GateState((0, 1), (1.0, 0.5, 0.5, 0.02))]
    # The less likely outcome of unit 3 is too likely by the second.
    assert gates.settle(states, 0.01) == {0: True}
    assert gates.settle(states, 0.03) == {3: False}
    assert gates.settled == {0: True, 3: False}
    with torch.no_grad():
        gates.logits_L.copy_(torch.tensor([-5.0, 0.3, 0.1, 5.0]))  # moved by competition
    gumbel = torch.distributions.Gumbel(0.0, 1.0)
    torch.manual_seed(0)
    noise_BL = gumbel.sample((2000, 4))
    for draw in (GumbelTopK(), ConditionalBernoulli()):
        gates.draw = draw
        mask_BL = gates(noise_BL)
        assert (mask_BL[:, 0] == 1).all() and (mask_BL[:, 3] == 0).all()
        assert (mask_BL.sum(1) == 2).all()
        state = gates.state(gates.logits())
        assert state.inclusion[0] == 1 and state.inclusion[3] == 0
        assert state.inclusion[1] == pytest.approx(torch.tensor(0.2).sigmoid().item(), abs=1e-4)
        assert mask_BL[:, 1].mean().item() == pytest.approx(state.inclusion[1], abs=0.03)
        assert state.kept == (0, 1) and state.margin == pytest.approx(1 - state.inclusion[2])
        (gradient_L,) = torch.autograd.grad((mask_BL * noise_BL).sum(), gates.logits_L)
        assert gradient_L[0] == gradient_L[3] == 0 and gradient_L[1] != 0
    gates.draw = PenalisedCost()
    mask_BL = gates(noise_BL)
    assert (mask_BL[:, 0] == 1).all() and (mask_BL[:, 3] == 0).all()


def test_patterns_that_settled_units_rule_out_are_not_drawn() -> None:
    gates = PatternGates(parse_scheme("2:4", 8))
    gates.settled = {5: True, 6: False}
    noise_BK = torch.distributions.Gumbel(0.0, 1.0).sample((500, gates.num_draws))
    mask_BL = gates(noise_BK)
    assert (mask_BL[:, 5] == 1).all() and (mask_BL[:, 6] == 0).all()
    assert (mask_BL[:, 4:].sum(1) == 2).all() and len(mask_BL[:, 4:].unique(dim=0)) == 2
    assert len(mask_BL[:, :4].unique(dim=0)) == 6
    state = gates.state(gates.logits())
    assert state.inclusion[4:] == pytest.approx((0.5, 1.0, 0.0, 0.5))
    assert 5 in state.kept and 6 not in state.kept


def decide(module: MaskLearning) -> None:
    """Leave no doubt of the first and the last of four units."""
    with torch.no_grad():
        module.gated.gates.logits_L.copy_(torch.tensor([0.9, 0.02, 0.02, -0.9]))
        module.gate_ema.shadow["logits_L"].copy_(module.gated.gates.logits_L)


def test_a_run_ends_when_all_units_are_settled(make_learning, run, tmp_path, caplog) -> None:
    module = make_learning(Frozen(), steps=9, settle=0.4, rate=1e-5)
    decide(module)
    with torch.no_grad():
        module.gated.gates.logits_L[1] += 0.1
        module.gate_ema.shadow["logits_L"].copy_(module.gated.gates.logits_L)
    with caplog.at_level("INFO"):
        run(module, folder=tmp_path)
    assert module.ended_early and module.global_step == 1
    assert "decided after 1 of 9 steps: all units are settled" in caplog.text
    assert module.decision_state().averaged == ((0, 1), (1.0, 1.0, 0.0, 0.0), ())


class Calls(Callback):
    """Of each step, which blocks were run."""

    def __init__(self) -> None:
        self.steps: list[set[int]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        for index, block in enumerate(module.gated.net.blocks):
            block.register_forward_pre_hook(lambda *_, index=index: self.steps[-1].add(index))

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append(set())


@pytest.mark.parametrize("dense", [False, True])
def test_units_that_are_decided_against_are_no_longer_run_also_when_resumed(
    make_learning, run, tmp_path, caplog, kill_at, dense: bool
) -> None:
    def learn(folder: str, *callbacks: Callback) -> MaskLearning:
        module = make_learning(Frozen(), dense, steps=8, settle=0.01, rate=1e-5)
        decide(module)
        run(module, folder=tmp_path / folder, callbacks=callbacks, resume_every=1)
        return module

    calls = Calls()
    with caplog.at_level("INFO"):
        whole = learn("whole", calls)
    assert "step 1: 2 of 4 units are settled" in caplog.text
    assert calls.steps[0] == {0, 1, 2, 3} and calls.steps[1] == {0, 1, 2}
    assert {0: True, 3: False}.items() <= whole.gated.gates.settled.items()
    assert whole.leaves_unused
    with pytest.raises(RuntimeError, match="killed"):
        learn("resumed", kill_at(4))
    calls = Calls()
    again = learn("resumed", calls)
    assert len(calls.steps) == 4 and 3 not in calls.steps[0]
    assert again.gated.gates.settled == whole.gated.gates.settled
    for name, value in state(whole).items():
        torch.testing.assert_close(state(again)[name], value, msg=name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_settle_alike(make_learning, run, on_two_ranks, tmp_path, strategy: str) -> None:
    def work(folder: str, **trainer: Any) -> tuple[dict[int, bool], dict[str, Tensor]]:
        module = make_learning(Full(), steps=4, settle=0.2)
        decide(module)
        run(module, 8, folder=tmp_path / folder, **trainer)
        return module.gated.gates.settled, state(module)

    settled, wanted = work("one")
    assert settled == {0: True, 3: False}
    for found, values in on_two_ranks(lambda: work("two", devices=2, strategy=strategy)):
        assert found == settled
        for name, value in wanted.items():
            torch.testing.assert_close(values[name], value, rtol=0, atol=1e-5, msg=name)


def test_no_unit_is_settled_against_the_choice() -> None:
    gates = UnitGates(Budget.of(units_of(4), 2), PenalisedCost())
    # Coins that all say "stay", of which the budget allows two; and states that differ.
    sure = GateState((0, 1), (0.99, 0.99, 0.99, 0.99))
    assert gates.settle([sure, sure], 0.05) == {0: True, 1: True}
    gates.settled = {}
    assert gates.settle([sure, GateState((1, 2), (0.99, 0.99, 0.99, 0.99))], 0.05) == {1: True}


def test_what_goes_in_any_case_is_no_part_of_the_best_set() -> None:
    budget = Budget(units_of(3), (2.0, 3.0, 4.0), 5.0, "parameters")
    logits_L, inclusion_L = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.3, 0.9, 0.8])
    assert best_set(logits_L, inclusion_L, budget) == (0, 1)
    assert best_set(logits_L, inclusion_L, budget, gone=[1]) == (2,)


@pytest.mark.parametrize("penalised", [False, True])
def test_a_unit_that_is_decided_against_does_not_fill_a_budget(penalised: bool) -> None:
    budget = Budget(units_of(4), (4.0, 5.0, 3.0, 2.0), 9.0, "parameters")
    gates = UnitGates(budget, PenalisedCost() if penalised else GumbelTopK())
    gates.settled = {0: True, 3: False}
    with torch.no_grad():
        gates.logits_L.copy_(torch.tensor([0.0, 0.1, 0.3, 9.0]))
    found = gates.state(gates.logits())
    # With unit 3 the first and the third would use up the budget.
    assert found.kept in ((0, 1), (0, 2)) and found.inclusion[3] == 0
    assert found.margin == pytest.approx(min(p if u in found.kept else 1 - p
                                             for u, p in enumerate(found.inclusion)))  # fmt: skip
    mask_BL = gates(torch.distributions.Gumbel(0.0, 1.0).sample((200, 4)))
    assert (mask_BL[:, 3] == 0).all() and (mask_BL[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("scheme", "settle", "least"), [(None, 0.25, 0.25), ("1:4", 0.3, 0.25), (None, 0.2, None)]
)
def test_thresholds_that_units_begin_below_are_refused(
    make_net, shared, tmp_path, source, scheme: str | None, settle: float, least: float | None
) -> None:
    net = make_net(4)
    groups = None if scheme is None else parse_scheme(scheme, 4)
    arguments = shared(10)
    context = PruningContext(
        net, arguments["process"], source, Budget.of(net.units(), 1, scheme=groups), 0, tmp_path,
        lambda phase: arguments,
    )  # fmt: skip
    pruner = Learned(Frozen(), Linear(4.0, 0.1), Linear(100.0, 100.0), settle=settle)
    if least is None:
        assert len(pruner.phases(context)) == 1
        return
    with pytest.raises(InputError, match=rf"pruner.settle={settle} must be less than {least}, "):
        pruner.phases(context)


def test_groups_settle_and_the_rest_is_learned(make_learning, run, tmp_path) -> None:
    gates: Gates = PatternGates(parse_scheme("1:2", 4))
    module = make_learning(Full(), steps=6, rate=1e-5, settle=0.05, gates=gates)
    with torch.no_grad():
        gates.groups[0].logits_C.copy_(torch.tensor([0.0, 0.9]))
        module.gate_ema.shadow["groups.0.logits_C"].copy_(torch.tensor([0.0, 0.9]))
    run(module, folder=tmp_path)
    assert gates.settled == {0: False, 1: True}
    assert (gates.groups[1].logits_C != 0.02).all() and module.global_step == 6
    found = module.decision_state().averaged
    assert found.inclusion[:2] == (0.0, 1.0) and 1 in found.kept


def test_a_run_stops_once_what_is_left_is_sure_enough(make_learning, run, tmp_path) -> None:
    module = make_learning(Frozen(), steps=20, rate=1e-6, settle=0.01, stop=EarlyStop(0.2, 0.5))
    decide(module)
    with torch.no_grad():
        module.gated.gates.logits_L[1] += 0.05
        module.gate_ema.shadow["logits_L"].copy_(module.gated.gates.logits_L)
    run(module, folder=tmp_path)
    assert module.ended_early and module.global_step < 20
    assert module.gated.gates.settled == {0: True, 3: False}


def test_checkpoints_of_before_there_were_settled_units_are_resumed(
    make_learning, run, tmp_path
) -> None:
    module = make_learning(Frozen(), steps=4)
    run(module, folder=tmp_path, resume_every=1)
    (file,) = tmp_path.rglob("resume.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["tinyfusion"].pop("settled_units") == {}
    again = make_learning(Frozen(), steps=4)
    again.on_load_checkpoint(checkpoint)
    assert again.gated.gates.settled == {} and not again.ended_early
