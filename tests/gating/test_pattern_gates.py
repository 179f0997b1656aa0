"""Laws of the learned choice."""

from __future__ import annotations

from math import comb, log

import pytest
import torch

from tinyfusion.gating.pattern_gates import GroupGate, PatternGates, entropy
from tinyfusion.scheme import BlockGroup, parse_scheme
from tinyfusion.seeding import Rows, StepNoise


def gumbel(num_rows: int, num_choices: int) -> torch.Tensor:
    return StepNoise(7, "test").gumbel("gumbel", Rows(0, 0, num_rows), num_choices)


@pytest.mark.parametrize(("keep", "size"), [(1, 2), (2, 3), (2, 4), (3, 4), (7, 14)])
def test_candidates_are_all_patterns_once_in_lexicographic_order(keep: int, size: int) -> None:
    rows = GroupGate(BlockGroup(0, keep, size)).choices_CM
    assert rows.shape == (comb(size, keep), size)
    assert (rows.sum(1) == keep).all()
    kept = [tuple(row.nonzero().flatten().tolist()) for row in rows]
    assert kept == sorted(set(kept))


def test_two_of_three_in_the_order_of_the_paper() -> None:
    expected = [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    assert GroupGate(BlockGroup(0, 2, 3)).choices_CM.tolist() == expected


def test_start_is_exactly_uniform() -> None:
    gates = PatternGates(parse_scheme("2:4", 8))
    gates.scale = 100.0
    for probabilities in gates.probabilities(gates.logits()):
        assert (probabilities == probabilities[0]).all()
        assert float(probabilities.sum()) == pytest.approx(1.0)
    state = gates.state(gates.logits())
    assert [entropy(p) for p in state.groups] == pytest.approx([log(6)] * 2)
    assert state.inclusion == pytest.approx([0.5] * 8) and state.margin == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [4.0, 1.0, 0.1])
def test_frequencies_are_the_softmax_whatever_the_temperature(temperature: float) -> None:
    gate = GroupGate(BlockGroup(0, 2, 3))
    with torch.no_grad():
        gate.logits_C.copy_(torch.tensor([0.02, 0.03, 0.005]))
    draws = 40_000
    keep_BM = gate(gumbel(draws, 3), temperature, scale=100.0).round()
    wanted = (100.0 * gate.logits_C.detach()).softmax(0)
    for choice, probability in zip(gate.choices_CM, wanted, strict=True):
        frequency = float((keep_BM == choice).all(1).float().mean())
        # Four standard errors of a frequency.
        assert frequency == pytest.approx(float(probability), abs=4 * 0.5 / draws**0.5)


def test_zeros_are_exact_and_ones_are_off_by_one_rounding_at_most() -> None:
    gates = PatternGates(parse_scheme([[2, 4], [3, 4], [1, 2]], 10))
    gates.temperature, gates.scale = 4.0, 100.0
    keep_BL = gates(gumbel(500, gates.num_draws)).detach()
    assert keep_BL.shape == (500, 10)
    kept = keep_BL > 0.5
    assert (keep_BL[~kept] == 0).all()
    assert (keep_BL[kept] - 1).abs().max() < 2e-7
    assert (kept[:, :4].sum(1) == 2).all()
    assert (kept[:, 4:8].sum(1) == 3).all()
    assert (kept[:, 8:].sum(1) == 1).all()
    assert len({tuple(row.tolist()) for row in kept}) == 6 * 4 * 2, "every architecture occurs"


def test_gradient_is_that_of_the_soft_relaxation() -> None:
    gate = GroupGate(BlockGroup(0, 2, 4)).double()
    with torch.no_grad():
        gate.logits_C.normal_(0.02, 0.005)
    noise = gumbel(5, 6).double()
    weights = torch.randn(5, 4, dtype=torch.float64)
    (hard,) = torch.autograd.grad((gate(noise, 2.0, 100.0) * weights).sum(), gate.logits_C)
    soft_BM = gate.soft_choice(noise, 2.0, 100.0) @ gate.choices_CM
    (soft,) = torch.autograd.grad((soft_BM * weights).sum(), gate.logits_C)
    torch.testing.assert_close(hard, soft)
    assert (hard != 0).all()


def test_gradient_of_the_logits_is_not_rounded_under_autocast() -> None:
    gate = GroupGate(BlockGroup(0, 2, 4))
    noise, weights = gumbel(64, 6), torch.randn(64, 4)
    (plain,) = torch.autograd.grad((gate(noise, 1.0, 100.0) * weights).sum(), gate.logits_C)
    with torch.autocast("cpu", torch.bfloat16):
        keep_BM = gate(noise, 1.0, 100.0)
        loss = (keep_BM * weights).sum()
    assert keep_BM.dtype == torch.float32
    (cast,) = torch.autograd.grad(loss, gate.logits_C)
    torch.testing.assert_close(cast, plain)


def test_decision_is_the_most_probable_pattern_of_the_given_logits() -> None:
    gates = PatternGates(parse_scheme([[1, 2], [2, 3]], 5))
    with torch.no_grad():
        gates.groups[0].logits_C[1] += 0.01
        gates.groups[1].logits_C[2] += 0.01
    assert gates.state(gates.logits()).kept == (1, 3, 4)
    averaged = gates.logits()
    averaged[0][0] += 1.0
    assert gates.state(averaged).kept == (0, 3, 4)
    assert gates.state(gates.logits()).kept == (1, 3, 4), "logits() must be copies"


def test_state_dict_holds_nothing_but_the_logits() -> None:
    gates = PatternGates(parse_scheme("2:4", 8))
    assert sorted(gates.state_dict()) == ["groups.0.logits_C", "groups.1.logits_C"]
