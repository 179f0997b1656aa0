"""A step that is not finite is skipped: weights, moments and averages stay; ten in a row end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from tinyfusion.errors import TrainingDivergedError
from tinyfusion.notices import forget, repeated
from tinyfusion.recovery.objective import Objective
from tinyfusion.training.module import MAX_SKIPPED_IN_A_ROW, Prepared
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import LearningRate


class Faulty(Recovery):
    """Has a bad loss, or a bad gradient behind a good loss, at chosen steps."""

    bad_loss: tuple[int, ...] = ()
    bad_gradient: tuple[int, ...] = ()

    def step_losses(self, prepared: Prepared) -> dict[str, Tensor]:
        terms = super().step_losses(prepared)
        weight = self.student.final_layer.linear.weight
        # Of an accumulated step only the first micro-batch is bad.
        if prepared.rows.first == 0 and self.global_step in self.bad_loss:
            terms["total"] = terms["total"] + float("nan")
        if prepared.rows.first == 0 and self.global_step in self.bad_gradient:
            terms["total"] = terms["total"] + (0.0 * weight).sqrt().sum()
        return terms


class Snapshots(Callback):
    """Weights and Adam's state after every optimiser step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Faulty, *_: Any) -> None:
        state = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        optimizer = trainer.optimizers[0].state_dict()["state"]
        state |= {
            f"{i}.{k}": v.clone() for i, values in optimizer.items() for k, v in values.items()
        }
        state |= {f"average.{n}": v.clone() for n, v in pl_module.ema.shadow.items()}
        self.after[trainer.global_step] = state


class Rates(Callback):
    """Learning rate of every optimiser step."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def faulty(make_net, shared) -> Callable[[int], Faulty]:
    falling = {"learning_rate": LearningRate(1e-3, 1e-4)}
    return lambda steps: Faulty(make_net(2), None, Objective(), [], 0.9, **shared(steps, **falling))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[bool]:
    assert first.keys() == second.keys()
    return [torch.equal(first[key], second[key]) for key in first]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["bad_loss", "bad_gradient"])
def test_bad_step_leaves_weights_and_moments_and_training_goes_on(
    faulty, run, kind: str, accumulate: int
) -> None:
    module, seen, rates = faulty(5), Snapshots(), Rates()
    setattr(module, kind, (2,))
    run(module, accumulate=accumulate, callbacks=[seen, rates])
    assert sorted(seen.after) == ([1, 2, 3, 4, 5] if accumulate == 1 else [0, 1, 2, 3, 4, 5])
    assert all(same(seen.after[2], seen.after[3]))
    for step in (1, 3, 4):
        assert not any(
            torch.equal(seen.after[step][key], seen.after[step + 1][key])
            for key in seen.after[step]
            if key.endswith(("exp_avg", "step")) or key == "average.final_layer.linear.weight"
        )
    assert (module.skipped_steps, module.skipped_in_a_row) == (1, 0)
    assert all(p.isfinite().all() for p in module.parameters())
    assert module.ema.num_updates == 4
    # Schedules are functions of the step, which counts.
    wanted = [1e-3 * module._learning_rate.factor(step, 5) for step in range(5)]
    assert rates.used == pytest.approx(wanted) and len(set(wanted)) > 1


def test_a_bad_first_step_is_skipped_too(faulty, run, make_net) -> None:
    module = faulty(1)
    module.bad_loss = (0,)
    run(module)
    before = make_net(2).state_dict()
    assert all(torch.equal(value, before[n]) for n, value in module.student.state_dict().items())


def test_ten_in_a_row_end_the_run_with_the_last_good_weights(faulty, run, tmp_path) -> None:
    module, seen = faulty(20), Snapshots()
    module.bad_loss = tuple(range(2, 20))
    with pytest.raises(TrainingDivergedError, match=r"in 10 steps in a row.*Lower the learning"):
        run(module, callbacks=[seen], resume_every=2)
    assert module.skipped_steps == MAX_SKIPPED_IN_A_ROW
    live = {n: p.detach() for n, p in module.named_parameters()}
    assert all(torch.equal(value, seen.after[2][name]) for name, value in live.items())
    stored = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in stored["state_dict"].values())


def test_nine_in_a_row_do_not(faulty, run) -> None:
    module = faulty(12)
    module.bad_loss = tuple(range(1, 10))
    run(module)
    assert (module.skipped_steps, module.skipped_in_a_row) == (9, 0)


def test_skipped_steps_are_said_at_once_and_counted_over_a_resumption(
    faulty, run, tmp_path, caplog
) -> None:
    forget()
    kind = "step(s) of test were skipped: loss or gradient not finite"
    with repeated("first"):
        module = faulty(4)
        module.bad_loss = (1, 2)
        run(module, resume_every=3)
    said = [record.getMessage() for record in caplog.records if "note" in record.getMessage()]
    assert said == [
        f"note: 1 {kind}: step 2",
        f"note: 1 {kind}: step 3",
        f"first: in all, noted on the way:\n  2 {kind}",
    ]
    caplog.clear()
    with repeated("again"):
        module = faulty(4)
        module.bad_gradient = (3,)
        run(module)
    assert f"again: in all, noted on the way:\n  3 {kind}" in caplog.messages


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> torch.amp.GradScaler:
    """The gradient scaler that training uses."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def trainer(precision: str, plugins: list[Any], **rest: Any) -> Trainer:
        return Trainer(plugins=[*plugins, MixedPrecision("16-mixed", "cpu", scaler)], **rest)

    monkeypatch.setattr("tinyfusion.pipeline.fit.Trainer", trainer)
    return scaler


