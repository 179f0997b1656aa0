"""A text-to-image network of two streams goes through everything that handles blocks' states."""

from __future__ import annotations

import copy
from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tinyfusion as tf
from tinyfusion.backbones.contract import forward_with_states, predict, recompute_blocks, run_plain
from tinyfusion.budget import Budget
from tinyfusion.conformance.forwards import check_order
from tinyfusion.conformance.subject import Subject
from tinyfusion.gating.deltas import Frozen
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.metrics.activations import collect, noised_batches
from tinyfusion.metrics.candidates import CandidateScores
from tinyfusion.metrics.speed import macs, sampling_run
from tinyfusion.pipeline import api
from tinyfusion.pruners.contract import PruningContext, calibration_batch
from tinyfusion.pruners.diff_pruning import DiffPruning
from tinyfusion.pruners.ecoflap import ECoFLaP
from tinyfusion.pruners.farms import FARMS
from tinyfusion.pruners.flux_lite import FluxLite, input_output_error
from tinyfusion.pruners.group_budgets import GroupBudgets
from tinyfusion.pruners.laptop_diff import LaptopDiff
from tinyfusion.pruners.lim import LIM
from tinyfusion.pruners.selectors import Greedy, Knapsack, TopK
from tinyfusion.pruners.sensitivity import Sensitivity
from tinyfusion.pruners.shortgpt import ShortGPT, block_influence
from tinyfusion.pruners.zd import ZD
from tinyfusion.recovery.features import feature_distance, mean_squares, ordinary
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.generate import class_labels
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.scheme import parse_scheme
from tinyfusion.seeding import Rows, StepNoise
from tinyfusion.units import BLOCKS, BRANCHES, INTERVALS

PROCESS = tf.GaussianDiffusion()
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def net(two_streams):
    return two_streams.make_net().eval()


@pytest.fixture
def source(two_streams):
    return two_streams.Captioned()


@pytest.fixture
def seen(two_streams) -> tuple[tuple[Tensor, Tensor], tf.Conditioning]:
    """Noisy images and times of six samples, and their texts."""
    x, t = torch.randn(6, 1, 4, 4), torch.arange(0, 900, 150)
    return (x, t), two_streams.captions(torch.arange(6))


def test_it_keeps_the_contract(net) -> None:
    held = tf.check_backbone(net, PROCESS)
    assert "its conditioning may be the null" in held
    assert any("branch" in title for title in held)


def test_a_block_that_shortens_one_stream_is_named(net, two_streams) -> None:
    class Shortens(two_streams.JointBlock):
        def forward(self, states, condition):
            image, text = super().forward(states, condition)
            return image, text[:, :2]

    net.blocks[0] = Shortens(8)
    wanted = r"block 0 maps .* \(3, 4, 8\) and torch.float32, \(3, 3, 6\) .* \(3, 2, 6\)"
    with pytest.raises(tf.InputError, match=wanted):
        check_order(Subject.of(net, PROCESS, 3))


# Gates and surgery


@pytest.mark.parametrize("kind", [BLOCKS, BRANCHES])
def test_gates_blend_both_streams_of_every_sample(net, seen, kind: str) -> None:
    units = net.units(kind)
    gates = PatternGates(parse_scheme("1:2", len(units)))
    gumbel_BK = StepNoise(1, "test").gumbel("gumbel", Rows(0, 0, 6), gates.num_draws)
    gated = GatedBackbone(net, gates, units)
    out = gated(*seen, gumbel_BK)
    kept_BL = gates(gumbel_BK) > 0.5
    assert len({tuple(row.tolist()) for row in kept_BL}) > 1
    (x, t), texts = seen
    for sample, kept in enumerate(kept_BL):
        one = slice(sample, sample + 1)
        if kind == BLOCKS:
            pruned = tf.prune(net, kept.nonzero().flatten().tolist())
        else:  # the first or second branch of every block
            gone = [unit.name for unit, stays in zip(units, kept, strict=True) if not stays]
            pruned = tf.prune(net, tf.Decision(removed=gone))
        torch.testing.assert_close(out[one], predict(pruned, (x[one], t[one]), texts[one]), **CLOSE)
    out.square().mean().backward()
    assert all((gate.logits_C.grad != 0).all() for gate in gates.groups)


