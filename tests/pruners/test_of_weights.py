"""Criteria that need no data: shares of large weights, exponents of spectra."""

from __future__ import annotations

import math

import pytest
import torch

from tinyfusion.errors import InputError
from tinyfusion.pruners.farms import FARMS, hill_exponent, spectral_exponent, windows
from tinyfusion.pruners.selectors import Greedy, TopK
from tinyfusion.pruners.zd import ZD, share_of_large
from tinyfusion.units import BRANCHES


def normal(*shape: int):
    return torch.randn(*shape, dtype=torch.float64)


# ZD


def test_shares_of_normal_weights() -> None:
    weights = 3 + 0.2 * normal(400, 500)
    assert share_of_large(weights) == pytest.approx(0.1587, abs=0.003)
    assert share_of_large(weights, two_sided=True) == pytest.approx(0.3173, abs=0.004)


@pytest.mark.parametrize("two_sided", [False, True])
def test_far_outliers_lower_the_share(two_sided: bool) -> None:
    weights = normal(20_000)
    outliers = torch.cat([weights, torch.tensor([200.0, -200.0])])
    assert share_of_large(outliers, two_sided) < 0.8 * share_of_large(weights, two_sided)
    assert share_of_large(torch.ones(7), two_sided) == 0


def test_a_block_with_outliers_stays(net, context) -> None:
    for block in net.blocks[1], net.blocks[2]:
        block.mlp.fc1.weight.data[0, 0] = 50.0
    choice = ZD(TopK()).choose(context(2))
    assert choice.kept == (1, 2)
    weights = torch.cat([p.flatten() for p in net.blocks[0].parameters() if p.ndim > 1])
    assert choice.scores["negative_zd"][0] == pytest.approx(-share_of_large(weights.double()))
    two = ZD(TopK(), two_sided=True).choose(context(2)).scores["negative_zd"]
    assert two[0] < choice.scores["negative_zd"][0]


# FARMS


@pytest.mark.parametrize("alpha", [1.8, 3.0, 6.0])
def test_hill_recovers_the_exponent_of_pareto_values(alpha: float) -> None:
    values = torch.rand(100_000, dtype=torch.float64) ** (-1 / (alpha - 1))
    assert hill_exponent(values) == pytest.approx(alpha, rel=0.02)
    assert hill_exponent(7 * values) == pytest.approx(hill_exponent(values)), "of any scale"


def test_the_exponent_does_not_depend_on_the_aspect_ratio() -> None:
    square, tall = normal(192, 192), normal(6 * 192, 192)
    plain = [hill_exponent(torch.linalg.svdvals(matrix).square()) for matrix in (square, tall)]
    assert plain[1] > 1.5 * plain[0]
    square_alpha, tall_alpha = (spectral_exponent(m, 32) for m in (square, tall))
    assert tall_alpha == pytest.approx(square_alpha, rel=0.03)
    assert spectral_exponent(tall.T.contiguous(), 32) == pytest.approx(tall_alpha)


def test_heavier_tails_have_smaller_exponents() -> None:
    gaussian = normal(256, 256)
    heavy = gaussian / torch.rand(256, 256, dtype=torch.float64)
    assert spectral_exponent(heavy) < spectral_exponent(gaussian) - 0.5


def test_windows_have_one_shape_and_reach_all_ends() -> None:
    matrix = torch.arange(40 * 90.0).view(40, 90)
    parts = windows(matrix, 16, 3)
    assert parts.shape == (9, 16, 32)
    assert torch.equal(parts[0], matrix[:16, :32]) and torch.equal(parts[-1], matrix[-16:, -32:])
    assert torch.equal(windows(matrix.T, 16, 3), parts)
    assert windows(matrix, 16, 99).shape[0] == 3 * 3
    assert windows(matrix[:, :40], 64, 8).shape[1:] == (20, 40), "twice as wide in a square, too"
    assert windows(matrix[:, :1], 64, 8).shape == (1, 1, 2) or not len(
        windows(matrix[:1, :1], 8, 8)
    )


def test_the_block_of_the_lightest_tail_goes_first(net, context) -> None:
    for index in (0, 3):
        for parameter in net.blocks[index].parameters():
            parameter.data /= torch.rand_like(parameter).clamp(min=1e-3)
    choice = FARMS(TopK()).choose(context(2))
    assert choice.kept == (0, 3) and max(choice.scores["negative_alpha"]) < -1
    found = [spectral_exponent(p.double()) for p in net.blocks[1].parameters() if p.ndim > 1]
    assert choice.scores["negative_alpha"][1] == pytest.approx(-sum(found) / len(found))


def test_zeros_have_no_exponent_and_a_unit_of_zeros_goes_first(net, context) -> None:
    assert math.isnan(spectral_exponent(torch.zeros(64, 64)))
    torch.nn.init.zeros_(net.blocks[2].attn.proj.weight)
    assert math.isfinite(FARMS(TopK()).choose(context(2)).scores["negative_alpha"][2])
    for parameter in net.blocks[2].parameters():
        torch.nn.init.zeros_(parameter)
    choice = FARMS(TopK()).choose(context(3))
    assert choice.kept == (0, 1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rows": 1}, "rows=1 must be at least 2"), ({"grid": 0}, "grid=0 must be at least 1")],
)
def test_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        FARMS(TopK(), **options)


# Both


@pytest.mark.parametrize("pruner", [ZD, FARMS])
def test_branches_are_scored_by_their_own_weights(two_streams, context, pruner) -> None:
    net = two_streams.make_net()
    choice = pruner(Greedy()).choose(context(4, net=net, kind=BRANCHES))
    scores = choice.scores[pruner.criterion]
    joint = [p.double() for p in net.blocks[1].attn.parameters() if p.ndim > 1]
    assert len(scores) == 8 and scores[2] == pytest.approx(pruner(TopK()).score(joint))


@pytest.mark.parametrize("pruner", [ZD, FARMS])
def test_scores_do_not_depend_on_data_nor_on_what_runs(net, context, pruner, monkeypatch) -> None:
    monkeypatch.setattr("tinyfusion.backbones.dit.DiT.forward", None)
    one, again = (pruner(s).choose(context(1, seed=n)) for n, s in enumerate((TopK(), Greedy())))
    assert one.kept == again.kept


@pytest.mark.parametrize("pruner", [ZD, FARMS])
def test_units_without_matrices_are_refused(stack, context, pruner) -> None:
    net = stack(lambda x: x, lambda x: x)
    with pytest.raises(InputError, match=r"looks at weight matrices, but blocks\.0 has none"):
        pruner(TopK()).choose(context(1, net=net))
