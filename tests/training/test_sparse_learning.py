"""Sparse gating trains as the dense form does, however the steps are run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from tinyfusion.budget import Budget
from tinyfusion.errors import InputError
from tinyfusion.gating.contract import GateState
from tinyfusion.gating.deltas import Frozen, Full, Lora
from tinyfusion.gating.draws import ConditionalBernoulli, GumbelTopK
from tinyfusion.gating.low_rank import LowRankLinear
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.gating.penalised import PenalisedCost
from tinyfusion.gating.unit_gates import UnitGates
from tinyfusion.pruners.learned import Learned
from tinyfusion.scheme import parse_scheme
from tinyfusion.training.mask_learning import MaskLearning
from tinyfusion.training.schedules import Linear
from tinyfusion.units import BLOCKS, Place, Unit

STEPS = 3


@pytest.fixture
def make(make_net, shared) -> Callable[..., MaskLearning]:
    # Adam would blow up the rounding of gradients that are zero by symmetry.
    def sgd(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1, momentum=0.5)

    def build(
        delta: Any, dense: bool = False, steps: int = STEPS, rate: float = 0.1, **options: Any
    ) -> MaskLearning:
        net = make_net(4)
        torch.manual_seed(5)
        delta.attach(net)
        gates = UnitGates(Budget.of(net.units(), 2), GumbelTopK())
        schedules = (Linear(4.0, 0.1), Linear(10.0, 10.0))
        arguments = shared(steps, rate=rate, optimizer=sgd)
        return MaskLearning(net, gates, 10.0, *schedules, 0.5, dense=dense, **options, **arguments)

    return build


def state(module: MaskLearning) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("delta", [Lora(2, 4.0), Full(), Frozen()], ids=["lora", "full", "frozen"])
@pytest.mark.parametrize(
    ("options", "close"),
    [
        ({"accumulate": 4}, 1e-5),
        ({"precision": "bf16-mixed"}, 5e-3),
        ({"checkpoint_blocks": True}, 1e-5),
    ],
    ids=["micro-batches", "bfloat16", "recomputed"],
)
def test_trained_weights_are_those_of_the_dense_form(
    make, run, tmp_path, delta: Any, options: dict[str, Any], close: float
) -> None:
    modules = [make(delta, dense) for dense in (True, False)]
    for number, module in enumerate(modules):
        run(module, folder=tmp_path / str(number), **options)
    dense, sparse = map(state, modules)
    for name, value in dense.items():
        torch.testing.assert_close(sparse[name], value, rtol=0, atol=close, msg=name)


class NoiseOfRanks:
    """Gumbel noise by which all samples of the first half keep the first two of four blocks."""

    def __call__(self, purpose: str, rows: Any, *shape: int) -> Tensor:
        first = torch.tensor([20.0, 20.0, 0.0, 0.0])
        numbers = rows.first + torch.arange(rows.count)
        return torch.stack([first if number < 4 else first.flip(0) for number in numbers])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("delta", [Lora(2, 4.0), Full()], ids=["lora", "full"])
def test_ranks_may_keep_none_of_the_blocks_that_others_keep(
    make, run, on_two_ranks, tmp_path, delta: Any, strategy: str
) -> None:
    def work(dense: bool, folder: str, **trainer: Any) -> dict[str, Tensor]:
        module = make(delta, dense)
        object.__setattr__(module.noise, "gumbel", NoiseOfRanks())
        run(module, 8, folder=tmp_path / folder, **trainer)
        return state(module)

    wanted = work(True, "dense")
    for rank in on_two_ranks(lambda: work(False, "sparse", devices=2, strategy=strategy)):
        for name, value in wanted.items():
            torch.testing.assert_close(rank[name], value, rtol=0, atol=1e-5, msg=name)


@contextmanager
def counting_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the programs that are compiled, which run as they are."""
    programs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        programs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compile_blocks = "tinyfusion.pipeline.fit.compile_blocks"

    def compile_all(net: Any, _: str) -> None:
        for block in net.blocks:
            block.compile(backend=backend)

    monkeypatch.setattr(compile_blocks, compile_all)
    yield programs
    torch._dynamo.reset()


