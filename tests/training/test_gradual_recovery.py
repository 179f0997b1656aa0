"""Recovery that removes blocks while it trains, and rates of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from tinyfusion.decision import Decision
from tinyfusion.recovery.fading import FadeOut
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.surgery import prune
from tinyfusion.training.gradual import GradualRecovery
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import LearningRate

STEPS = 8
DECISION = Decision((0, 2), 4, scores={"order": [3, 1]})
RATE = LearningRate(1e-3, 1e-4, warm_up=2)
Build = Callable[..., GradualRecovery]


@pytest.fixture
def build(make_net, shared) -> Build:
    """Four blocks: 3 has gone at step 3, 1 at step 6, each faded over 3 steps."""

    def make(
        teacher_too: bool = True, kind: type[GradualRecovery] = GradualRecovery, **changes: Any
    ) -> GradualRecovery:
        net = make_net(4)
        fading = FadeOut(0.75).fading(net, DECISION, STEPS)
        assert (fading.steps, fading.window) == ((3, 6), 3)
        teacher = FrozenTeacher(make_net(4)) if teacher_too else None
        objective = Objective(0.1, 0.9, 0.01, 0.01) if teacher_too else Objective()
        arguments = shared(STEPS, learning_rate=RATE, **changes)
        pairs = [(0, 1), (1, 3)]
        return kind(net, teacher, objective, pairs, 0.9, fading=fading, **arguments)

    return make


def moments(module: Recovery, optimizer: Any) -> dict[str, Tensor]:
    named = module.student.named_parameters()
    return {
        f"{name} {key}": value.detach().clone()
        for name, p in named
        for key, value in optimizer.state.get(p, {}).items()
    }


class Watch(Callback):
    """Moments after every step, rates, and which blocks have moved."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.moved: list[set[int]] = []
        self._weights: dict[int, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Recovery, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self._weights = self._blocks(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Recovery, *_: Any) -> None:
        self.after.append(moments(pl_module, trainer.optimizers[0]))
        now = self._blocks(pl_module)
        self.moved.append({i for i, value in now.items() if not value.equal(self._weights[i])})

    @staticmethod
    def _blocks(module: Recovery) -> dict[int, Tensor]:
        blocks = enumerate(module.student.blocks)
        return {i: torch.cat([p.detach().flatten() for p in b.parameters()]) for i, b in blocks}


class Clipped(GradualRecovery):
    """Notes the moments when the gradients of a step are there and it has not been taken."""

    seen: list[dict[str, Tensor]]

    def configure_gradient_clipping(self, optimizer: Any, *rest: Any, **named: Any) -> None:
        super().configure_gradient_clipping(optimizer, *rest, **named)
        self.seen = [*getattr(self, "seen", []), moments(self, optimizer)]


def test_a_removal_leaves_the_moments_of_what_stays_as_they_were(build: Build, run) -> None:
    module, watch = build(kind=Clipped), Watch()
    run(module, callbacks=[watch])
    for step in range(1, STEPS):
        before, held = watch.after[step - 1], module.seen[step]
        gone = module.fading.gone(step)
        stays = {
            name: value
            for name, value in before.items()
            if not name.startswith(tuple(f"blocks.{index}." for index in gone))
        }
        assert held.keys() == stays.keys(), step
        assert all(torch.equal(value, stays[name]) for name, value in held.items())
    assert len(module.seen[2]) > len(module.seen[3]) > len(module.seen[6]) > 0
    counts = {float(v) for name, v in watch.after[-1].items() if name.endswith(" step")}
    assert counts == {float(STEPS)}, "no moment has begun anew"


def test_what_has_gone_is_not_trained_and_the_rate_goes_on(build: Build, run) -> None:
    module, watch = build(), Watch()
    run(module, callbacks=[watch])
    wanted = [{0, 1, 2, 3}] * 3 + [{0, 1, 2}] * 3 + [{0, 2}] * 2
    assert watch.moved == wanted
    rates = [1e-3 * RATE.factor(step, STEPS) for step in range(STEPS)]
    assert watch.rates == pytest.approx(rates)


def test_what_is_left_is_the_model_cut_by_the_decision(build: Build, run, make_net) -> None:
    module = build()
    run(module)
    cut = prune(make_net(4), DECISION)
    student = module.trained_net
    assert student.config() == cut.config() and student.kept_from == (0, 2)
    shapes = {name: value.shape for name, value in cut.state_dict().items()}
    assert {name: value.shape for name, value in student.state_dict().items()} == shapes
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    ((ema, followed),) = module.averages.values()
    assert followed is student and set(ema.shadow) == trained
    live = student.blocks[1].mlp.fc1.weight.detach().clone()
    with ema.averaged(student):
        assert not torch.equal(student.blocks[1].mlp.fc1.weight, live)
    assert torch.equal(student.blocks[1].mlp.fc1.weight, live)
    record = module.record()
    assert record["alignment"] == [[0, 1], [1, 3]]
    order = ["blocks.3", "blocks.1"]
    assert record["fade_out"] == {"order": order, "steps": [3, 6], "window": 3}
    assert "blocks.3 at step 3, blocks.1 at step 6" in module.notes()[-1]


def test_after_the_last_removal_training_is_that_of_the_cut_model(build, make_net, run) -> None:
    """The steps behind the last removal are those of the sliced model, taken by hand."""
    taken: dict[str, Any] = {}

    class Take(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
            if trainer.global_step == 6:
                taken["net"] = prune(pl_module.student, DECISION)
                taken["state"] = moments(pl_module, trainer.optimizers[0])
                taken["prepared"] = []

    module = build(teacher_too=False)
    losses = module.step_losses

    def noted(prepared: Any) -> dict[str, Tensor]:
        if "prepared" in taken:
            taken["prepared"].append(prepared)
        return losses(prepared)

    module.step_losses = noted
    run(module, callbacks=[Take()])
    net = taken["net"].train()
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.0, fused=True)
    for name, p in parameters.items():
        old = name.replace("blocks.1.", "blocks.2.")
        keys = ("step", "exp_avg", "exp_avg_sq")
        optimizer.state[p] = {key: taken["state"][f"{old} {key}"].clone() for key in keys}
    for step, prepared in enumerate(taken["prepared"], 6):
        out = net(*prepared.corrupted.inputs, *prepared.conditioning.arguments())
        loss = module.process.loss(out, prepared.corrupted)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * RATE.factor(step, STEPS)
        optimizer.step()
    assert len(taken["prepared"]) == 2
    for name, value in module.trained_net.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("step", [2, 5, 7])
def test_resumed_within_a_window_and_after_removals(
    build: Build, run, tmp_path, kill_at, step: int
) -> None:
    whole, first, second = build(), build(), build()
    run(whole, folder=tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="killed"):
        run(first, folder=cut, callbacks=[kill_at(step)], resume_every=2)
    assert (cut / "resume.ckpt").is_file()
    run(second, folder=cut)
    expected = whole.trained_net.state_dict()
    found = second.trained_net.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert all(torch.equal(v, whole.ema.shadow[n]) for n, v in second.ema.shadow.items())
    states = [m.trainer.optimizers[0].state_dict()["state"] for m in (whole, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][i][k], v) for i, s in states[1].items() for k, v in s.items())