def test_the_gradient_of_a_mask_is_that_of_both_streams(net, seen) -> None:
    class Mask(PatternGates):
        def forward(self, keep_BL: Tensor) -> Tensor:
            return keep_BL

    keep_BL = torch.full((6, 4), 0.5, dtype=torch.float64, requires_grad=True)
    gated = GatedBackbone(net.double(), Mask(parse_scheme("1:2", 4)), dense=True)
    (x, t), texts = seen
    inputs = (x.double(), t)
    loss = gated(inputs, texts, keep_BL).square().mean()
    (grad_BL,) = torch.autograd.grad(loss, keep_BL)
    for place in ((0, 0), (3, 2)):
        moved = [keep_BL.detach().clone() for _ in range(2)]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        ends = [gated(inputs, texts, keep).square().mean().item() for keep in moved]
        assert float(grad_BL[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


def test_a_pruned_network_has_the_kept_blocks(net, seen) -> None:
    pruned = tf.prune(net, [0, 3])
    assert (pruned.depth, pruned.kept_from) == (2, (0, 3))

    def skipping(index, block, states, condition):
        return run_plain(index, block, states, condition) if index in (0, 3) else states

    assert torch.equal(predict(pruned, *seen), predict(net, *seen, skipping))


def test_recomputed_blocks_give_the_same_gradients(net, seen) -> None:
    again, runs = copy.deepcopy(net), []
    recompute_blocks(again)
    again.blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    for each in (net, again):
        predict(each, *seen).square().sum().backward()
    assert len(runs) == 2
    for mine, theirs in zip(net.parameters(), again.parameters(), strict=True):
        assert mine.grad is not None and mine.grad.any()
        torch.testing.assert_close(theirs.grad, mine.grad)


def test_an_interval_of_blocks_is_one_unit(net, seen) -> None:
    (unit,) = (unit for unit in net.units(INTERVALS) if list(unit.blocks) == [1, 2])
    ran = []

    def runner(number, run, states, condition):
        ran.append(number)
        return states

    out = predict(net, *seen, net.run_units([unit], runner))
    assert ran == [0] and torch.equal(out, predict(tf.prune(net, [0, 3]), *seen))


# Features


def test_states_of_both_streams_are_collected(net, seen) -> None:
    out, states = forward_with_states(net, *seen, [0, 2])
    assert torch.equal(out, predict(net, *seen)) and list(states) == [0, 2]
    assert [tuple(x.shape) for x in states[2]] == [(6, 4, 8), (6, 3, 6)]


@pytest.mark.parametrize("mask", ["none", "separate", "intersection"])
def test_the_distance_is_the_mean_over_streams(mask: str) -> None:
    one, two = [(torch.randn(5, 4, 8), 3 * torch.randn(5, 3, 6)) for _ in range(2)]
    found = feature_distance(one, two, mask, 1.5)
    parts = [feature_distance(a, b, mask, 1.5) for a, b in zip(one, two, strict=True)]
    assert found.shape == (5,) and torch.equal(found, (parts[0] + parts[1]) / 2)
    # One stream is no special case.
    assert torch.equal(feature_distance(one[:1], two[:1], mask, 1.5), parts[0])
    image_ok, text_ok = ordinary(one, 1.5)
    assert torch.equal(text_ok, ordinary(one[1], 1.5)) and not image_ok.all()


def test_states_of_other_streams_can_not_be_compared() -> None:
    image, text = torch.randn(5, 4, 8), torch.randn(5, 3, 6)
    with pytest.raises(tf.InputError, match=r"student's hidden states have 1 stream\(s\), the tea"):
        feature_distance(image, (image, text), "none")


def test_mean_squares_are_means_over_streams(net, source) -> None:
    batch = calibration_batch(PROCESS, source, 8, 0)
    ((_, noised),) = batch.parts
    with torch.no_grad():
        _, states = forward_with_states(net, noised.inputs, batch.conditioning, [1])
    wanted = sum(stream.square().mean() for stream in states[1]) / 2
    assert mean_squares(net, [1], batch) == [pytest.approx(float(wanted), rel=1e-6)]


# Scores of blocks


@pytest.fixture
def states(net, source) -> list[tuple[Tensor, Tensor]]:
    """Both streams before the first block and after each, of the pruners' calibration batch."""
    batch = calibration_batch(PROCESS, source, 8, 0)
    ((_, noised),) = batch.parts
    found = []

    def runner(index, block, states, condition):
        found.append(states)
        return run_plain(index, block, states, condition)

    with torch.no_grad():
        predict(net, noised.inputs, batch.conditioning, runner)
        _, last = forward_with_states(net, noised.inputs, batch.conditioning, [3])
    return [*found, last[3]]


def test_block_influence_is_over_the_tokens_of_both_streams(net, source, states) -> None:
    found = block_influence(net, calibration_batch(PROCESS, source, 8, 0))
    for block, (before, after) in enumerate(pairwise(states)):
        pairs = zip(before, after, strict=True)
        cosines = torch.cat([F.cosine_similarity(a, b, dim=-1) for a, b in pairs], 1)
        assert cosines.shape == (8, 7)
        assert float(found[block]) == pytest.approx(1 - float(cosines.mean()), abs=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_flux_lite_is_over_the_entries_of_both_streams(net, source, states, normalised) -> None:
    batch = calibration_batch(PROCESS, source, 8, 0)
    found = input_output_error(net, batch, range(4), normalised)
    for block, (before, after) in enumerate(pairwise(states)):
        flat = [torch.cat([x.flatten(1) for x in both], 1) for both in (before, after)]
        wanted = float((flat[1] - flat[0]).square().mean())
        wanted /= float(flat[0].square().mean()) if normalised else 1
        assert float(found[block]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "pruner",
    [
        ShortGPT(TopK(), num_samples=8),
        ShortGPT(Greedy(), num_samples=8, clean=True),
        FluxLite(TopK(), num_samples=8),
        LaptopDiff(TopK(), num_samples=8),
        Sensitivity(Greedy(), num_samples=8),
        ECoFLaP(TopK(), num_samples=8),
    ],
    ids=["shortgpt", "clean", "flux_lite", "laptop_diff", "sensitivity", "ecoflap"],
)
def test_a_block_that_does_nothing_has_no_score(net, source, tmp_path, pruner) -> None:
    for name, parameter in net.blocks[1].named_parameters():
        if name.startswith(("attn.out.", "mlp.")):
            torch.nn.init.zeros_(parameter)
    context = PruningContext(
        net, PROCESS, source, Budget.of(net.units(), 3), 0, tmp_path, None, None
    )
    scores = pruner.choose(context).scores[pruner.criterion]
    assert scores[1] == pytest.approx(0, abs=1e-6)
    assert min(abs(scores[block]) for block in (0, 2, 3)) > 1e-4


@pytest.mark.parametrize("selector", [TopK(), Greedy(), Knapsack(), GroupBudgets(4)])
@pytest.mark.parametrize(
    ("pruner", "options"),
    [
        (LIM, {"num_samples": 8}),
        (ZD, {}),
        (FARMS, {}),
        (ECoFLaP, {"num_samples": 8}),
        (ECoFLaP, {"num_samples": 8, "form": "weights", "draws": 1}),
        (LaptopDiff, {"num_samples": 8, "noisy_power": 1.0}),
    ],
)
def test_criteria_choose_branches(net, source, tmp_path, pruner, options, selector) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    budget = Budget.of(net.units(BRANCHES), 5, protected=[1])
    context = PruningContext(net, PROCESS, source, budget, 0, tmp_path, None, None)
    chosen = pruner(selector, **options)
    choice = chosen.choose(context)
    assert len(choice.scores[chosen.criterion]) == 8 and choice.scheme is None
    assert len(set(choice.scores[chosen.criterion])) > 4
    decision = choice.decision(4)
    kept = decision.kept_units(budget.units)
    assert 1 in kept and (len(kept) == 5 or selector.name == "knapsack")
    assert tf.prune(net, decision).units(BRANCHES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("selector", [TopK(), Greedy(), Knapsack()])
@pytest.mark.parametrize("pruner", [LIM, ZD, FARMS, ECoFLaP])
def test_criteria_meet_budgets_of_costs(net, source, tmp_path, pruner, selector) -> None:
    units = net.units(BRANCHES)
    costs = tuple(float(unit.parameters) for unit in units)
    budget = Budget(units, costs, 0.6 * sum(costs), "parameters")
    context = PruningContext(net, PROCESS, source, budget, 0, tmp_path, None, None)
    choice = pruner(selector).choose(context)
    assert budget.allows(choice.decision(4).kept_units(units))


def test_widths_of_a_network_without_a_plan_are_refused(net, source, tmp_path) -> None:
    context = PruningContext(net, PROCESS, source, None, 0, tmp_path, None, None)
    with pytest.raises(tf.InputError, match="a TwoStreams has no width plan"):
        DiffPruning(num_samples=4).choose(context)


@pytest.mark.parametrize("rows", [4, 99])
def test_candidates_are_scored_as_one_by_one(net, source, rows: int) -> None:
    batch = tf.HeldOutLoss(PROCESS, *source.plain(torch.arange(10)), repeats=1)
    sets = [kept for size in range(5) for kept in combinations(range(4), size)]

    def one_by_one(kept) -> Tensor:
        def runner(index, block, states, condition):
            return run_plain(index, block, states, condition) if index in kept else states

        return batch.predict(net, runner)

    outs = [one_by_one(kept) for kept in sets]
    scores = CandidateScores(net, batch, branches=3, rows=rows)
    losses = [loss for loss, _ in scores.losses(sets)]
    assert losses == pytest.approx([batch.of(out)["loss"] for out in outs], rel=2e-6)
    assert len(set(losses)) == len(sets)
    wanted = batch.predict(net)
    distances = list(CandidateScores(net, batch).distances(sets, wanted))
    far = [batch.distance(out, wanted) for out in outs]
    assert distances == pytest.approx(far, rel=2e-6, abs=1e-12)
    whole, pruned = CandidateScores(net, batch), tf.prune(net, (0, 2))
    ((loss, _),) = whole.losses([(0, 2)])
    assert loss == pytest.approx(batch(pruned)["loss"], rel=1e-6)


def test_massive_activations_of_both_streams(net, source, two_streams) -> None:
    teacher = two_streams.make_net(5, seed=2)
    found = collect(net, PROCESS, source, 10, (1.0, 2.0), teacher, [(1, 3)], batch_size=4)
    assert len(found.student) == 4 and len(found.teacher) == 5
    entries = 4 * 8 + 3 * 6
    assert {summary.count for summary in found.student} == {10 * entries}
    for summary in (*found.student, *found.teacher):
        # Tokens and channels are numbered one stream after the other.
        assert len(summary.token_low) == 4 + 3 and len(summary.channel_low) == 8 + 6
        assert 0 < summary.dropped[1] < summary.dropped[0]
    (pair,) = found.pairs
    assert (pair.samples, pair.entries) == (10, 10 * entries)
    alike = collect(net, PROCESS, source, 10, (2.0,), copy.deepcopy(net), [(1, 1), (2, 1)])
    same, other = alike.pairs
    assert same.distances == {"none": [0.0], "separate": [0.0], "intersection": [0.0]}
    assert other.distances["none"][0] > 0


def test_pairs_report_the_distances_that_recovery_minimises(net, source, two_streams) -> None:
    teacher = two_streams.make_net(4, seed=2).eval()
    found = collect(net, PROCESS, source, 8, (2.0,), teacher, [(1, 3)], batch_size=8)
    states = {}

    def hold(name):
        def runner(index, block, x, condition):
            out = run_plain(index, block, x, condition)
            states[name, index] = out
            return out

        return runner

    ((inputs, texts),) = noised_batches(PROCESS, source, 8, 8, 0)
    with torch.no_grad():
        predict(net, inputs, texts, hold("mine"))
        predict(teacher, inputs, texts, hold("theirs"))
    mine, theirs = states["mine", 1], states["theirs", 3]
    for mask in ("none", "separate", "intersection"):
        wanted = feature_distance(mine, theirs, mask, 2.0).sum()
        assert found.pairs[0].distances[mask] == [pytest.approx(float(wanted), rel=1e-5)]
    dropped = 0
    for a, b in zip(ordinary(mine, 2.0), ordinary(theirs, 2.0), strict=True):
        dropped += int((~(a & b)).sum())
    assert found.pairs[0].dropped == [dropped]


# Sampling


def test_guidance_pushes_away_from_the_null_text(net, seen) -> None:
    (x, t), texts = seen
    with torch.no_grad():
        conditional = predict(net, (x, t), texts)
        null = net(x, t, net.null_text.expand(6, 3, 6), (torch.arange(3) < 1).expand(6, 3))
        out = Guidance(2.5).predict(net, x, t, texts)
    assert (conditional - null).abs().max() > 0.1
    torch.testing.assert_close(out, null + 2.5 * (conditional - null), **CLOSE)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_depend_on_their_text_and_not_on_the_batch(net, two_streams, scale) -> None:
    texts, process = two_streams.captions(torch.arange(5)), tf.GaussianDiffusion(clip=True)
    options = {"seed": 3, "guidance": Guidance(scale)}
    whole = tf.generate(net, process, DDIMSampler(4), texts, **options)
    assert whole.shape == (5, 1, 4, 4) and whole.isfinite().all()
    parts = tf.generate(net, process, DDIMSampler(4), texts, batch_size=2, **options)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    last = tf.generate(net, process, DDIMSampler(4), texts[4:], first_index=4, **options)
    torch.testing.assert_close(last, whole[4:], rtol=1e-4, atol=1e-4)
    others = tf.generate(net, process, DDIMSampler(4), texts[torch.arange(4, -1, -1)], **options)
    assert (others - whole).abs().amax((1, 2, 3)).gt(1e-3).tolist() == [
        True,
        True,
        False,
        True,
        True,
    ]


def test_class_labels_are_refused(net) -> None:
    with pytest.raises(tf.InputError, match="takes no class labels"):
        tf.generate(net, PROCESS, DDIMSampler(2), torch.tensor([0, 1]), seed=0)
    with pytest.raises(tf.InputError, match="has no labels to draw"):
        class_labels(4, net.num_classes, "random", 0)


def test_it_can_be_measured_with_its_own_examples(net) -> None:
    assert macs(net) > macs(tf.prune(net, [0, 1])) > 0
    assert sampling_run(net, PROCESS, DDIMSampler(2), Guidance(2.0), images=3)() == 3


def test_the_calls_of_the_library_take_texts(net, two_streams) -> None:
    images, texts = torch.rand(8, 1, 4, 4) * 2 - 1, two_streams.captions(torch.arange(8))
    batches = [(images, texts)]
    decision = api.learn_mask(net, batches, scheme="1:2", steps=2, delta=Frozen())
    student = api.recover(tf.prune(net, decision), batches, teacher=net, steps=2)
    assert student.depth == 2 and all(p.isfinite().all() for p in student.parameters())
    drawn = api.sample(student, texts[:3], guidance=2.0)
    assert drawn.shape == (3, 1, 4, 4)
    assert torch.equal(drawn, api.sample(student, 3, guidance=2.0)), "its own examples"
