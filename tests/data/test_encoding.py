"""From an image folder to shards: what is stored, and that nothing but the images decides it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.data.encoding import encode_shards, plan_store
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.latent_plan import StorePlan
from tinyfusion.data.latent_store import LatentStore
from tinyfusion.data.latent_writer import begin, finish, is_complete, remove_torn
from tinyfusion.data.latents import Latents
from tinyfusion.errors import InputError

COUNT, SIZE = 11, 8


@pytest.fixture
def root(tmp_path: Path, write_images) -> Path:
    """Eleven pictures of three classes."""
    return write_images(tmp_path / "images", COUNT, "abc", (9, 12))


@pytest.fixture
def autoencoder(tiny_autoencoder: Path) -> Autoencoder:
    return Autoencoder(str(tiny_autoencoder), batch_size=3)


def images_of(root: Path) -> ImageFolder:
    return ImageFolder(root, SIZE, probe=False)


def encode(
    root: Path,
    store: Path,
    autoencoder: Autoencoder,
    order: list[int] | None = None,
    moments: bool = True,
    mirrors: bool = True,
    skip: bool = False,
) -> StorePlan:
    images = images_of(root)
    plan = plan_store(images, autoencoder, moments, mirrors, shard_size=4)
    begin(store, plan)
    shards = list(range(plan.num_shards)) if order is None else order
    encode_shards(images, autoencoder, plan, store, shards, skip, threads=2)
    if order is None:
        finish(store, plan)
    return plan


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def test_posterior_of_images_and_mirrors(root, tmp_path, autoencoder) -> None:
    encode(root, tmp_path / "store", autoencoder)
    images = images_of(root)
    pixels, labels = images.plain(torch.arange(COUNT))
    store = LatentStore(tmp_path / "store", mirrors=True)
    # The folder's training order is a shuffled one; the store keeps that of the files.
    back = images._train.argsort()
    for view, seen in (("images", pixels), ("mirrors", pixels.flip(3))):
        stored = np.concatenate([store.rows(shard, view) for shard in range(3)])
        assert stored.shape == (COUNT, 8, 4, 4) and stored.dtype == np.float16
        wanted = autoencoder.moments(seen[back])
        torch.testing.assert_close(torch.from_numpy(stored).float(), wanted, rtol=1e-3, atol=1e-3)
    assert store.labels.tolist() == labels[back].labels.tolist() == sorted(store.labels.tolist())
    names = json.loads((tmp_path / "store" / "shard-00001.json").read_text())["files"]
    assert names == ["b/01.png", "b/04.png", "b/07.png", "b/10.png"]
    assert Latents(tmp_path / "store", verify=True).scale == autoencoder.scale


def test_means_only_and_no_mirrors_by_option(root, tmp_path, autoencoder) -> None:
    encode(root, tmp_path / "all", autoencoder)
    encode(root, tmp_path / "means", autoencoder, moments=False, mirrors=False)
    all_of_it = LatentStore(tmp_path / "all", mirrors=True).rows(0, "images")
    means = LatentStore(tmp_path / "means", mirrors=False).rows(0, "images")
    assert np.array_equal(means, all_of_it[:, :4])
    assert not list((tmp_path / "means").glob("*mirrors*"))


def test_order_and_interruptions_leave_no_trace(root, tmp_path, autoencoder) -> None:
    plan = encode(root, tmp_path / "one", autoencoder)
    store = tmp_path / "two"
    encode(root, store, autoencoder, order=[2])
    # What a killed process leaves: a torn file, and a shard without its JSON file.
    (store / ".shard-00000.images.0123abcd.npy").write_bytes(b"torn")
    (store / "shard-00001.images.npy").write_bytes(b"torn")
    assert [is_complete(store, plan, shard) for shard in range(3)] == [False, False, True]
    remove_torn(store, [1], alone=False)
    assert len(list(store.glob(".shard*"))) == 1  # that of another process
    remove_torn(store, [0, 1], alone=False)
    encode(root, store, autoencoder, order=[1, 0])
    assert all(is_complete(store, plan, shard) for shard in range(3))
    assert finish(store, plan) == finish(store, plan)
    assert contents(store) == contents(tmp_path / "one")


def test_a_shard_with_a_short_file_is_not_complete(root, tmp_path, autoencoder) -> None:
    plan = encode(root, tmp_path / "store", autoencoder)
    file = tmp_path / "store" / "shard-00002.mirrors.npy"
    file.write_bytes(file.read_bytes()[:-1])
    assert not is_complete(tmp_path / "store", plan, 2)
    file.unlink()
    assert not is_complete(tmp_path / "store", plan, 2)


def test_undecodable_images_are_named_or_skipped(root, tmp_path, autoencoder) -> None:
    whole = (root / "b" / "04.png").read_bytes()
    (root / "b" / "04.png").write_bytes(whole[: len(whole) // 2])
    (root / "a" / "00.png").write_text("not a picture")
    store = tmp_path / "store"
    with pytest.raises(InputError, match=r"a/00\.png' can't be decoded.*skip_undecodable=true"):
        encode(root, store, autoencoder)
    encode(root, store, autoencoder, skip=True)
    index = json.loads((store / "index.json").read_text())
    assert index["count"] == COUNT - 2
    assert [entry["file"] for entry in index["skipped"]] == ["a/00.png", "b/04.png"]
    assert str(root) not in json.dumps(index["skipped"])
    assert [shard["count"] for shard in index["shards"]] == [3, 3, 3]
    source = Latents(store, flip=False)
    assert (
        len(source) == COUNT - 2
        and sorted(source.plain(torch.arange(9))[1].labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3
    )


def test_a_vanished_image_is_not_taken_for_an_undecodable_one(root, tmp_path, autoencoder) -> None:
    images = images_of(root)
    plan = plan_store(images, autoencoder, True, True, 4)
    begin(tmp_path / "store", plan)
    (root / "a" / "03.png").unlink()
    with pytest.raises(InputError, match=r"a/03\.png' can't be read: No such file"):
        encode_shards(images, autoencoder, plan, tmp_path / "store", [0], skip_undecodable=True)


class Constant(Autoencoder):
    """Gives the same moments for every image but one."""

    def __init__(self, folder: Path, value: float) -> None:
        super().__init__(str(folder), batch_size=3)
        self.value = value

    def moments(self, images: Tensor) -> Tensor:
        found = torch.zeros(len(images), 8, 4, 4)
        found[1, 0, 0, 0] = self.value
        return found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "values that are not finite"),
        (float("inf"), "values that are not finite"),
        (7e4, r"a value of 70000, beyond float16's 65504"),
    ],
)
def test_latents_that_float16_can_not_hold(root, tmp_path, tiny_autoencoder, value, message):
    with pytest.raises(InputError, match=rf"a/03\.png' has {message}"):
        encode(root, tmp_path / "store", Constant(tiny_autoencoder, value))


def test_a_store_of_other_things_is_not_gone_on_with(root, tmp_path, autoencoder) -> None:
    store = tmp_path / "store"
    images = images_of(root)

    def start(images: ImageFolder, moments: bool = True, shard_size: int = 4) -> None:
        begin(store, plan_store(images, autoencoder, moments, True, shard_size))

    start(images)
    start(images)
    with pytest.raises(InputError, match=r"begun with stored values=moments, now it is mean"):
        start(images, moments=False)
    with pytest.raises(InputError, match=r"begun with shard_size=4, now it is 5"):
        start(images, shard_size=5)
    with pytest.raises(InputError, match=r"begun with data\.size=8, now it is 6"):
        start(ImageFolder(root, 6))
    (root / "a" / "00.png").rename(root / "a" / "01.png")
    with pytest.raises(InputError, match="from other files: names or classes"):
        start(images_of(root))
    (root / "a" / "01.png").unlink()
    with pytest.raises(InputError, match=r"begun with number of images=11, now it is 10"):
        start(images_of(root))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"not empty and holds no plan\.json"):
        begin(tmp_path / "full", plan_store(images, autoencoder, True, True, 4))


def test_images_must_fit_the_autoencoder(root, autoencoder) -> None:
    with pytest.raises(InputError, match=r"data\.size=7 must be a multiple of 2"):
        plan_store(ImageFolder(root, 7), autoencoder, True, True, 4)
    with pytest.raises(InputError, match=r"data\.channels=1: the autoencoder takes images of 3"):
        plan_store(ImageFolder(root, 8, channels=1), autoencoder, True, True, 4)
    with pytest.raises(InputError, match="shard_size=0"):
        plan_store(images_of(root), autoencoder, True, True, 0)
