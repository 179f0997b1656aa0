"""Cosine of whole states before and after a block."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tinyfusion.pruners.lim import LIM
from tinyfusion.pruners.selectors import TopK
from tinyfusion.pruners.shortgpt import block_influence


def turned(angle: float):
    """Turns pairs of channels by an angle."""
    c, s = math.cos(angle), math.sin(angle)

    def turn(x: Tensor) -> Tensor:
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([c * even - s * odd, s * even + c * odd], -1).flatten(-2)

    return turn


def first_token_negated(x: Tensor) -> Tensor:
    return torch.cat([-x[:, :1], x[:, 1:]], 1)


@pytest.fixture
def lim(stack, batches):
    def score(x, *functions):
        net = stack(*functions)
        return LIM(TopK()).scores(net, batches((x, x, x)), range(net.depth)).tolist()

    return score


def test_of_known_angles(lim) -> None:
    found = lim(torch.randn(4, 5, 6), lambda x: 3 * x, turned(0.4), turned(2.0), lambda x: -x)
    assert found == pytest.approx([-1, -math.cos(0.4), -math.cos(2.0), 1], abs=1e-5)


def test_large_tokens_count_for_more_than_in_the_mean_over_tokens(lim, stack, batches) -> None:
    x = torch.randn(3, 4, 6)
    x[:, 0] *= 100
    assert lim(x, first_token_negated)[0] > 0.99
    influence = block_influence(stack(first_token_negated), batches((x, x, x)))
    assert float(influence) == pytest.approx(0.5, abs=1e-5), "two over four tokens"


def test_of_one_token_it_ranks_as_block_influence(lim, stack, batches) -> None:
    x = torch.randn(5, 1, 6)
    functions = [turned(angle) for angle in (0.3, 1.4, 0.1)] + [lambda x: x + x.abs()]
    found = lim(x, *functions)
    influence = block_influence(stack(*functions), batches((x, x, x)))
    assert found == pytest.approx((influence - 1).tolist(), abs=1e-6)


def test_of_two_streams_the_state_is_all_entries_of_both(two_streams, batches) -> None:
    net, states = two_streams.make_net().eval(), []
    x, t, texts = (
        torch.randn(6, 1, 4, 4),
        torch.arange(6) * 9,
        two_streams.captions(torch.arange(6)),
    )
    calibration = batches((x, t, *texts.arguments()))

    def look(index, block, before, condition):
        after = block(before, condition)
        states.append(
            [torch.cat([part.flatten(1) for part in both], 1) for both in (before, after)]
        )
        return after

    with torch.no_grad():
        calibration.predict(net, look)
    wanted = [-float(F.cosine_similarity(*both).mean()) for both in states]
    found = LIM(TopK()).scores(net, calibration, range(4))
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
