"""Two processes that share the global batch train as one that holds all of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from tinyfusion.budget import Budget
from tinyfusion.gating.contract import Gates
from tinyfusion.gating.deltas import Frozen, Full, Lora
from tinyfusion.gating.draws import GumbelTopK
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.interrupts import Interrupted
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.scheme import parse_scheme
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.module import DenoiserTraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import Linear
from tinyfusion.training.sharding import full

STEPS, BATCH = 3, 32
TWO = {"devices": 2}
slow = pytest.mark.slow
Build = Callable[..., DenoiserTraining]


class Watch(Callback):
    """Notes the losses, what is trained, and the Gumbel noise of every sample."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.noted = 0
        self.gumbel: dict[tuple[int, int], Tensor] = {}
        self.facts: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: DenoiserTraining) -> None:
        draw = type(pl_module.noise).gumbel

        def noted(noise: Any, purpose: str, rows: Any, *shape: int) -> Tensor:
            drawn = draw(noise, purpose, rows, *shape)
            for row, value in enumerate(drawn):
                self.gumbel[rows.step, rows.first + row] = value.clone()
            return drawn

        object.__setattr__(pl_module.noise, "gumbel", noted.__get__(pl_module.noise))

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.note_loss(trainer)

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self.note_loss(trainer)

    def note_loss(self, trainer: Any) -> None:
        # Logged after the callbacks were called at the end of a step.
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None and trainer.global_step > self.noted:
            self.losses.append(float(loss))
            self.noted = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: DenoiserTraining, *_: Any) -> None:
        wrapped = {id(m) for m in trainer.strategy.model.modules()}
        held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        named = dict(pl_module.named_parameters())
        self.facts = {
            "divided": all(isinstance(p, DTensor) for p in named.values()),
            "whole": not any(isinstance(p, DTensor) for p in named.values()),
            "in optimizer": sorted(name for name, p in named.items() if id(p) in held),
            "strategy": type(trainer.strategy).__name__,
        }
        teacher = getattr(pl_module, "teacher", None)
        if teacher is not None:
            self.facts["teacher apart"] = (
                wrapped.isdisjoint(map(id, teacher.net.modules()))
                and held.isdisjoint(map(id, teacher.net.parameters()))
                and not any(isinstance(p, DTensor) for p in teacher.net.parameters())
            )


def outcome(module: DenoiserTraining, watch: Watch) -> dict[str, Any]:
    averages = {
        f"{name} average of {key}": value
        for name, (ema, _) in module.averages.items()
        for key, value in ema.shadow.items()
    }
    state = {name: p.detach() for name, p in module.named_parameters()} | averages
    assert not any(isinstance(value, DTensor) for value in state.values())
    return {
        "state": {name: value.clone() for name, value in state.items()},
        "losses": watch.losses,
        "gumbel": watch.gumbel,
        "facts": watch.facts,
    }


@pytest.fixture
def make(make_net, shared) -> Build:
    """``make(kind, steps)``: a phase that has not begun."""
    # Adam would blow up the rounding of gradients that are zero by symmetry.
    plain = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.5)}

    def build(kind: str, steps: int = STEPS) -> DenoiserTraining:
        arguments = shared(steps, rate=0.1, **plain)
        if kind == "recovery":
            objective = Objective(0.1, 0.9, 0.01, 0.0, "intersection", variance_kl=True)
            teacher = FrozenTeacher(make_net(4))
            pairs = [(0, 1), (1, 3)]
            return Recovery(make_net(2), teacher, objective, pairs, 0.9, **arguments)
        net = make_net(4)
        low_rank = Lora(2, 4.0)
        {"lora": low_rank, "units": low_rank, "full": Full(), "frozen": Frozen()}[kind].attach(net)
        schedules = (Linear(4.0, 0.1), Linear(10.0, 100.0))
        gates: Gates = PatternGates(parse_scheme("1:2", 4))
        if kind == "units":
            gates = UnitGates(Budget.of(net.units(), 2), GumbelTopK())
        return MaskLearning(net, gates, 10.0, *schedules, 0.5, **arguments)

    return build


