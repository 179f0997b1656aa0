"""Hidden states of one stream and of several."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.states import (
    batch_of,
    blend,
    cat_states,
    map_streams,
    mean_over_entries,
    rows_of,
    split_states,
    streams,
)

ONE = torch.randn(5, 4, 3)
TWO = ONE, torch.randn(5, 2, 6)


def test_one_stream_stays_a_tensor_and_several_a_tuple() -> None:
    assert streams(ONE) == (ONE,) and streams(TWO) == TWO
    assert torch.equal(map_streams(torch.neg, ONE), -ONE)
    negative = map_streams(torch.neg, TWO)
    assert isinstance(negative, tuple) and torch.equal(negative[1], -TWO[1])
    assert batch_of(ONE) == batch_of(TWO) == 5
    with pytest.raises(ValueError, match="zip"):
        map_streams(torch.add, ONE, TWO)


@pytest.mark.parametrize("states", [ONE, TWO], ids=["one", "two"])
def test_rows_parts_and_whole(states) -> None:
    parts = split_states(states, 2)
    assert [batch_of(part) for part in parts] == [2, 2, 1]
    pairs = list(zip(streams(cat_states(parts)), streams(states), strict=True))
    assert all(torch.equal(found, wanted) for found, wanted in pairs)
    last = zip(streams(parts[2]), streams(rows_of(states, slice(4, 5))), strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in last)


@pytest.mark.parametrize("states", [ONE, TWO], ids=["one", "two"])
def test_blend_is_per_sample_and_of_the_type_of_the_states(states) -> None:
    keep = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0], requires_grad=True)
    out = map_streams(lambda x: x + 2, states)
    for mixed, x in zip(streams(blend(keep, out, states)), streams(states), strict=True):
        torch.testing.assert_close(mixed, x + 2 * keep.view(5, 1, 1))
    half = map_streams(lambda x: x.bfloat16(), states)
    assert {x.dtype for x in streams(blend(keep, half, half))} == {torch.bfloat16}
    sum(x.sum() for x in streams(blend(keep, out, states))).backward()
    entries = sum(x[0].numel() for x in streams(states))
    torch.testing.assert_close(keep.grad, torch.full((5,), 2.0 * entries))


def test_the_mean_over_entries_weighs_streams_by_their_size() -> None:
    assert torch.equal(mean_over_entries(ONE), ONE.mean((1, 2)))
    together = torch.cat([stream.flatten(1) for stream in TWO], 1).mean(1)
    torch.testing.assert_close(mean_over_entries(TWO), together)
