"""Filling a store of latents by several ranks and in several parts."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest
import torch

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data import encoding
from tinyfusion.data.encoding import plan_store
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.errors import InputError, RanksFailedError
from tinyfusion.group import ALONE, Group, joined
from tinyfusion.pipeline import encoding as pipeline_encoding
from tinyfusion.pipeline.encoding import fill_store

COUNT, SHARD = 22, 4


@pytest.fixture
def images(tmp_path: Path, write_images) -> Path:
    return write_images(tmp_path / "images", COUNT, "ab", (9, 8))


@pytest.fixture
def fill(images: Path, tiny_autoencoder: Path, monkeypatch):
    """``fill(store, part, parts, group)``: shards that this rank wrote, and what it showed."""
    torch.set_num_threads(1)

    def run(
        store: Path, part: int = 0, parts: int = 1, group: Group = ALONE
    ) -> tuple[list[int], list[int]]:
        coder = Autoencoder(str(tiny_autoencoder), batch_size=3)
        folder = ImageFolder(images, 8, probe=False)
        plan = plan_store(folder, coder, True, True, SHARD)
        wrote: list[int] = []
        shown: list[int] = []
        write = encoding.write_shard

        def noted(root: Path, shard: int, *rest: object) -> None:
            write(root, shard, *rest)
            wrote.append(shard)

        with monkeypatch.context() as patched:
            patched.setattr(encoding, "write_shard", noted)
            fill_store(
                folder,
                coder,
                plan,
                store,
                torch.device("cpu"),
                part,
                parts,
                group,
                started=lambda total: shown.append(-total) or shown.append,
            )
        return wrote, shown

    return run


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def test_ranks_and_parts_make_up_the_same_store(fill, on_ranks, tmp_path) -> None:
    wrote, shown = fill(tmp_path / "one")
    assert wrote == list(range(6)) and shown[0] == -COUNT and shown[-1] == COUNT
    whole = contents(tmp_path / "one")
    first, second = on_ranks(2, lambda: fill(tmp_path / "two", group=joined()))
    assert (first[0], second[0]) == ([0, 2, 4], [1, 3, 5])
    assert first[1][0] == -COUNT and first[1][-1] == COUNT and second[1] == []
    assert contents(tmp_path / "two") == whole
    # Parts need not have equally many ranks, and a later start need not have as many as before.
    store = tmp_path / "parts"
    assert fill(store, 1, 2)[0] == [1, 3, 5]
    found = on_ranks(3, lambda: fill(store, 0, 2, joined()))
    assert [wrote for wrote, _ in found] == [[0], [2], [4]]
    assert contents(store) == whole
    (store / "shard-00003.json").unlink()
    found = on_ranks(3, lambda: fill(store, group=joined()))
    assert [wrote for wrote, _ in found] == [[3], [], []] and found[0][1][-1] == 2 * SHARD // 2
    assert contents(store) == whole


def test_what_one_rank_refuses_ends_the_others(fill, images, on_ranks, tmp_path, monkeypatch):
    (images / "b" / "05.png").write_text("not a picture")  # in shard 3, the second rank's

    def work() -> tuple[str, str]:
        group = joined()
        if group.first:  # else done before the other one has begun
            slow = pipeline_encoding.encode_shards

            def slowly(*arguments: object) -> None:
                *most, count = arguments
                slow(*most, lambda done: (time.sleep(0.3), count(done)))

            monkeypatch.setattr(pipeline_encoding, "encode_shards", slowly)
        try:
            fill(tmp_path / "store", group=group)
        except (InputError, RanksFailedError) as error:
            return type(error).__name__, str(error)
        raise AssertionError("nothing was refused")

    first, second = on_ranks(2, work)
    assert first[0] == "RanksFailedError" and second[0] == "InputError"
    assert "can't be decoded" in second[1]
    assert not (tmp_path / "store" / "index.json").exists()


def test_a_part_is_held_until_the_last_of_its_ranks_is_gone(fill, on_ranks, tmp_path) -> None:
    store = tmp_path / "store"

    def work() -> str:
        group = joined()
        if group.first:
            fill(store, group=group)
            return "done"
        write = encoding.write_shard

        def noted(root: Path, shard: int, *rest: object) -> None:
            # The first rank has its lock no longer alone: both hold it.
            with open(store / ".part-0-of-1.lock") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    (tmp_path / "held").touch()
            write(root, shard, *rest)

        encoding.write_shard = noted
        fill(store, group=group)
        return "done"

    assert on_ranks(2, work) == ["done", "done"]
    assert (tmp_path / "held").exists()
    assert not [name for name in os.listdir(store) if name.endswith(".lock")]
    # Another process that works on it, be it one rank of several, keeps others out.
    (store / "shard-00001.json").unlink()
    with open(store / ".part-0-of-1.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        with pytest.raises(InputError, match="another process is encoding part=0 parts=1"):
            fill(store)
