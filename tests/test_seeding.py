"""Draws are functions of their key, never of history."""

from __future__ import annotations

import torch

from tinyfusion.seeding import Rows, SampleNoise, StepNoise, generator, permutation

NOISE = StepNoise(seed=1, phase="recovery")


def test_generator_depends_on_every_part_of_its_key() -> None:
    seeds = {generator(*key).initial_seed() for key in [(1, "a"), (1, "b"), (2, "a"), (1, "a", 0)]}
    assert len(seeds) == 4
    assert generator(1, "a").initial_seed() == generator(1, "a").initial_seed()


def test_draws_do_not_depend_on_the_global_generator_or_on_order() -> None:
    rows = Rows(3, 0, 4)
    first = NOISE.normal("noise", rows, 2)
    torch.rand(10)
    NOISE.normal("noise", Rows(9, 0, 4), 2)
    assert torch.equal(NOISE.normal("noise", rows, 2), first)


def test_rows_draw_the_same_in_any_micro_batch_on_any_device() -> None:
    whole = NOISE.uniform("times", Rows(5, 0, 12), 3)
    parts = [NOISE.uniform("times", Rows(5, first, 4), 3) for first in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)


def test_step_purpose_stage_and_seed_all_matter() -> None:
    rows = Rows(3, 0, 4)
    first = NOISE.normal("noise", rows, 2)
    others = [
        NOISE.normal("noise", Rows(4, 0, 4), 2),
        NOISE.normal("other", rows, 2),
        StepNoise(1, "pretrain").normal("noise", rows, 2),
        StepNoise(2, "recovery").normal("noise", rows, 2),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_rows_of_a_step_differ_and_have_the_moments_of_the_law() -> None:
    draws = NOISE.normal("noise", Rows(0, 0, 2000), 4, 3).double()
    assert len({tuple(row) for row in draws.flatten(1).tolist()}) == 2000
    assert abs(float(draws.mean())) < 0.02 and abs(float(draws.var()) - 1) < 0.03
    # Rows are seeded one by one: neighbours must not go together.
    flat = draws.flatten(1)
    assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.02
    scalars = NOISE.uniform("times", Rows(0, 0, 4000)).histc(10, 0, 1)
    assert (scalars - 400).abs().max() < 80  # four standard deviations


def test_gumbel_is_finite_and_has_the_moments_of_the_law() -> None:
    draws = NOISE.gumbel("gumbel", Rows(0, 0, 1000), 100).double()
    assert draws.isfinite().all()
    assert abs(float(draws.mean()) - 0.5772) < 0.02
    assert abs(float(draws.var()) - torch.pi**2 / 6) < 0.05


def test_permutation_is_one_and_differs_by_epoch() -> None:
    order = permutation(0, 0, 50)
    assert torch.equal(order.sort().values, torch.arange(50))
    assert torch.equal(order, permutation(0, 0, 50))
    assert not torch.equal(order, permutation(0, 1, 50))


def test_a_sample_has_its_own_noise_in_any_batch() -> None:
    together, alone = SampleNoise(4, [7, 2], (1, 3, 3)), SampleNoise(4, [2], (1, 3, 3))
    for _ in range(2):
        assert torch.equal(together()[1:], alone())
    first = SampleNoise(4, [2], (1, 3, 3))
    assert not torch.equal(first(), first())


def test_what_a_whole_batch_shares_is_uniform_and_its_own_for_every_step() -> None:
    draws = [StepNoise(0, "a").shared("x", step) for step in range(4000)]
    assert len(set(draws)) == 4000 and all(0 <= draw < 1 for draw in draws)
    counts = torch.tensor(draws).histc(10, 0, 1)
    assert (counts - 400).abs().max() < 80  # four standard deviations
    assert StepNoise(0, "a").shared("x", 7) == draws[7]
    others = StepNoise(1, "a"), StepNoise(0, "b")
    assert draws[7] not in [n.shared("x", 7) for n in others]
    assert draws[7] != StepNoise(0, "a").shared("y", 7)