@pytest.mark.parametrize("delta", [Lora(2, 4.0), Full()], ids=["lora", "full"])
def test_compiled_blocks_are_few_programs_for_all_numbers_of_rows(
    make, run, monkeypatch, tmp_path, delta: Any
) -> None:
    plain = make(delta, steps=8)
    run(plain, 16, folder=tmp_path / "plain")
    with counting_programs(monkeypatch) as programs:
        compiled = make(delta, steps=8)
        run(compiled, 16, folder=tmp_path / "compiled", compile=True)
    # With and without gradients, of one size and of any, and of a single sample.
    assert 2 <= len(programs) <= 6
    for (name, value), found in zip(state(plain).items(), state(compiled).values(), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5, msg=name)


def test_low_rank_layers_compute_what_pefts_do() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3, bias=False)).double()
    Lora(2, 4.0).attach(ours.requires_grad_(True))
    ours.double()
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs = copy.deepcopy(ours)
    layers = [layer for layer in ours.modules() if isinstance(layer, LowRankLinear)]
    assert len(layers) == 2
    for layer in theirs.modules():
        if isinstance(layer, LowRankLinear):
            layer.__class__ = LowRankLinear.__mro__[1]
    x = torch.randn(5, 4, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for net in (ours, theirs):
        x.grad = None
        out = net(x)
        out.sin().sum().backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        found.append({"out": out.detach(), "x": x.grad} | gradients)
    assert len(found[0]) == 6
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-12, atol=1e-12, msg=key)
    layer, before = layers[0], ours(x)
    layer.enable_adapters(False)
    assert not torch.equal(ours(x), before)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    assert not any(isinstance(m, LowRankLinear) for m in with_dropout().modules())


def with_dropout() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 9))
    Lora(2, 4.0, dropout=0.5).attach(net)
    return net


# -- settled units ------------------------------------------------------------------------------


def test_settled_units_are_a_condition_of_the_draws() -> None:
    units = tuple(Unit(BLOCKS, Place("blocks", i, i + 1), i, 10) for i in range(4))
    gates = UnitGates(Budget.of(units, 2), GumbelTopK())
    states = [GateState((0, 1), (0.995, 0.6, 0.4, 0.005)), GateState((0, 1), (1.0, 0.5, 0.5, 0.02))]
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


def test_a_run_ends_when_all_units_are_settled(make, run, tmp_path, caplog) -> None:
    module = make(Frozen(), steps=9, settle=0.4, rate=1e-5)
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
    make, run, tmp_path, caplog, kill_at, dense: bool
) -> None:
    def learn(folder: str, *callbacks: Callback) -> MaskLearning:
        module = make(Frozen(), dense, steps=8, settle=0.01, rate=1e-5)
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
def test_ranks_settle_alike(make, run, on_two_ranks, tmp_path, strategy: str) -> None:
    def work(folder: str, **trainer: Any) -> tuple[dict[int, bool], dict[str, Tensor]]:
        module = make(Full(), steps=4, settle=0.2)
        decide(module)
        run(module, 8, folder=tmp_path / folder, **trainer)
        return module.gated.gates.settled, state(module)

    settled, wanted = work("one")
    assert settled == {0: True, 3: False}
    for found, values in on_two_ranks(lambda: work("two", devices=2, strategy=strategy)):
        assert found == settled
        for name, value in wanted.items():
            torch.testing.assert_close(values[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settle": 0.5}, r"pruner.settle=0.5 must be more than 0 and less than 0.5"),
        ({"settle": 0.0}, r"pruner.settle=0.0 must be"),
        ({"gate_gradients": 0.0}, r"pruner.gate_gradients=0.0 must be more than 0 and at most 1"),
        ({"gate_gradients": 0.5, "dense": True}, r"pruner.gate_gradients=0.5 leaves out"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Learned(Frozen(), Linear(4.0, 0.1), Linear(100.0, 100.0), **wrong)


def test_sampled_gate_gradients_learn_from_draws_of_their_own(make, run, tmp_path) -> None:
    modules = {share: make(Frozen(), gate_gradients=share) for share in (1.0, 0.5)}
    again = make(Frozen(), gate_gradients=0.5)
    for number, module in enumerate([*modules.values(), again]):
        run(module, folder=tmp_path / str(number))
    values = [state(m)["gated.gates.logits_L"] for m in (*modules.values(), again)]
    assert not torch.equal(values[0], values[1]) and torch.equal(values[1], values[2])
