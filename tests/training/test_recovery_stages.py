"""Freeze, then unfreeze: what moves in the first stage, and what a resumed run does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.stages import SeamsFirst
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import LearningRate

STEPS, FIRST = 6, 3
Build = Callable[..., Recovery]


@pytest.fixture
def build(make_net, shared) -> Build:
    """A student of three blocks, of which the first is no seam."""

    def make(also: tuple[str, ...] = (), weights: list[float] | None = None) -> Recovery:
        net = make_net(3)
        first = SeamsFirst(0.5, also).first_stage(net, (1, 2), STEPS)
        assert first.steps == FIRST
        objective = Objective(0.1, 0.9, 0.01, 0.01)
        arguments = shared(STEPS, learning_rate=LearningRate(1e-3, 1e-4, warm_up=2))
        teacher, pairs = FrozenTeacher(make_net(6)), [(0, 1), (1, 3), (2, 5)]
        return Recovery(net, teacher, objective, pairs, 0.9, weights, first, **arguments)

    return make


class Watch(Callback):
    """Weights, names with optimiser state, and rates after every step."""

    def __init__(self) -> None:
        self.after: list[tuple[dict[str, Tensor], set[str], float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Recovery, *_: Any) -> None:
        named = dict(pl_module.student.named_parameters())
        state = trainer.optimizers[0].state
        self.after.append(
            (
                {name: value.detach().clone() for name, value in named.items()},
                {name for name, value in named.items() if value in state},
                trainer.optimizers[0].param_groups[0]["lr"],
            )
        )


@pytest.mark.parametrize("also", [(), ("adaLN_modulation",)])
def test_everything_else_is_bit_identical_and_has_no_state(build: Build, run, also) -> None:
    module, seen = build(also), Watch()
    names = set(module.first.names)
    before = {n: p.detach().clone() for n, p in module.student.named_parameters()}
    trained = {n for n, p in module.student.named_parameters() if p.requires_grad}
    assert 0 < len(names) < len(trained)
    assert ("blocks.0.adaLN_modulation.1.weight" in names) == bool(also)
    run(module, callbacks=[seen])
    for step, (weights, stateful, _) in enumerate(seen.after, 1):
        moved = {name for name, value in weights.items() if not torch.equal(value, before[name])}
        assert moved == stateful == (names if step <= FIRST else trained), step
    assert all(p.requires_grad for n, p in module.student.named_parameters() if n in trained)


def test_gradients_that_are_not_used_do_not_shrink_the_others(build: Build, run) -> None:
    module = build()
    norms = []
    seen = []

    class Own(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            named = pl_module.student.named_parameters()
            kept = [p.grad.norm() for n, p in named if n in pl_module.first.names]
            seen.append(float(torch.stack(kept).norm()))

        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            norms.append(float(pl_module.grad_norm))

    run(module, callbacks=[Own()])
    assert norms[:FIRST] == pytest.approx(seen[:FIRST], rel=1e-4)
    assert all(a > b for a, b in zip(norms[FIRST:], seen[FIRST:], strict=True))


def test_warm_up_begins_anew(build: Build, run) -> None:
    seen = Watch()
    run(build(), callbacks=[seen])
    plain = LearningRate(1e-3, 1e-4, warm_up=2)
    cosine = [1e-3 * plain.factor(max(step, 2), STEPS) for step in range(STEPS)]
    rising = [1 / 3, 2 / 3, 1.0, 1 / 3, 2 / 3, 1.0]
    wanted = [share * value for share, value in zip(rising, cosine, strict=True)]
    # What is seen after a step is the rate of the next one.
    assert [rate for *_, rate in seen.after][:-1] == pytest.approx(wanted[1:])


@pytest.mark.parametrize("step", [2, 5])
def test_resumed_in_either_stage(build: Build, run, tmp_path, kill_at, step: int) -> None:
    whole = build(weights=[1.0, 2.0, 3.0])
    run(whole, folder=tmp_path / "whole")
    cut, first = tmp_path / "cut", build(weights=[1.0, 2.0, 3.0])
    with pytest.raises(RuntimeError, match="killed"):
        run(first, folder=cut, callbacks=[kill_at(step)], resume_every=1)
    # Weights of the pairs are measured once: what the file holds counts.
    second, seen = build(weights=[9.0, 9.0, 9.0]), Watch()
    run(second, folder=cut, callbacks=[seen])
    assert second.pair_weights == [1.0, 2.0, 3.0]
    expected = whole.student.state_dict()
    assert all(torch.equal(v, expected[n]) for n, v in second.student.state_dict().items())
    averages = whole.ema.shadow
    assert all(torch.equal(value, averages[n]) for n, value in second.ema.shadow.items())
    states = [m.trainer.optimizers[0].state_dict()["state"] for m in (whole, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][i][k], v) for i, s in states[1].items() for k, v in s.items())