def test_scored_at_any_step_as_it_will_be_cut(build: Build, run) -> None:
    seen = []

    class Score(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Recovery, *_: Any) -> None:
            with pl_module.scored_net(averaged=False) as net:
                live = prune(pl_module.student, DECISION).state_dict()
                same = all(torch.equal(v, live[n]) for n, v in net.state_dict().items())
                seen.append((net.depth, same))

    module = build()
    run(module, callbacks=[Score()])
    assert seen == [(2, True)] * STEPS
    with module.scored_net() as net:
        assert net is module.trained_net


def test_at_first_states_are_those_of_the_teacher(build: Build, run) -> None:
    """Student and teacher are the same network: nothing is to be distilled in the first step."""
    module = build()
    logged: list[dict[str, float]] = []
    module.log_dict = logged.append
    run(module, log_every=1)
    features = [float(v["train/features"]) for v in logged if "train/features" in v]
    assert features[0] == 0.0 and min(features[2:]) > 0.0


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_do_as_one(build: Build, run, on_two_ranks, tmp_path, strategy: str) -> None:
    plain = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.5)}

    def train(name: str, **options: Any) -> dict[str, Tensor]:
        module = build(**plain)
        run(module, 16, folder=tmp_path / name, **options)
        return {name: value.clone() for name, value in module.trained_net.state_dict().items()}

    one = train("one")
    two = on_two_ranks(lambda: train("two", strategy=strategy, devices=2))
    for name, value in one.items():
        assert all(torch.allclose(rank[name], value, rtol=1e-5, atol=1e-6) for rank in two), name


# -- rates of blocks ----------------------------------------------------------------------------


def test_a_blocks_update_is_scaled_by_its_share(make_net, shared, run) -> None:
    def updates(rates: list[float] | None) -> dict[str, Tensor]:
        plain = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=1e-3)}
        net = make_net(3)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        module = Recovery(net, None, Objective(), [], 0.9, block_rates=rates, **shared(1, **plain))
        assert ("block_rates" in module.record()) == (rates is not None)
        run(module)
        return {n: (v - before[n]).double() for n, v in net.state_dict().items()}

    whole, scaled = updates(None), updates([1.0, 0.25, 0.0])
    for name, value in whole.items():
        share = {"blocks.1.": 0.25, "blocks.2.": 0.0}.get(name[:9], 1.0)
        torch.testing.assert_close(scaled[name], share * value, rtol=1e-3, atol=1e-7)
    assert whole["blocks.1.mlp.fc1.weight"].abs().max() > 0


def test_one_group_for_each_share(make_net, shared) -> None:
    net = make_net(3)
    module = Recovery(net, None, Objective(), [], 0.9, block_rates=[0.5, 1.0, 0.5], **shared(1))
    groups = module.parameter_groups()
    assert sorted(group["lr"] for group in groups) == pytest.approx([0.5e-3, 1e-3])
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert "0.5, 1, 0.5" in module.notes()[-1]
