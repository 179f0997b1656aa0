"""A folder of samples: what is a batch and a shard, what is missing, what is written."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tinyfusion.data import sample_store
from tinyfusion.data.adm_batch import write_batch
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError

SHAPE = (1, 4, 4)


def image(index: int) -> Tensor:
    return torch.full(SHAPE, index % 256, dtype=torch.uint8)


def draw(store: SampleStore):
    return lambda batch: torch.stack([image(index) for index in store.rows_of(batch)])


def filled(store: SampleStore) -> SampleStore:
    missing = set(store.missing())
    for shard in range(store.num_shards):
        store.fill(shard, missing, draw(store))
    return store


@pytest.mark.parametrize("form", ["png", "npz"])
@pytest.mark.parametrize(
    ("count", "batch", "shard"), [(20, 3, 7), (20, 5, 5), (1, 8, 8), (9, 4, 1)]
)
def test_shards_and_batches_part_the_numbers(tmp_path, form, count, batch, shard) -> None:
    store = SampleStore(tmp_path / "samples", count, SHAPE, batch, shard, form)
    batches = [b for s in range(store.num_shards) for b in store.batches_of(s)]
    assert batches == list(range(-(-count // batch))) == store.missing()
    assert [i for b in batches for i in store.rows_of(b)] == list(range(count))
    assert store.images_in(batches) == count
    assert filled(store).missing() == []
    assert torch.equal(store.images().tensor(), torch.stack([image(i) for i in range(count)]))


def test_batches_do_not_depend_on_the_size_of_shards(tmp_path) -> None:
    stores = [SampleStore(tmp_path, 50, SHAPE, 8, size, "npz") for size in (1, 20, 100)]
    assert [store.num_shards for store in stores] == [7, 4, 1]
    assert len({tuple(map(store.rows_of, range(7))) for store in stores}) == 1


def test_only_what_is_missing_is_drawn_again(tmp_path) -> None:
    store = filled(SampleStore(tmp_path, 20, SHAPE, 4, 8, "png"))
    store.picture(9).unlink()
    store.picture(19).unlink()
    assert store.missing() == [2, 4]
    drawn = []

    def counting(batch: int) -> Tensor:
        drawn.append(batch)
        return draw(store)(batch)

    for shard in range(store.num_shards):
        store.fill(shard, {2, 4}, counting)
    assert drawn == [2, 4] and store.missing() == []


def test_a_shard_that_was_not_finished_is_missing_as_a_whole(tmp_path) -> None:
    store = SampleStore(tmp_path, 20, SHAPE, 4, 8, "npz")
    filled(store).shard(1).unlink()
    assert store.missing() == [2, 3]

    def failing(batch: int) -> Tensor:
        if batch == 3:
            raise KeyboardInterrupt
        return draw(store)(batch)

    with pytest.raises(KeyboardInterrupt):
        store.fill(1, {2, 3}, failing)
    assert store.missing() == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npz", "000016.npz"]


@pytest.mark.parametrize("form", ["png", "npz"])
def test_never_more_than_a_few_batches_are_held(tmp_path, form) -> None:
    """Memory stays flat: images are let go when they are written, and packed as a stream."""
    store = SampleStore(tmp_path / "samples", 200, SHAPE, 5, 50, form)
    alive: list[weakref.ref] = []
    most = 0

    def watched(batch: int) -> Tensor:
        nonlocal most
        images = draw(store)(batch)
        alive.append(weakref.ref(images))
        most = max(most, sum(reference() is not None for reference in alive))
        return images

    for shard in range(store.num_shards):
        store.fill(shard, set(range(40)), watched)
    assert len(alive) == 40 and most <= 2
    read = []

    def streamed():
        for images in store.images().batches(5):
            read.append(weakref.ref(images))
            assert sum(reference() is not None for reference in read) <= 3
            yield images

    write_batch(tmp_path / "all.npz", 200, SHAPE, streamed())
    assert len(read) == 40


def test_pictures_are_numbered_with_enough_digits() -> None:
    few, many = (SampleStore(Path("x"), n, SHAPE, 4, 4, "png") for n in (10, 20_000_000))
    assert few.picture(3).name == "000003.png" and many.picture(3).name == "00000003.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, SHAPE, 4, 4, "png"), "n=0 must be at least 1"),
        ((4, SHAPE, 0, 4, "png"), "batch_size=0 must be at least 1"),
        ((4, SHAPE, 4, 0, "npz"), "shard_size=0 must be at least 1"),
        ((4, SHAPE, 4, 4, "jpg"), "format='jpg' is not known; valid: png, npz"),
    ],
)
def test_useless_settings_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        SampleStore(Path("x"), *arguments)


def test_a_disk_that_is_too_small_is_named(tmp_path, monkeypatch) -> None:
    store = SampleStore(tmp_path / "new" / "samples", 1000, (3, 32, 32), 10, 10, "npz")
    size = 1000 * 3 * 32 * 32

    class Usage:
        free = size

    monkeypatch.setattr(sample_store.shutil, "disk_usage", lambda _: Usage)
    store.check_space(store.missing(), packed=False)
    with pytest.raises(InputError, match=r"n=1000: up to 5.86 MiB are to be written to .*samples"):
        store.check_space(store.missing(), packed=True)
