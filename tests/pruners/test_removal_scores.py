"""Scores from removing one block: rise of the loss, change of the output."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tinyfusion.backbones.contract import BlockRunner
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.budget import Budget
from tinyfusion.errors import InputError
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.processes.contract import Process, mean_flat
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.pruners.ecoflap import ECoFLaP
from tinyfusion.pruners.flux_lite import FluxLite
from tinyfusion.pruners.laptop_diff import LaptopDiff, time_weights
from tinyfusion.pruners.selectors import Greedy, Knapsack, Selector, TopK
from tinyfusion.pruners.sensitivity import Sensitivity
from tinyfusion.pruners.shortgpt import ShortGPT


@dataclass(frozen=True)
class Pair:
    """Input of the network and what it should have given."""

    clean: Tensor
    inputs: tuple[Tensor, ...]
    target: Tensor


class Shift(Process):
    """The network is to add a constant to noise; the loss is its mean squared error."""

    kind = "diffusion"
    times = "whole"

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift

    def corrupt(self, clean: Tensor, draws: Any) -> Pair:
        noise = draws.normal("noise", *clean.shape[1:])
        times = (1000 * draws.uniform("times")).long()
        return Pair(clean, (noise, times), noise + self.shift.view_as(noise[0]))

    def loss(self, out: Tensor, batch: Pair) -> dict[str, Tensor]:
        loss = mean_flat((out - batch.target) ** 2)
        return {"mse": loss, "loss": loss}

    def distillation_loss(
        self, student_out: Tensor, teacher_out: Tensor, batch: Pair, variance: bool
    ) -> dict[str, Tensor]:
        return {"kd": mean_flat((student_out - teacher_out) ** 2)}


def unit(place: int, size: float = 1.0) -> Tensor:
    """A state of 16 channels that is zero but for one."""
    return torch.zeros(16).index_fill(0, torch.tensor(place), size)


def adding(*vectors: Tensor):
    return [lambda states, vector=vector: states + vector for vector in vectors]


SIZES = (1.0, 0.4, 2.0, 0.8)
ALONE = [size**2 / 16 for size in SIZES]


@pytest.fixture
def additive(stack, context):
    """``additive(keep)``: each block adds to a channel of its own, as the target wants it to."""
    vectors = [unit(place, size) for place, size in enumerate(SIZES)]
    net = stack(*adding(*vectors))
    return lambda keep: context(keep, net=net, process=Shift(sum(vectors)))


@pytest.mark.parametrize("selector", [TopK(), Greedy(), Knapsack()])
def test_effects_of_additive_blocks(additive, selector: Selector) -> None:
    for pruner, name in ((Sensitivity, "loss_change"), (LaptopDiff, "output_change")):
        choice = pruner(selector, num_samples=30).choose(additive(2))
        assert choice.scores[name] == pytest.approx(ALONE, rel=1e-4), name
        assert choice.kept == (0, 2) and choice.scores["order"] == [1, 3]


def test_greedy_scores_are_of_the_model_that_is_left(additive) -> None:
    found = Sensitivity(Greedy(), 30).choose(additive(1)).scores["order_scores"]
    assert found == pytest.approx(sorted(ALONE)[:3], rel=1e-4), "rises over the pruned model's loss"
    found = LaptopDiff(Greedy(), 30).choose(additive(1)).scores["order_scores"]
    changes = torch.tensor(sorted(ALONE)[:3]).cumsum(0).tolist()
    assert found == pytest.approx(changes, rel=1e-4), "changes from the whole model's output"


def test_identical_blocks_have_identical_scores(stack, context) -> None:
    # Each score has sampling error; common draws let none of it into their difference.
    same = unit(0)
    net = stack(*adding(same, same, same))
    shift = Shift(unit(0, 1.3))
    for pruner, name in ((Sensitivity, "loss_change"), (LaptopDiff, "output_change")):
        scores = pruner(TopK(), num_samples=10).choose(context(2, net=net, process=shift)).scores
        assert scores[name][0] == pytest.approx(scores[name][1], abs=1e-6)
        assert scores[name][1] == pytest.approx(scores[name][2], abs=1e-6)


def test_of_two_redundant_blocks_one_shot_removes_both_and_greedy_one(stack, context) -> None:
    def at_least_nine(states: Tensor) -> Tensor:
        return torch.cat([states[..., :1].clamp(min=9.0), states[..., 1:]], -1)

    mild = adding(unit(1, 0.5), unit(2, 0.6))
    net = stack(at_least_nine, at_least_nine, *mild)
    process = Shift(unit(0, 9.0) + unit(1, 0.5) + unit(2, 0.6))
    assert Sensitivity(TopK(), 30).choose(context(2, net=net, process=process)).kept == (2, 3)
    choice = Sensitivity(Greedy(), 30).choose(context(2, net=net, process=process))
    assert choice.scores["order"] == [0, 2] and choice.kept == (1, 3)


def test_an_identity_costs_nothing_and_the_gap_of_a_sum_is_told(stack, context) -> None:
    # Blocks 1 and 3 add to the same channel: together they change the output four times as much.
    net = stack(*adding(unit(0, 3.0), unit(1), torch.zeros(16), unit(1)))
    whole = Shift(unit(0, 3.0) + unit(1, 2.0))
    scores = LaptopDiff(Knapsack(), 20).choose(context(1, net=net, process=whole)).scores
    assert scores["output_change"] == pytest.approx([9 / 16, 1 / 16, 0, 1 / 16], rel=1e-4)
    assert sorted(scores["order"]) == [1, 2, 3]
    assert scores["set_change"] == pytest.approx(4 / 16, rel=1e-4)
    assert scores["additivity_gap"] == pytest.approx(0.5, rel=1e-4)
    free = LaptopDiff(TopK(), 20).choose(context(3, net=net, process=whole)).scores
    assert free["set_change"] == 0 and free["additivity_gap"] is None


def test_knapsack_of_a_budget_of_parameters_weighs_by_them(stack, context) -> None:
    vectors = [unit(place, size) for place, size in enumerate((0.7, 0.5, 0.5, 0.5))]
    net = stack(*adding(*vectors), parameters=(6, 2, 2, 2))
    counted = context(2, net=net, process=Shift(sum(vectors)))
    half = Budget(counted.units, (6.0, 2.0, 2.0, 2.0), 6, "parameters")
    choice = LaptopDiff(Knapsack(), 20).choose(replace(counted, budget=half))
    assert choice.kept == (1, 2, 3), "0.49 for half of the parameters, less than 3 x 0.25"
    assert choice.scores["removed"] == choice.scores["to_remove"] == 6


def test_a_model_that_breaks_down_without_a_block_keeps_it(stack, context) -> None:
    def explode(states: Tensor) -> Tensor:
        return torch.where(states[..., :1] < 5, torch.nan, states)

    net = stack(*adding(unit(0, 99.0), unit(1), unit(2, 2.0)), explode)
    shift = Shift(unit(0, 99.0) + unit(1) + unit(2, 2.0))
    choice = Sensitivity(Greedy(), 20).choose(context(2, net=net, process=shift))
    assert choice.scores["loss_change"][0] == float("inf") and 0 in choice.kept


# Time weights


def test_time_weights_average_one_and_grow_with_noise(context) -> None:
    for process, sign in ((GaussianDiffusion(), 1), (Interpolant(), -1)):
        batch = context(2, process=process).calibration(50)
        times = torch.cat([part.inputs[1] for _, part in batch.parts]).double()
        for power in (1.0, 3.0):
            weights = time_weights(batch, power)
            assert float(weights.mean()) == pytest.approx(1) and float(weights.min()) > 0
            assert (weights[(sign * times).argsort()].diff() >= 0).all()
        assert torch.equal(time_weights(batch, 0.0), torch.ones(50, dtype=torch.float64))
    whole = context(2).calibration(50)
    levels = (whole.parts[0][1].inputs[1].double() + 1) / 1000
    assert time_weights(whole, 2.0).tolist() == pytest.approx(
        (levels**2 / (levels**2).mean()).tolist()
    )


def test_output_changes_are_weighted_means_over_times(net: DiT, context) -> None:
    pruner = LaptopDiff(TopK(), 40, noisy_power=2.0)
    calibration = pruner.calibration(context(2))
    wanted, weights = calibration.predict(net), time_weights(calibration, 2.0)
    ((_, corrupted),) = calibration.parts
    naive = []
    for block in range(4):
        out = calibration.predict(net, running({0, 1, 2, 3} - {block}))
        kd = calibration.process.distillation_loss(out, wanted, corrupted, variance=False)["kd"]
        naive.append(float((weights * kd).sum() / weights.sum()))
    found = pruner.scores(net, calibration, range(4)).tolist()
    assert found == pytest.approx(naive, rel=1e-4)
    plain = LaptopDiff(TopK(), 40).scores(net, calibration, range(4)).tolist()
    assert found != pytest.approx(plain, rel=1e-2)
    # In pieces of a few samples each has its own weights.
    pieces = CandidateScores(net, calibration, rows=7)
    kept = [(0, 1, 2), (1, 2, 3)]
    assert list(pieces.distances(kept, wanted, weights)) == pytest.approx(
        [naive[3], naive[0]], rel=1e-4
    )


def test_the_gap_of_weighted_changes_is_of_the_weighted_set(additive) -> None:
    scores = LaptopDiff(Knapsack(), 30, noisy_power=1.0).choose(additive(2)).scores
    assert scores["output_change"] == pytest.approx(ALONE, rel=1e-4), "the same at all times"
    assert scores["additivity_gap"] == pytest.approx(0, abs=1e-4)


def test_time_weights_need_times(context) -> None:
    with pytest.raises(InputError, match=r"noisy_power=1 weights by time, .* kind 'masked'"):
        LaptopDiff(TopK(), 8, noisy_power=1.0).choose(context(2, process=MaskedDiffusion()))
    with pytest.raises(InputError, match=r"pruner\.noisy_power=-1 must be at least 0"):
        LaptopDiff(TopK(), noisy_power=-1)


def running(kept: Collection[int]) -> BlockRunner:
    """Runs some of the blocks, the plain way."""
    return lambda index, block, states, condition: (
        block(states, condition) if index in kept else states
    )


@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (0, 2, 3)])
def test_scores_of_a_real_model_are_those_of_removing_blocks_one_by_one(
    net: DiT, context, kept: tuple[int, ...]
) -> None:
    calibration = context(2).calibration(40)
    without = [running(set(kept) - {block}) for block in kept]
    whole = calibration(net, running(kept))["loss"]
    naive = [calibration(net, runner)["loss"] - whole for runner in without]
    found = Sensitivity(TopK(), 40).scores(net, calibration, kept)
    assert found.tolist() == pytest.approx(naive, rel=1e-4, abs=1e-5)
    wanted = calibration.predict(net)
    naive = [calibration.distance(calibration.predict(net, runner), wanted) for runner in without]
    found = LaptopDiff(TopK(), 40).scores(net, calibration, kept)
    assert found.tolist() == pytest.approx(naive, rel=1e-4)


@pytest.mark.parametrize("pruner", [ShortGPT, FluxLite, Sensitivity, LaptopDiff, ECoFLaP])
def test_two_stacks_of_which_one_may_be_emptied(context, pruner) -> None:
    torch.manual_seed(0)
    net = MAR(
        input_size=4,
        hidden_size=16,
        encoder_depth=2,
        decoder_depth=2,
        num_heads=2,
        in_channels=1,
        num_classes=3,
        buffer_size=2,
        head_depth=1,
        head_width=16,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    # The encoder does nothing.
    for block in net.blocks[:2]:
        for name in ("attn.proj", "mlp.fc2"):
            torch.nn.init.zeros_(block.get_submodule(name).weight)
            torch.nn.init.zeros_(block.get_submodule(name).bias)
    process = MaskedDiffusion(patch_size=1)
    choice = pruner(Greedy(), num_samples=12).choose(context(2, net=net, process=process))
    assert choice.kept == (2, 3) and sorted(choice.scores["order"]) == [0, 1]
    assert choice.scores["order_scores"] == pytest.approx([0, 0], abs=1e-5)
