"""Running figures of hidden states against the same figures of all states at once."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor

from tinyfusion.errors import InputError
from tinyfusion.metrics.state_summary import (
    PairSummary,
    StateSummary,
    merged,
    summarise,
    symlog_edges,
)
from tinyfusion.recovery.features import feature_distance, ordinary

SIGMAS = (0.1, 2.0, 4.0)


def heavy(samples: int, tokens: int = 5, width: int = 7) -> Tensor:
    """States with a long tail, two massive channels and every order of magnitude."""
    states = torch.randn(samples, tokens, width) ** 5
    states[..., 3] *= 40
    states[:, 2, 5] -= 300
    states[:, 0, 0] *= 1e-6
    return states


def running(states: Tensor, size: int) -> StateSummary:
    return reduce(merged, (summarise(part, SIGMAS) for part in states.split(size)))


def test_edges_are_symmetric_and_hold_the_powers_of_ten() -> None:
    edges = symlog_edges()
    assert torch.equal(edges, -edges.flip(0)) and (edges.diff() > 0).all()
    for power in range(-3, 6):
        assert float((edges - 10.0**power).abs().min()) < 1e-6 * 10.0**power
    widths = edges[edges >= 0].diff()
    linear = edges[1:][-len(widths) :] <= 1.0001e-3
    torch.testing.assert_close(widths[linear], torch.full((20,), 5e-5), rtol=1e-3, atol=0)
    ratios = edges[edges >= 0.999e-3]
    ratios = ratios[1:] / ratios[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 10 ** (1 / 40)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_by_batch_is_all_at_once(size: int) -> None:
    states = heavy(64)
    found = running(states, size)
    flat = states.double().flatten().numpy()
    assert found.count == flat.size and found.non_finite == 0
    assert found.mean == pytest.approx(flat.mean(), rel=1e-9)
    assert found.std == pytest.approx(flat.std(ddof=1), rel=1e-9)
    assert (found.low, found.high) == (flat.min(), flat.max())
    expected = np.histogram(flat, symlog_edges().double().numpy())[0]
    assert found.histogram.tolist() == expected.tolist()
    assert found.dropped == tuple(int((~ordinary(states, k)).sum()) for k in SIGMAS)
    assert torch.equal(found.channel_low, states.amin((0, 1)))
    assert torch.equal(found.channel_high, states.amax((0, 1)))
    assert torch.equal(found.token_low, states.amin((0, 2)))
    assert torch.equal(found.token_high, states.amax((0, 2)))


def test_what_is_kept_does_not_grow_with_the_batches() -> None:
    states = heavy(50)
    one, fifty = summarise(states[:1], SIGMAS), running(states, 1)
    assert fifty.count == 50 * one.count
    assert fifty.bytes == one.bytes > 0
    # Nor do tensors keep a larger storage alive.
    tensors = [value for value in vars(fifty).values() if isinstance(value, Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == fifty.bytes


def test_a_large_mean_costs_no_digits() -> None:
    states = 1e5 + torch.randn(40, 3, 8)
    exact = states.double().numpy()
    assert running(states, 1).std == pytest.approx(exact.std(ddof=1), rel=1e-9)


def test_what_lies_beyond_the_edges_is_counted_at_the_ends() -> None:
    found = summarise(torch.tensor([[[-3e7, 0.0, 2e6, 5e6]]]), SIGMAS)
    assert found.histogram[0] == 1 and found.histogram[-1] == 2
    assert int(found.histogram.sum()) == 4
    assert (found.low, found.high) == (-3e7, 5e6)


def test_what_lies_on_an_edge_is_counted_above_it() -> None:
    for value in (-10.0, 0.0, 1.0):
        found = summarise(torch.full((1, 1, 3), value), SIGMAS).histogram
        place = int(found.argmax())
        assert found[place] == 3
        assert float(symlog_edges()[place]) == pytest.approx(value, abs=1e-6)


def test_states_that_are_no_numbers_are_counted_apart() -> None:
    states = heavy(6)
    broken = states.clone()
    broken[0, 1, 2], broken[0, 0, :], broken[1, 1, 1] = torch.nan, torch.inf, -torch.inf
    found = running(broken, 2)
    finite = broken[broken.isfinite()].double().numpy()
    assert (found.count, found.non_finite) == (finite.size, 9)
    assert found.std == pytest.approx(finite.std(ddof=1), rel=1e-9)
    assert (found.low, found.high) == (finite.min(), finite.max())
    assert int(found.histogram.sum()) == finite.size
    # Nothing of a sample with such an entry is ordinary to the loss.
    assert found.dropped[1] == int((~ordinary(states[2:], 2.0)).sum()) + 2 * states[0].numel()
    nothing = summarise(torch.full((1, 2, 3), torch.nan), SIGMAS).as_dict(SIGMAS)
    assert nothing["min"] is None and nothing["top_channels"] == [] and nothing["std"] == 0


def test_sequences_of_other_lengths_are_joined_by_place() -> None:
    short, long = heavy(2, tokens=3), heavy(2, tokens=6)
    for found in (
        merged(summarise(short, SIGMAS), summarise(long, SIGMAS)),
        merged(summarise(long, SIGMAS), summarise(short, SIGMAS)),
    ):
        assert len(found.token_low) == 6
        assert torch.equal(found.token_high[3:], long[:, 3:].amax((0, 2)))
        both = torch.cat([short, long[:, :3]])
        assert torch.equal(found.token_high[:3], both.amax((0, 2)))


def test_massive_channels_and_tokens_are_named() -> None:
    states = torch.randn(4, 5, 7)
    states[1, 2, 3], states[2, 4, 6] = -500.0, 90.0
    found = summarise(states, SIGMAS).as_dict(SIGMAS, top=2)
    assert [entry["channel"] for entry in found["top_channels"]] == [3, 6]
    assert [entry["token"] for entry in found["top_tokens"]] == [2, 4]
    assert found["top_channels"][0]["min"] == -500 and found["top_channels"][1]["max"] == 90
    assert list(found["dropped"]) == ["0.1", "2", "4"]


def test_states_with_any_axes_between_batch_and_channels() -> None:
    states = torch.randn(3, 2, 4, 5)
    assert summarise(states, SIGMAS).as_dict(SIGMAS) == summarise(
        states.flatten(1, 2), SIGMAS
    ).as_dict(SIGMAS)
    assert len(summarise(states[:, 0, 0], SIGMAS).channel_low) == 5


def test_pairs_are_what_the_loss_sees() -> None:
    student, teacher = heavy(10), heavy(10)
    pair = PairSummary(1, 3, SIGMAS)
    for mine, theirs in zip(student.split(3), teacher.split(3), strict=True):
        pair.add(mine, theirs)
    found = pair.as_dict()
    assert (found["student_block"], found["teacher_block"]) == (1, 3)
    distance = found["distance"]
    unmasked = feature_distance(student, teacher, "none").mean()
    assert distance["none"] == pytest.approx(float(unmasked), rel=1e-6)
    for k in SIGMAS:
        for mask in ("separate", "intersection"):
            expected = float(feature_distance(student, teacher, mask, k).mean())
            assert distance[mask][f"{k:g}"] == pytest.approx(expected, rel=1e-5)
        either = ~ordinary(student, k) | ~ordinary(teacher, k)
        share = float(either.double().mean())
        assert found["dropped_by_either"][f"{k:g}"] == pytest.approx(share, rel=1e-12)


def test_masks_and_distances_of_the_official_code(golden) -> None:
    data = golden("masked_kd")
    pairs = [PairSummary(i, 2 * i + 1, (2.0, 4.0)) for i in range(2)]
    for i, pair in enumerate(pairs):
        student, teacher = data[f"feat_student.{i}"], data[f"feat_teacher.{i}"]
        pair.add(student, teacher)
        for place, k in enumerate((2, 4)):
            entries = student.numel()
            assert pair.dropped[place] == entries - int(data[f"k{k}.kept_joint.{i}"].sum())
            for states, name in ((student, "student"), (teacher, "teacher")):
                kept = int(data[f"k{k}.kept_{name}.{i}"].sum())
                assert summarise(states, (2.0, 4.0)).dropped[place] == entries - kept
    names = {"separate": "reference", "intersection": "joint_mean_kept"}
    for k in (2, 4):
        for mask, name in names.items():
            ours = sum(pair.as_dict()["distance"][mask][f"{k}"] for pair in pairs) / 2
            theirs = float(data[f"k{k}.feat_loss_{name}"].mean())
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_states_of_other_shapes_are_no_pair() -> None:
    with pytest.raises(InputError, match=r"student's block 2 have shape \(1, 5, 7\).*teacher=none"):
        PairSummary(2, 4, SIGMAS).add(heavy(1), heavy(1, width=8))
