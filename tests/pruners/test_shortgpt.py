"""Block influence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, forward_with_states
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.sit import SiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.pruners.scored import measured
from tinyfusion.pruners.selectors import Greedy, TopK
from tinyfusion.pruners.shortgpt import CleanInputs, ShortGPT, block_influence


def turn(angle: float, factor: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Turns two-dimensional states and scales them."""
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    matrix = torch.tensor([[cos, -sin], [sin, cos]])
    return lambda states: states @ matrix.T


@pytest.fixture
def influence(batches):
    """``influence(net, x, x, ...)``: block influence as a list."""

    def score(net: Backbone, *inputs: Tensor) -> list[float]:
        return block_influence(net, batches(*((x, x, x) for x in inputs))).tolist()

    return score


def test_identity_turn_and_scaling(stack, influence) -> None:
    net = stack(turn(0.0), turn(0.7), turn(-0.3, factor=5.0), turn(math.pi))
    expected = [0.0, 1 - math.cos(0.7), 1 - math.cos(0.3), 2.0]
    first, second = torch.randn(3, 5, 2), torch.randn(2, 5, 2)
    assert influence(net, first, second) == pytest.approx(expected, abs=1e-6)
    # As do the states that come in.
    assert influence(net, 7 * first) == pytest.approx(expected, abs=1e-6)


def test_batches_may_come_in_any_order_and_size(stack, influence) -> None:
    uneven = torch.tensor([[2.0, 0.4], [-0.4, 1.0]])  # not the same angle everywhere
    net = stack(lambda states: states @ uneven, turn(0.1))
    x = torch.randn(6, 5, 2)
    whole = influence(net, x)
    assert influence(net, x[4:], x[:4]) == pytest.approx(whole, abs=1e-6)
    by_hand = 1 - torch.cosine_similarity(x @ uneven, x, dim=-1).mean()
    assert whole[0] == pytest.approx(float(by_hand), abs=1e-6)


def test_three_blocks_by_hand(stack, influence) -> None:
    net = stack(lambda s: s + torch.tensor([1.0, 0.0]), turn(math.pi / 2), lambda s: s * s)
    # (0, 1) -> (1, 1) -> (-1, 1) -> (1, 1)
    x = torch.tensor([[[0.0, 1.0]]])
    assert influence(net, x) == pytest.approx([1 - math.sqrt(0.5), 1.0, 1.0], abs=1e-6)


def test_without_some_blocks(stack, batches) -> None:
    net = stack(turn(0.3), lambda s: s + 1.0, turn(0.2))
    x = torch.randn(4, 5, 2)
    found = block_influence(net, batches((x, x, x)), [1, 2])
    by_hand = 1 - torch.cosine_similarity(x + 1.0, x, dim=-1).mean()
    assert found.tolist() == pytest.approx([float(by_hand), 1 - math.cos(0.2)], abs=1e-6)


def test_golden_scores_and_choice(golden_scores, batches, context, monkeypatch) -> None:
    net, inputs, data = golden_scores
    whole = batches(*inputs)
    scores = block_influence(net, whole)
    # The official code ranks by similarity, the paper by one minus it.
    torch.testing.assert_close(1 - scores.float(), data["bi_score"], rtol=1e-4, atol=1e-6)
    for b, batch in enumerate(inputs):
        alone = 1 - block_influence(net, batches(batch)).float()
        torch.testing.assert_close(alone, data["cos_per_batch"][b], rtol=1e-4, atol=1e-6)
        *noised, y = batch
        _, states = forward_with_states(net, noised, ClassLabels(y), range(8))
        for index, ours in states.items():
            torch.testing.assert_close(ours, data[f"b{b}.h.{index}"], rtol=1e-4, atol=1e-5)
    pruner = ShortGPT(TopK(), bins=0)
    monkeypatch.setattr(pruner, "calibration", lambda context: whole)
    choice = pruner.choose(context(4, net=net))
    assert choice.kept == tuple(data["kept"].tolist())
    assert choice.scores["order"] == data["pruned_order"].tolist()
    assert sorted(choice.scores["order"]) == data["pruned"].tolist()


def silence(block: nn.Module) -> None:
    nn.init.zeros_(block.adaLN_modulation[1].weight)
    nn.init.zeros_(block.adaLN_modulation[1].bias)


def test_drops_the_identity_blocks_but_never_the_last(net: DiT, context) -> None:
    silence(net.blocks[1])
    silence(net.blocks[3])
    choice = ShortGPT(TopK(), num_samples=30).choose(context(3))
    assert choice.kept == (0, 2, 3)
    scores = choice.scores["block_influence"]
    assert scores[1] == pytest.approx(0, abs=1e-6)
    assert min(scores[0], scores[2]) > 1e-3
    fewer = ShortGPT(TopK(), num_samples=30).choose(context(2)).kept
    assert 3 in fewer and 1 not in fewer
    assert ShortGPT(TopK(), num_samples=30, protect_last=False).choose(context(2)).kept == (0, 2)


