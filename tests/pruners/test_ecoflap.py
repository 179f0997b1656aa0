"""Scores from the loss after a small change of a unit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import predict
from tinyfusion.backbones.unit_weights import OwnParameter
from tinyfusion.errors import InputError
from tinyfusion.pruners.ecoflap import ECoFLaP, slope_along_draws
from tinyfusion.pruners.selectors import Greedy, TopK
from tinyfusion.pruners.sensitivity import Sensitivity


def quadratic() -> tuple[nn.Parameter, nn.Parameter, Tensor]:
    """Two parameters, and the gradient of `loss_of` with respect to both."""
    draws = torch.Generator().manual_seed(1)
    one, two = (
        nn.Parameter(torch.randn(size, generator=draws, dtype=torch.float64)) for size in (5, 3)
    )
    return one, two, torch.cat([2 * one.detach() + 1, 6 * two.detach()])


def test_slope_converges_to_the_norm_of_the_gradient() -> None:
    one, two, gradient = quadratic()

    def loss() -> float:
        return ((one.square() + one).sum() + 3 * two.square().sum()).item()

    own = [OwnParameter(one), OwnParameter(two)]
    found = slope_along_draws(loss, own, 1e-3, 3000, 0)
    assert found == pytest.approx(float(gradient.norm()) * math.sqrt(2 / math.pi), rel=0.04)
    # Central differences have no error of a quadratic loss, whatever the size of the change.
    few = [slope_along_draws(loss, own, epsilon, 5, 0) for epsilon in (1e-3, 1.0)]
    assert few[0] == pytest.approx(few[1], rel=1e-8)
    assert few[0] != pytest.approx(slope_along_draws(loss, own, 1e-3, 5, 1), rel=1e-3)


def test_a_part_of_a_parameter_is_changed_alone() -> None:
    one, _, _ = quadratic()
    before, seen = one.detach().clone(), []

    def loss() -> float:
        seen.append(one.detach() != before)
        return 0.0

    slope_along_draws(loss, [OwnParameter(one, 0, torch.tensor([1, 3]))], 1e-3, 2, 0)
    assert len(seen) == 4
    assert all(changed.tolist() == [False, True, False, True, False] for changed in seen)
    assert torch.equal(one.detach(), before)


@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (0, 2, 3)])
def test_a_gate_shut_altogether_is_sensitivity(net, context, kept) -> None:
    pruner, plain = ECoFLaP(TopK(), 12, delta=1.0), Sensitivity(TopK(), 12)
    found = pruner.scores(net, pruner.calibration(context(2)), kept)
    wanted = plain.scores(net, plain.calibration(context(2)), kept).abs()
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-6)


def test_a_gate_slightly_shut_gives_the_slope_of_the_loss(net, context) -> None:
    pruner = ECoFLaP(TopK(), 12)
    batch, seed = pruner.calibration(context(2))
    ((_, noised),) = batch.parts
    gates = torch.ones(4, requires_grad=True)

    def gated(index, block, states, condition):
        return states + gates[index] * (block(states, condition) - states)

    out = predict(net.eval(), noised.inputs, batch.conditioning, gated)
    loss = batch.process.loss(out, noised)["loss"].mean()
    (slopes,) = torch.autograd.grad(loss, gates)
    found = pruner.scores(net, (batch, seed), range(4))
    assert found.tolist() == pytest.approx(slopes.abs().tolist(), rel=0.05)


@pytest.mark.parametrize("form", ["gate", "weights"])
def test_weights_are_bit_identical_afterwards(net, context, form) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruner = ECoFLaP(Greedy(), 8, form=form, draws=2, epsilon=0.1)
    choice = pruner.choose(context(2))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert choice.scores["form"] == form and min(choice.scores["zeroth_order"]) > 0
    assert choice == pruner.choose(context(2)), "directions are functions of the seed"


def test_weights_are_put_back_when_a_loss_fails() -> None:
    one, _, _ = quadratic()
    before = one.detach().clone()

    def fails() -> float:
        raise InputError("no")

    with pytest.raises(InputError):
        slope_along_draws(fails, [OwnParameter(one)], 0.1, 1, 0)
    assert torch.equal(one.detach(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "block"}, "form='block' is not known; valid: gate, weights"),
        ({"delta": 0.0}, r"delta=0\.0 must be above 0 and at most 1"),
        ({"delta": 1.5}, r"delta=1\.5 must be above 0 and at most 1"),
        ({"epsilon": 0.0}, r"epsilon=0\.0 must be above 0"),
        ({"draws": 0}, "draws=0 must be at least 1"),
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
    ],
)
def test_refused(options, message) -> None:
    with pytest.raises(InputError, match=r"pruner\." + message):
        ECoFLaP(TopK(), **options)