@pytest.fixture
def trained(make, run, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``trained(kind, folder, ...)``: what a phase comes to."""

    def train(kind: str, folder: str, more: Any = (), **options: Any) -> dict[str, Any]:
        module, watch = make(kind), Watch()
        run(
            module,
            BATCH,
            folder=tmp_path / folder,
            callbacks=[watch, *more],
            log_every=1,
            **options,
        )
        return outcome(module, watch)

    return train


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
    assert len(found["losses"]) == STEPS
    assert found["state"].keys() == wanted["state"].keys()
    loss = max(abs(a - b) for a, b in zip(found["losses"], wanted["losses"], strict=True))
    state = max(float((found["state"][n] - v).abs().max()) for n, v in wanted["state"].items())
    print(f"largest difference: losses {loss:.2g}, state {state:.2g}")  # shown by pytest -rP
    for name, value in wanted["state"].items():
        torch.testing.assert_close(found["state"][name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("strategy", "kind", "accumulate"),
    [
        ("ddp", "units", 1),
        ("fsdp", "recovery", 1),
        pytest.param("fsdp", "units", 1, marks=slow),
        pytest.param("ddp", "lora", 1, marks=slow),
        pytest.param("fsdp", "lora", 1, marks=slow),
        pytest.param("ddp", "recovery", 1, marks=slow),
        pytest.param("ddp", "full", 1, marks=slow),
        pytest.param("ddp", "frozen", 1, marks=slow),
        pytest.param("fsdp", "full", 1, marks=slow),
        pytest.param("fsdp", "frozen", 1, marks=slow),
        pytest.param("ddp", "full", 4, marks=slow),
        pytest.param("fsdp", "full", 4, marks=slow),
        pytest.param("ddp", "recovery", 4, marks=slow),
        pytest.param("fsdp", "recovery", 4, marks=slow),
    ],
)
def test_two_times_sixteen_is_once_thirty_two(
    trained, on_two_ranks, strategy: str, kind: str, accumulate: int
) -> None:
    one = trained(kind, "one")
    first, second = on_two_ranks(
        lambda: trained(kind, "two", strategy=strategy, accumulate=accumulate, **TWO)
    )
    for rank in (first, second):
        assert_same(rank, one)
        assert rank["facts"]["divided" if strategy == "fsdp" else "whole"]
        assert rank["facts"]["in optimizer"] == one["facts"]["in optimizer"]
        assert rank["facts"].get("teacher apart", True)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), f"ranks differ in {name}"
    # Each rank drew for its own samples what one process draws for them.
    assert first["gumbel"].keys().isdisjoint(second["gumbel"].keys())
    both = first["gumbel"] | second["gumbel"]
    assert both.keys() == one["gumbel"].keys()
    assert all(torch.equal(value, both[key]) for key, value in one["gumbel"].items())


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("one", "fsdp", "recovery"),
        pytest.param("one", "fsdp", "units", marks=slow),
        pytest.param("one", "fsdp", "lora", marks=slow),
        pytest.param("fsdp", "one", "lora", marks=slow),
        pytest.param("fsdp", "one", "recovery", marks=slow),
        pytest.param("ddp", "fsdp", "lora", marks=slow),
        pytest.param("ddp", "fsdp", "recovery", marks=slow),
        pytest.param("fsdp", "ddp", "lora", marks=slow),
        pytest.param("fsdp", "ddp", "recovery", marks=slow),
    ],
)
def test_resumed_under_another_strategy(
    trained, on_two_ranks, tmp_path: Path, before: str, after: str, kind: str
) -> None:
    class Killed(Exception):
        pass

    class KillAt(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                raise Killed

    def part(strategy: str, kill: bool) -> Callable[[], Any]:
        def work() -> Any:
            options = {} if strategy == "one" else {"strategy": strategy, **TWO}
            if not kill:
                return trained(kind, "part", resume_every=2, **options)
            with pytest.raises(Killed):
                trained(kind, "part", resume_every=2, more=[KillAt()], **options)
            return None

        return work

    one = trained(kind, "one")
    for strategy, kill in ((before, True), (after, False)):
        work = part(strategy, kill)
        results = [work()] if strategy == "one" else on_two_ranks(work)
    stored = torch.load(tmp_path / "part/resume.ckpt", weights_only=True)
    assert set(stored["state_dict"]) == set(one["facts"]["in optimizer"])
    for result in results:
        result["losses"] = one["losses"][:2] + result["losses"][-1:]
        assert_same(result, one)


def test_a_tensor_that_is_not_divided_is_its_own_whole() -> None:
    value = torch.ones(2)
    assert full(value) is value


class BadOnOneRank(Recovery):
    """Has a loss that is not a number, at one step, for the samples of one rank only."""

    def step_losses(self, prepared: Any) -> dict[str, Tensor]:
        terms = super().step_losses(prepared)
        if prepared.rows.step == 1 and prepared.rows.first > 0:
            terms["total"] = terms["total"] * float("nan")
        return terms


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=slow)])
def test_a_step_that_is_bad_on_one_rank_is_skipped_by_all(
    make_net, shared, run, on_two_ranks, strategy: str
) -> None:
    def work() -> dict[str, Any]:
        module = BadOnOneRank(make_net(2), None, Objective(), [], 0.9, **shared(STEPS))
        run(module, BATCH, strategy=strategy, **TWO)
        state = {name: p.detach().clone() for name, p in module.named_parameters()}
        return {"state": state, "skipped": module.skipped_steps}

    first, second = on_two_ranks(work)
    assert first["skipped"] == second["skipped"] == 1
    for name, value in first["state"].items():
        assert value.isfinite().all() and torch.equal(value, second["state"][name])


@slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "how",
    [
        {"checkpoint_blocks": True},
        {"compile": True, "compile_backend": "aot_eager"},
        {"precision": "bf16-mixed"},
    ],
    ids=["recomputed", "compiled", "bf16"],
)
def test_other_ways_to_compute(trained, on_two_ranks, strategy: str, how: dict) -> None:
    one = trained("full", "one", accumulate=2, **how)
    loose = 1e-2 if "precision" in how else 1e-5
    for rank in on_two_ranks(
        lambda: trained("full", "two", strategy=strategy, accumulate=2, **how, **TWO)
    ):
        assert rank["losses"] == pytest.approx(one["losses"], rel=loose)
        assert all(value.dtype == torch.float32 for value in rank["state"].values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    on_two_ranks, run, make_net, shared, tmp_path, strategy
) -> None:
    class Signal(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1 and trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

    def work() -> tuple[int, int]:
        module = Recovery(make_net(2), None, Objective(), [], 0.9, **shared(5))
        try:
            run(module, callbacks=[Signal()], devices=2, strategy=strategy)
        except Interrupted as stop:
            return stop.number, module.global_step
        return 0, 0

    assert on_two_ranks(work) == [(signal.SIGUSR1, 2)] * 2
    saved = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(value.shape for value in saved["state_dict"].values())