def test_gradients_are_clipped_without_their_scale(make_net, shared, run, scaler, tmp_path) -> None:
    norms: dict[bool, list[float]] = {False: [], True: []}

    class Norms(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Recovery, *_: Any) -> None:
            norms[fused].append(float(pl_module.grad_norm))
            left = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            assert float(torch.stack(left).norm()) == pytest.approx(0.5, rel=1e-3)

    for fused in norms:
        optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=fused)
        settings = shared(3, clip_norm=0.5, optimizer=optimizer)
        module = Recovery(make_net(2), None, Objective(task_weight=10.0), [], 0.9, **settings)
        run(module, callbacks=[Norms()], folder=tmp_path / str(fused))
    assert scaler.get_scale() == 8.0
    assert min(norms[True]) > 1.0
    # A fused optimiser takes scaled gradients, so that nobody else unscales them.
    assert norms[True] == pytest.approx(norms[False], rel=1e-2)


@pytest.mark.parametrize(("kind", "skipped"), [("bad_gradient", 0), ("bad_loss", 2)])
def test_overflow_of_scaled_gradients_is_left_to_the_scaler(
    faulty, run, scaler, caplog, kind: str, skipped: int
) -> None:
    forget()
    module, seen = faulty(5), Snapshots()
    setattr(module, kind, (2, 3))
    run(module, callbacks=[seen])
    assert module.skipped_steps == skipped
    left_out = "step(s) of test were left out by the gradient scaler: overflow"
    assert [f"note: 1 {left_out}: step {step}" in caplog.messages for step in (3, 4)] == (
        [not skipped] * 2
    )
    weights = [[v for k, v in after.items() if "student" in k] for after in seen.after.values()]
    pairs = [all(map(torch.equal, *pair)) for pair in pairwise(weights)]
    assert pairs == [False, True, True, False], "both steps are left out"
    # A bad loss with a good gradient is nothing that another scale would help.
    assert scaler.get_scale() == (2.0 if kind == "bad_gradient" else 8.0)


def test_gradients_are_clipped_to_the_global_norm(make_net, shared, run) -> None:
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

    objective = Objective(task_weight=1000.0)
    module = Recovery(make_net(2), None, objective, [], 0.9, **shared(2, clip_norm=0.5))
    optimizer = torch.optim.SGD(module.student.parameters(), lr=1.0)
    before = [p.detach().clone() for p in module.student.parameters()]
    module._optimizer = lambda groups: optimizer
    run(module, callbacks=[Norms()])
    # Called before clipping: the raw norms are large, the step taken is not.
    moved = [p.detach() - b for p, b in zip(module.student.parameters(), before, strict=True)]
    assert min(norms) > 0.5
    assert float(torch.stack([m.norm() for m in moved]).norm()) <= 2 * 0.5 + 1e-4
