from __future__ import annotations

import pytest
import torch

from tinyfusion.data.digits import Digits, digit_split, move
from tinyfusion.errors import InputError
from tinyfusion.pixels import to_uint8
from tinyfusion.seeding import Rows, StepNoise


def test_split_is_the_whole_data_set_without_overlap() -> None:
    from sklearn.datasets import load_digits

    train, train_labels, held_out, held_out_labels = digit_split()
    assert train.shape == (1500, 1, 8, 8) and held_out.shape == (297, 1, 8, 8)
    assert train.dtype == torch.float32 and train_labels.dtype == torch.int64
    original = torch.from_numpy(load_digits().images).float()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    assert torch.equal((held_out[:, 0] + 1) * 8, original[order[:297]])
    assert torch.equal((train[:, 0] + 1) * 8, original[order[297:]])
    target = torch.from_numpy(load_digits().target)
    assert torch.equal(torch.cat([held_out_labels, train_labels]), target[order])


def test_move_equals_a_plain_loop() -> None:
    images = torch.randn(25, 2, 5, 6)
    offsets = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    expected = torch.full_like(images, -1.0)
    for b, (down, right) in enumerate(offsets.tolist()):
        for y in range(5):
            for x in range(6):
                if 0 <= y - down < 5 and 0 <= x - right < 6:
                    expected[b, :, y, x] = images[b, :, y - down, x - right]
    assert torch.equal(move(images, offsets, limit=2), expected)


def test_shift_uses_every_offset_and_only_on_request() -> None:
    source = Digits(shift=1, shift_probability=1.0)
    indices = torch.zeros(400, dtype=torch.int64)
    rows = Rows(step=3, first=0, count=400)
    plain, labels = source.fetch(indices, None, rows)
    assert torch.equal(plain, digit_split()[0][indices])
    assert labels.labels.tolist() == [int(digit_split()[1][0])] * 400
    moved, _ = source.fetch(indices, StepNoise(0, "test"), rows)
    offsets = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    nine = move(plain[:9], offsets, limit=1)
    matches = (moved[:, None] == nine[None]).flatten(2).all(2)
    assert matches.any(1).all()
    assert (matches.sum(0) > 400 / 9 / 2).all()
    assert torch.equal(Digits(shift=0).fetch(indices, StepNoise(0, "test"), rows)[0], plain)


def test_share_of_moved_images_follows_the_probability() -> None:
    source = Digits(shift=1, shift_probability=0.25)
    indices = torch.zeros(3000, dtype=torch.int64)
    rows = Rows(step=0, first=0, count=3000)
    images, _ = source.fetch(indices, StepNoise(0, "test"), rows)
    moved = (images != digit_split()[0][0]).flatten(1).any(1).float().mean()
    # A ninth of the draws moves by nothing.
    assert abs(float(moved) - 0.25 * 8 / 9) < 0.03


def test_draws_belong_to_step_and_position() -> None:
    source, noise = Digits(), StepNoise(7, "test")
    indices = torch.arange(64)
    whole, _ = source.fetch(indices, noise, Rows(2, 0, 64))
    part, _ = source.fetch(indices[40:50], noise, Rows(2, 40, 10))
    assert torch.equal(part, whole[40:50])
    assert not torch.equal(source.fetch(indices, noise, Rows(3, 0, 64))[0], whole)


def test_reference_holds_all_images_in_bytes() -> None:
    source = Digits()
    reference = source.reference()
    assert len(source) == 1500
    assert reference.dtype == torch.uint8 and reference.shape == (1797, 1, 8, 8)
    both = torch.cat([digit_split()[0], source.held_out()[0]])
    assert (reference.float() / 127.5 - 1 - both).abs().max() <= 0.5 / 127.5 + 1e-6


def test_to_uint8_inverts_bytes_and_clamps() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("shift", [-1, 8])
def test_impossible_shift_is_refused(shift: int) -> None:
    with pytest.raises(InputError, match=f"data.shift={shift}"):
        Digits(shift=shift)


def test_impossible_shift_probability_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.shift_probability=1.5"):
        Digits(shift_probability=1.5)
