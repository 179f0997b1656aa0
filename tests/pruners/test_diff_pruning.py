"""Diff-Pruning: gradients summed over the informative times, channels scored, widths by budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.coupling import coupling
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.presets import build_empty
from tinyfusion.backbones.sit import SiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.pruners.contract import PruningContext
from tinyfusion.pruners.diff_pruning import DiffPruning, accumulate_gradients, group_importance
from tinyfusion.pruners.width_search import widths_for
from tinyfusion.seeding import FixedDraws
from tinyfusion.surgery import prune


def batch(count: int = 6) -> tuple[Tensor, ClassLabels]:
    images = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    return images, ClassLabels(torch.arange(count) % 3)


def summed(net: DiT, threshold: float = 0.0, stride: int = 250, **options):
    images, labels = batch()
    draws = FixedDraws(len(images), 0, "test")
    return accumulate_gradients(
        net, GaussianDiffusion(), images, labels, draws, threshold, stride, **options
    )


def test_gradients_are_summed_over_the_times_from_the_clean_end(net: DiT) -> None:
    trajectory = summed(net)
    assert trajectory.times == [0.0005, 0.2505, 0.5005, 0.7505]
    assert trajectory.stopped_at is None
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}
    # The same by hand: one noise for all times, the mean of the noise term alone.
    images, labels = batch()
    noise = FixedDraws(len(images), 0, "test").normal("noise", 1, 4, 4)
    process = GaussianDiffusion()
    net.zero_grad()
    for index, t in enumerate((0, 250, 500, 750)):
        noised = process.add_noise(images, torch.full((6,), t), noise)
        loss = process.loss(net(*noised.inputs, labels.labels), noised)["mse"].mean()
        assert trajectory.losses[index] == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, found[name], rtol=1e-4, atol=1e-6), name
    assert net.pos_embed.grad is None


def test_micro_batches_change_nothing(net: DiT) -> None:
    whole = summed(net)
    found = [p.grad.clone() for p in net.parameters() if p.requires_grad]
    parts = summed(net, micro_batch=4)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    trained = [p for p in net.parameters() if p.requires_grad]
    for wanted, parameter in zip(found, trained, strict=True):
        assert torch.allclose(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_micro_batches_of_mar_hide_as_many_tokens_as_the_whole() -> None:
    torch.manual_seed(4)
    # In evaluation mode whatever it was in before: no dropout.
    mar = MAR(4, 8, 1, 1, 2, 1, 1, num_classes=3, buffer_size=2, head_depth=1, head_width=8,
              dropout=0.5).train()  # fmt: skip
    for parameter in mar.parameters():
        nn.init.normal_(parameter, std=0.2)
    images, labels = batch(5)
    found = []
    for size in (None, 2, 1):
        draws = FixedDraws(len(images), 0, "test")
        options = (draws, 0.0, 300, size)
        found.append(accumulate_gradients(mar, MaskedDiffusion(), images, labels, *options).losses)
    assert mar.training
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_says_how_far_it_is(
    net: DiT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tinyfusion.pruners.diff_pruning.SECONDS_PER_LINE", 0)
    caplog.set_level("INFO")
    losses = summed(net, threshold=1e-6).losses
    assert f"2 of at most 4 times, loss {losses[1]:.4f}, " in caplog.messages[1]
    assert caplog.messages[1].endswith("of the largest (ends below 1e-06)")


def test_a_loss_that_is_no_number_is_refused(net: DiT) -> None:
    net.final_layer.linear.bias.data.fill_(math.nan)
    with pytest.raises(InputError, match=r"diff_pruning: the loss at time 0\.0005 is nan"):
        summed(net)


def test_stops_at_the_first_time_below_the_threshold_and_leaves_it_out(net: DiT) -> None:
    losses = summed(net).losses
    first_two = summed(net, stride=500)
    stops = next(i for i in range(1, 4) if losses[i] < max(losses[: i + 1]))
    threshold = (losses[stops] / max(losses[: stops + 1]) + 1) / 2
    stopped = summed(net, threshold=threshold)
    assert stopped.stopped_at == stops
    assert len(stopped.losses) == stops + 1
    before = [p.grad.clone() for p in net.parameters() if p.requires_grad]
    assert any(grad.abs().sum() > 0 for grad in before)
    # As if the times had ended before it.
    net.zero_grad()
    images, labels = batch()
    noise = FixedDraws(len(images), 0, "test").normal("noise", 1, 4, 4)
    process = GaussianDiffusion()
    for t in range(0, 250 * stops, 250):
        noised = process.add_noise(images, torch.full((6,), t), noise)
        process.loss(net(*noised.inputs, labels.labels), noised)["mse"].mean().backward()
    after = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(before, after, strict=True)
    )
    assert len(first_two.losses) == 2


def test_other_processes_begin_at_clean_data_too() -> None:
    images, labels = batch()
    draws = FixedDraws(len(images), 0, "test")
    sit = SiT(input_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2, num_classes=3)
    found = accumulate_gradients(sit, Interpolant(), images, labels, draws, 0.0, 400)
    assert found.times == pytest.approx([0.9995, 0.5995, 0.1995])
    mar = MAR(4, 8, 1, 1, 2, 2, 1, num_classes=3, buffer_size=2, head_depth=1, head_width=8)
    process = MaskedDiffusion(patch_size=2)
    draws = FixedDraws(len(images), 0, "test")
    found = accumulate_gradients(mar, process, images, labels, draws, 0.0, 400, micro_batch=3)
    assert found.times == pytest.approx([0.0005, 0.4005, 0.8005])
    assert all(math.isfinite(loss) for loss in found.losses)
    scores = group_importance(mar)
    assert scores.keys() == coupling(mar).units.keys()


def importance_by_hand(net: DiT) -> dict[str, Tensor]:
    """``|weight * gradient|`` summed over all places of a unit."""
    found = coupling(net)
    scores = {}
    for name, parts in found.parts.items():
        scores[name] = torch.zeros(found.units[name], dtype=torch.float64)
        for part in parts:
            tensor = net.get_parameter(part.tensor)
            if tensor.grad is None:
                continue
            product = (tensor.detach() * tensor.grad).abs().double().movedim(part.axis, 0)
            scores[name] += product.reshape(len(product), -1).sum(1)[part.entries_UK].sum(1)
    return scores


def test_importance_is_the_sum_over_all_places(net: DiT) -> None:
    summed(net)
    found, wanted = group_importance(net), importance_by_hand(net)
    assert found.keys() == wanted.keys()
    for name, scores in wanted.items():
        assert torch.allclose(found[name], scores, rtol=1e-5, atol=1e-9), name
        assert scores.min() > 0


def test_a_zeroed_unit_has_no_importance(net: DiT) -> None:
    found = coupling(net)
    for name in ("residual", "condition", "blocks.1.heads", "blocks.2.neurons"):
        for part in found.parts[name]:
            tensor = net.get_parameter(part.tensor).data
            tensor.index_fill_(part.axis, part.entries_UK[1], 0.0)
    summed(net)
    scores = group_importance(net)
    for name in ("residual", "condition", "blocks.1.heads", "blocks.2.neurons"):
        assert scores[name][1] == 0
        assert (scores[name] > 0).sum() == len(scores[name]) - 1


@pytest.fixture
def wide() -> DiT:
    net = DiT(input_size=4, in_channels=1, hidden_size=48, depth=2, num_heads=6, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return net


def test_keeps_the_most_important_of_every_group_and_reaches_the_ratio(
    wide: DiT, context: Callable[..., PruningContext]
) -> None:
    pruner = DiffPruning(ratio=0.5, num_samples=8, stride=250, round_to=4)
    choice = pruner.choose(context(None, net=wide))
    decision = choice.resized
    assert decision is not None
    assert choice.kept is None
    assert abs(decision.reached - 0.5) < 0.01
    scores = group_importance(wide)
    for name, kept in decision.kept.items():
        best = scores[name].topk(len(kept)).values.sum()
        assert scores[name][list(kept)].sum() == pytest.approx(float(best))
    pruned = prune(wide, choice.decision(2))
    assert sum(p.numel() for p in pruned.parameters()) == decision.parameters
    assert choice.scores["stopped_at"] is None or choice.scores["stopped_at"] > 0
    assert len(choice.scores["times"]) == len(choice.scores["losses"])
    again = pruner.choose(context(None, net=prune(wide, [0, 1])))
    assert again.resized == decision


def test_ratio_zero_keeps_everything(wide: DiT, context: Callable[..., PruningContext]) -> None:
    choice = DiffPruning(ratio=0.0, num_samples=4, stride=500).choose(context(None, net=wide))
    assert choice.resized.reached == 0 and choice.budget == {"ratio": 0.0}
    pruned = prune(wide, choice.decision(2))
    assert all(torch.equal(value, wide.state_dict()[n]) for n, value in pruned.state_dict().items())


@pytest.mark.parametrize(
    ("preset", "ratio", "millions"),
    [
        pytest.param("dit_xl_2", 0.5, 338, marks=pytest.mark.slow),
        pytest.param("dit_xl_2", 0.75, 169, marks=pytest.mark.slow),
        ("dit_digits", 0.75, None),
    ],
)
def test_sizes_of_the_published_rows(preset: str, ratio: float, millions: float | None) -> None:
    with torch.device("meta"):
        net = build_empty(preset)
    planned = DiffPruning(ratio=ratio).resizing(net)
    assert abs(planned.reached - ratio) < (0.002 if millions else 0.011)
    with torch.device("meta"):
        sizes = {**net.config(), **net.width_plan().fixed, **planned.widths}
        built = sum(p.numel() for p in build_empty(sizes).parameters())
    assert built == planned.parameters
    if millions is not None:
        assert round(built / 1e6) == millions
    shares = [planned.widths[k] / planned.source_widths[k] for k in planned.widths]
    # As even as heads, which go whole, allow.
    assert max(shares) / min(shares) < 1.06


def test_a_ratio_that_can_not_be_reached_is_refused() -> None:
    mar = coupling(MAR(4, 12, 1, 1, 3, in_channels=1, buffer_size=2, head_depth=3, head_width=64))
    with pytest.raises(InputError, match=r"pruner\.ratio must stay below 0\.\d+"):
        widths_for(mar, 0.9, 4)
    digits = coupling(build_empty("dit_digits"))
    with pytest.raises(InputError, match=r"give a smaller round_to \(at least 4\)"):
        widths_for(digits, 0.5, 16)


def test_a_stride_over_all_times_is_refused(net: DiT) -> None:
    with pytest.raises(InputError, match="stride=1000 must be less than the process's 1000 steps"):
        summed(net, stride=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0 must be"),
        ({"threshold": -0.1}, "threshold"),
        ({"stride": 0}, "stride=0"),
        ({"round_to": 6}, "multiple of 4"),
        ({"micro_batch": 0}, "micro_batch=0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiffPruning(**options)