def test_influence_by_time_adds_up_to_the_whole(net: DiT, context) -> None:
    scores = ShortGPT(Greedy(), num_samples=40, bins=4).choose(context(2)).scores
    bins = scores["bins"]
    edges = [time for part in bins for time in part["times"]]
    assert len(bins) == 4 and edges == sorted(edges) and edges[0] < 100 and edges[-1] > 900
    parts = torch.tensor([part["block_influence"] for part in bins])
    assert parts.mean(0).tolist() == pytest.approx(scores["block_influence"], rel=1e-5)
    assert parts.std(0).min() > 0
    assert "bins" not in ShortGPT(TopK(), num_samples=8, bins=0).choose(context(2)).scores


def test_clean_mode_feeds_images_without_noise_and_early_times(net: DiT, context) -> None:
    seen: list[tuple[Tensor, ...]] = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    choice = ShortGPT(TopK(), clean=True).choose(context(2, seed=3))
    ((images, times, labels),) = seen
    assert choice.scores["clean"] is True and "bins" not in choice.scores
    assert len(images) == 128, "the reference's number"
    wanted, told = context(2, seed=3).calibration_images(128)
    assert torch.equal(images, wanted) and torch.equal(labels, told.labels)
    assert times.dtype == torch.long and times.min() < 30 and 220 < times.max() < 250
    again = ShortGPT(TopK(), clean=True).choose(context(2, seed=3))
    assert again == choice and torch.equal(seen[1][1], times)
    ShortGPT(TopK(), clean=True, num_samples=5).choose(context(2, seed=4))
    assert len(seen[2][0]) == 5


def test_clean_images_keep_their_times_and_labels_in_every_batch(net: DiT) -> None:
    images, times = torch.randn(7, 1, 4, 4), torch.arange(7) * 30
    labels = ClassLabels(torch.arange(7) % 3)
    found = [
        block_influence(net, CleanInputs(images, times, labels, batch_size=size)).tolist()
        for size in (7, 3)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_clean_mode_needs_whole_steps_as_times(context) -> None:
    net = SiT(input_size=4, in_channels=1, hidden_size=16, depth=4, num_heads=2, num_classes=3)
    with pytest.raises(InputError, match=r"pruner\.clean=true needs.*'diffusion'.*'interpolant'"):
        ShortGPT(TopK(), clean=True).choose(context(2, net=net, process=Interpolant()))
    with pytest.raises(InputError, match=r"times from 0\.\.249 but the process has 100 steps"):
        ShortGPT(TopK(), clean=True).choose(context(2, process=GaussianDiffusion(100)))


class Renamed(GaussianDiffusion):
    """A process of somebody's own with whole steps as times."""

    kind = "renamed"


class Untimed(GaussianDiffusion):
    """One that says nothing of its times."""

    times = None


def test_what_a_process_says_of_its_times_decides_and_not_its_kind(context) -> None:
    choice = ShortGPT(TopK(), num_samples=8, bins=2).choose(context(2, process=Renamed()))
    assert len(choice.scores["bins"]) == 2
    choice = ShortGPT(TopK(), clean=True, num_samples=8).choose(context(2, process=Renamed()))
    assert choice.scores["clean"] is True
    choice = ShortGPT(TopK(), num_samples=8, bins=2).choose(context(2, process=Untimed()))
    assert "bins" not in choice.scores
    with pytest.raises(InputError, match="needs a process whose times are whole steps"):
        ShortGPT(TopK(), clean=True, num_samples=8).choose(context(2, process=Untimed()))


def test_calibration_is_the_same_for_every_candidate(net: DiT, context) -> None:
    first, again = context(2).calibration(30), context(2).calibration(30)
    assert len(first.conditioning) == 30
    assert torch.equal(first.parts[0][1].noisy, again.parts[0][1].noisy)
    assert first(net) == again(net)
    other = context(2, seed=1).calibration(30)
    assert not torch.equal(first.parts[0][1].noisy, other.parts[0][1].noisy)
    with pytest.raises(InputError, match=r"pruner\.num_samples=0"):
        context(2).calibration(0)


def test_the_model_is_scored_in_evaluation_mode(net: DiT, context) -> None:
    modes: list[bool] = []
    net.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    net.train()
    measured(net, context(2).calibration(4), range(4), lambda before, after: after.mean((1, 2)))
    ShortGPT(TopK(), clean=True, num_samples=4).choose(context(2))
    assert modes == [False, False] and net.training


@pytest.mark.parametrize("keep", [0, 4])
def test_refuses_to_keep_all_or_nothing(context, keep: int) -> None:
    with pytest.raises(InputError, match=f"keep={keep} must be between 1 and 3"):
        ShortGPT(TopK()).choose(context(keep))


def test_refuses_numbers_that_mean_nothing() -> None:
    with pytest.raises(InputError, match=r"pruner\.num_samples=0 must be at least 1"):
        ShortGPT(TopK(), num_samples=0)
    with pytest.raises(InputError, match=r"pruner\.bins=-1 must be at least 0"):
        ShortGPT(TopK(), bins=-1)
