"""Learning the mask end to end on tiny networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tinyfusion.backbones.dit import DiT
from tinyfusion.budget import Budget
from tinyfusion.callbacks.decision_trace import DecisionTrace
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Frozen, Full, Lora
from tinyfusion.gating.draws import ConditionalBernoulli, GumbelTopK
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.gating.penalised import PenalisedCost
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.learned import GUMBEL_TOP_K, Learned
from tinyfusion.scheme import parse_scheme
from tinyfusion.seeding import Rows, StepNoise
from tinyfusion.training.early_stop import EarlyStop
from tinyfusion.training.ema import Ema
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.pretrain import Pretraining
from tinyfusion.training.schedules import Linear

SCALE = Linear(100.0, 100.0)


def learner(net: DiT, delta: Any, shared: dict[str, Any], **changes: Any) -> MaskLearning:
    delta.attach(net)
    values = {"gate_rate_factor": 10.0, "temperature": Linear(4.0, 0.1), "scale": SCALE}
    values |= {"gate_ema_decay": None} | changes
    return MaskLearning(net, PatternGates(parse_scheme("1:2", net.depth)), **values, **shared)


@pytest.fixture(scope="module")
def planted() -> dict[str, torch.Tensor]:
    """Weights of a network trained with blocks 0 and 3 held at the identity."""
    torch.manual_seed(8)
    net = DiT(4, 2, 1, 16, 4, 2, 2.0, num_classes=2, gate_bias_init=0.5)
    for index in (0, 3):
        net.blocks[index].adaLN_modulation[1].bias.data.zero_()
        net.blocks[index].requires_grad_(False)
    process, optimizer = GaussianDiffusion(), torch.optim.Adam(net.parameters(), lr=3e-3)
    noise = StepNoise(0, "planted")
    place = torch.arange(4) // 2
    board = ((place[:, None] + place[None]) % 2) * 2.0 - 1.0
    for step in range(200):
        rows = Rows(step, 0, 32)
        labels = torch.arange(32) % 2
        clean = board.expand(32, 1, 4, 4) * (2.0 * labels - 1.0)[:, None, None, None]
        t = process.times_from_uniform(noise.uniform("t", rows))
        batch = process.add_noise(clean, t, noise.normal("noise", rows, 1, 4, 4))
        loss = process.loss(net(batch.noisy, t, labels), batch)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.state_dict()


@pytest.fixture
def choose(planted, source, shared, run, tmp_path) -> Callable[..., Any]:
    """``choose(delta)`` lets the learned pruner decide on the planted network."""

    def decide(
        delta: Any,
        keep: int = 2,
        scheme: str | None = "1:2",
        steps: int = 100,
        draw: Any = GUMBEL_TOP_K,
        rate: float | None = None,
    ) -> Any:
        net = DiT(4, 2, 1, 16, 4, 2, 2.0, num_classes=2)
        net.load_state_dict(planted)
        context = PruningContext(
            net,
            GaussianDiffusion(),
            source,
            Budget.of(
                net.units(), keep, scheme=None if scheme is None else parse_scheme(scheme, 4)
            ),
            0,
            tmp_path,
            lambda phase: shared(steps),
        )
        pruner = Learned(delta, Linear(4.0, 0.1), SCALE, rate, draw=draw)
        (phase,) = pruner.phases(context)
        module = phase.module()
        run(module, batch_size=32)
        return pruner.choose(replace(context, trained={phase.name: module}))

    return decide


@pytest.mark.parametrize("delta", [Lora(4, 8.0), Frozen()], ids=["lora", "frozen"])
def test_planted_redundancy_is_found_with_confidence(choose, delta: Any) -> None:
    choice = choose(delta)
    assert choice.kept == (1, 2)
    assert choice.scores["kept_live"] == ["blocks.1", "blocks.2"]
    assert min(choice.scores["confidence"]) > 0.9 and choice.scores["margin"] > 0.9
    assert max(choice.scores["entropy"]) < 0.4
    assert [len(p) for p in choice.probabilities] == [2, 2]
    # Of two blocks the second pattern keeps the second one.
    assert choice.probabilities[0][1] == pytest.approx(choice.scores["confidence"][0])
    assert choice.probabilities[1][0] == pytest.approx(choice.scores["confidence"][1])
    assert choice.scores["skipped_steps"] == 0


def test_planted_redundancy_is_found_in_one_larger_group(choose) -> None:
    choice = choose(Frozen(), scheme="2:4", steps=150)
    assert choice.kept == (1, 2)
    assert choice.scores["confidence"][0] > 0.8


@pytest.mark.parametrize("draw", [GumbelTopK(), ConditionalBernoulli()])
def test_planted_redundancy_is_found_among_all_pairs(choose, draw) -> None:
    choice = choose(Lora(4, 8.0), scheme=None, steps=150, draw=draw)
    assert choice.kept == (1, 2) and choice.scheme is None and choice.probabilities is None
    assert choice.scores["kept_live"] == ["blocks.1", "blocks.2"]
    inclusion = choice.scores["inclusion"]
    assert sum(inclusion.values()) == pytest.approx(2, abs=1e-5)
    assert min(inclusion["blocks.1"], inclusion["blocks.2"]) > 0.9
    assert choice.scores["margin"] > 0.9


def test_planted_redundancy_is_found_by_coins_that_a_penalty_steers(choose) -> None:
    choice = choose(Lora(4, 8.0), scheme=None, steps=150, draw=PenalisedCost(), rate=10.0)
    assert choice.kept == (1, 2) and sum(choice.scores["inclusion"].values()) < 2.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"gate_rate_factor": 0.0},
        {"temperature": Linear(4.0, 0.0)},
        {"scale": Linear(-1.0, 100.0)},
        {"gate_ema_decay": 1.0},
        {"start_spread": 0.0},
    ],
)
def test_learned_refuses_impossible_settings(wrong: dict[str, Any]) -> None:
    values = {"temperature": Linear(4.0, 0.1), "scale": SCALE} | wrong
    with pytest.raises(InputError, match=f"pruner.{next(iter(wrong))}"):
        Learned(Frozen(), **values)


def test_gates_learn_ten_times_as_fast(make_net, shared) -> None:
    module = learner(make_net(), Lora(2, 4.0), shared(10, rate=1e-4))
    delta, gates = module.configure_optimizers()["optimizer"].param_groups
    assert (delta["lr"], gates["lr"]) == pytest.approx((1e-4, 1e-3))
    assert len(gates["params"]) == 2
    assert delta["weight_decay"] == gates["weight_decay"] == 0
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert {id(p) for p in [*delta["params"], *gates["params"]]} == trained


def test_frozen_has_the_gates_alone(make_net, shared) -> None:
    module = learner(make_net(), Frozen(), shared(10, rate=1e-4))
    (group,) = module.configure_optimizers()["optimizer"].param_groups
    assert group["lr"] == pytest.approx(1e-3)
    assert len(group["params"]) == 2


def test_weight_updates_train_what_they_say(make_net, shared, run, tmp_path) -> None:
    for delta in (Lora(2, 4.0), Full(), Frozen()):
        net = make_net()
        module = learner(net, delta, shared(2))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        run(module, folder=tmp_path / type(delta).__name__)
        moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
        assert "pos_embed" not in moved
        assert moved <= {n for n, p in net.named_parameters() if p.requires_grad}
        assert bool(moved) == (not isinstance(delta, Frozen))
        assert any((gate.logits_C != 0.02).any() for gate in module.gated.gates.groups)


def test_schedules_follow_the_step_and_decision_uses_the_average(make_net, shared, run) -> None:
    module = learner(make_net(), Frozen(), shared(3), scale=Linear(1.0, 50.0))
    gates = module.gated.gates
    assert (gates.temperature, gates.scale) == (4.0, 1.0)
    run(module)
    assert gates.temperature == pytest.approx(0.1)
    assert gates.scale == pytest.approx(50.0)
    with torch.no_grad():
        gates.groups[0].logits_C.copy_(torch.tensor([9.0, 0.0]))
        module.gate_ema.shadow["groups.0.logits_C"].copy_(torch.tensor([0.0, 0.02]))
    state = module.decision_state()
    assert (state.averaged.kept[0], state.live.kept[0]) == (1, 0)
    # softmax of 50 * (0, 0.02)
    assert state.averaged.groups[0][1] == pytest.approx(1 / (1 + torch.e**-1), abs=1e-5)
    assert state.averaged.inclusion[1] == pytest.approx(state.averaged.groups[0][1])


def test_micro_batches_see_the_masks_of_the_global_batch(make_net, shared, run, tmp_path) -> None:
    # Adam would blow up the rounding of gradients that are zero by symmetry.
    plain = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)}
    whole = learner(make_net(), Full(), shared(3, rate=0.1, **plain))
    cut = learner(make_net(), Full(), shared(3, rate=0.1, **plain))
    run(whole, folder=tmp_path / "whole")
    run(cut, accumulate=4, folder=tmp_path / "cut")
    for (name, first), second in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=2e-5, msg=name)
    ours, theirs = whole.gate_ema, cut.gate_ema
    assert ours.num_updates == theirs.num_updates == 3


def test_bfloat16_autocast_trains(make_net, shared, run) -> None:
    module = learner(make_net(), Lora(2, 4.0), shared(3))
    run(module, precision="bf16-mixed")
    assert module.skipped_steps == 0
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_held_out_scores_come_once_per_due_step(make_net, shared, run) -> None:
    calls = []

    def held_out(net: DiT) -> dict[str, float]:
        calls.append(module.global_step)
        return {"loss": 1.0}

    module = Pretraining(make_net(1), 0.9, held_out, 2, **shared(5))
    run(module, accumulate=2)
    assert calls == [2, 2, 4, 4, 5, 5], "live and averaged weights, once each"


class Batches(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps.append(trainer.global_step)


def test_learning_ends_when_the_decision_stands(
    make_net, shared, run, tmp_path, caplog, monkeypatch
) -> None:
    titles: list[str | None] = []
    draw = "tinyfusion.callbacks.decision_trace.decision_trace"
    monkeypatch.setattr(draw, lambda *given: titles.append(given[-1]))

    def learn(stop: EarlyStop | None, folder: str, *callbacks: Callback) -> MaskLearning:
        module = learner(make_net(), Frozen(), shared(12, rate=1e-4), stop=stop)
        with torch.no_grad():  # decided from the start
            for gate in module.gated.gates.groups:
                gate.logits_C[1] += 0.1
            module.gate_ema = Ema(module.gated.gates, 0.5, warm_up=False)
        run(module, folder=tmp_path / folder, callbacks=callbacks)
        return module

    seen = Batches()
    with caplog.at_level("INFO"):
        early = learn(EarlyStop(0.34, 0.9), "early", seen, DecisionTrace(1))
    assert early.ended_early and seen.steps == [1, 2, 3, 4, 5]
    assert "decided after 5 of 12 steps: the choice has stood for 4, margin" in caplog.text
    whole = learn(None, "whole", DecisionTrace(1))
    assert titles == ["decided after 5 of 12 steps", None]
    assert not whole.ended_early and whole.global_step == 12
    assert early.decision_state().averaged.kept == whole.decision_state().averaged.kept
    unsure = learn(EarlyStop(0.34, 1.0), "unsure")
    assert not unsure.ended_early and unsure.global_step == 12


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"patience": 1}, {"margin": 1.5}])
def test_impossible_stops_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"pruner\.stop\."):
        EarlyStop(**wrong)


def test_a_run_that_ended_early_takes_no_step_when_it_is_resumed(
    make_net, shared, run, tmp_path
) -> None:
    def learn(*callbacks: Callback) -> MaskLearning:
        stop = EarlyStop(0.17, 0.0)
        module = learner(make_net(), Frozen(), shared(12, rate=1e-6), stop=stop)
        run(module, folder=tmp_path, resume_every=1, callbacks=callbacks)
        return module

    first, seen = learn(), Batches()
    again = learn(seen)
    assert first.ended_early and again.ended_early and seen.steps == []
    assert again.decision_state() == first.decision_state()
