"""Error between input and output of a block."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.pruners.flux_lite import FluxLite, input_output_error
from tinyfusion.pruners.selectors import TopK

ADDED = torch.tensor([1.0, -2.0, 0.5])


@pytest.fixture
def error(stack, batches):
    """``error(x, function, ..., normalised=...)``: scores of blocks by their functions."""

    def score(x, *functions, **options):
        net = stack(*functions)
        return input_output_error(net, batches((x, x, x)), range(net.depth), **options).tolist()

    return score


def test_identity_and_an_added_constant(error) -> None:
    x = torch.randn(4, 5, 3)
    found = error(x, lambda states: states, lambda states: states + ADDED)
    assert found == pytest.approx([0.0, float(ADDED.square().mean())], abs=1e-6)


def test_grows_with_the_square_of_the_states_unless_normalised(error) -> None:
    x = torch.randn(4, 5, 3)

    def bend(states):
        return states.roll(1, dims=-1)

    (once,), (scaled,) = error(x, bend), error(3 * x, bend)
    assert scaled == pytest.approx(9 * once, rel=1e-5)
    (ratio,), (same) = error(x, bend, normalised=True), error(3 * x, bend, normalised=True)
    assert same == pytest.approx([ratio], rel=1e-5)
    assert ratio == pytest.approx(once / float(x.square().mean()), rel=1e-5)


def test_golden_scores_and_choices(golden_scores, batches, context, monkeypatch) -> None:
    net, inputs, data = golden_scores
    whole = batches(*inputs)
    for b, batch in enumerate(inputs):
        alone = input_output_error(net, batches(batch), range(8)).float()
        torch.testing.assert_close(alone, data["mse_per_batch"][b], rtol=1e-4, atol=1e-6)
    scores = input_output_error(net, whole, range(8)).float()
    torch.testing.assert_close(scores, data["mse_score"], rtol=1e-4, atol=1e-6)
    for protect_last, name in ((False, "mse_pruned"), (True, "mse_pruned_excl_last")):
        pruner = FluxLite(TopK(), protect_last=protect_last)
        monkeypatch.setattr(pruner, "calibration", lambda context: whole)
        choice = pruner.choose(context(4, net=net))
        assert sorted(choice.scores["order"]) == sorted(data[name].tolist())


def test_normalised_is_what_the_option_asks_for(context) -> None:
    plain, normalised = (
        FluxLite(TopK(), 16, normalised=option).choose(context(2)).scores["input_output_error"]
        for option in (False, True)
    )
    assert plain != normalised and min(plain) > 0
