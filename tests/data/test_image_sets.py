"""Images that are scored: batches in ADM's layout, folders of pictures, samples of ours."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.data.adm_batch import read_statistics, write_batch
from tinyfusion.data.image_sets import TensorImages
from tinyfusion.data.open_images import open_images
from tinyfusion.errors import InputError


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)


def save(folder: Path, pictures: np.ndarray, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pictures[number]).save(folder / name)


def opened(path: Path, limit: int | None = None):
    return open_images(path, limit, "images")


@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_a_batch_in_the_adm_layout_is_read_as_a_stream(tmp_path, pictures, saver):
    saver(tmp_path / "batch.npz", arr_0=pictures, mu=np.zeros(3))
    images = opened(tmp_path / "batch.npz")
    assert images.shape == (3, 6, 4) and len(images) == 5
    batches = list(images.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    whole = torch.cat(batches)
    assert whole.dtype == torch.uint8
    assert torch.equal(whole[2, :, 1, 3], torch.from_numpy(pictures[2, 1, 3]))
    assert torch.equal(opened(tmp_path / "batch.npz", 3).tensor(), whole[:3])
    assert len(opened(tmp_path / "batch.npz", 9)) == 5


def test_a_folder_is_read_in_the_order_of_names(tmp_path, pictures):
    save(tmp_path, pictures, ["b/1.png", "a/2.png", "c.png"])
    (tmp_path / "notes.txt").write_text("not a picture")
    images = opened(tmp_path).tensor().permute(0, 2, 3, 1).numpy()
    assert (images == pictures[[2, 1, 0]]).all()  # its own ones first, then folder by folder
    assert len(opened(tmp_path, 2)) == 2


def test_grey_pictures_keep_one_channel_unless_some_are_coloured(tmp_path, pictures):
    save(tmp_path, pictures[..., 0], ["grey.png"])
    assert opened(tmp_path).tensor().shape == (1, 1, 6, 4)
    save(tmp_path, pictures, ["colour.png"])
    mixed = opened(tmp_path).tensor()
    assert mixed.shape == (2, 3, 6, 4)
    assert (mixed[1].numpy() == pictures[0, ..., 0]).all()


def test_equal_content_has_equal_digests_wherever_it_lies(tmp_path, pictures):
    names = ["1.png", "2.png"]
    save(tmp_path / "here", pictures, names)
    save(tmp_path / "there", pictures, names)
    save(tmp_path / "other", pictures[1:], names)
    digests = [opened(tmp_path / name).digest() for name in ("here", "there", "other")]
    assert digests[0] == digests[1] != digests[2]
    assert opened(tmp_path / "here", 1).digest() != digests[0]
    np.savez(tmp_path / "batch.npz", arr_0=pictures)
    assert opened(tmp_path / "batch.npz").digest() != opened(tmp_path / "batch.npz", 4).digest()
    assert opened(tmp_path / "batch.npz").digest() == opened(tmp_path / "batch.npz", 5).digest()
    tensor = torch.from_numpy(pictures)
    assert TensorImages(tensor).digest() == TensorImages(tensor.clone()).digest()
    assert TensorImages(tensor).digest() != TensorImages(tensor.view(5, 4, 6, 3)).digest()


def test_what_is_written_is_what_numpy_reads_and_what_is_read_again(tmp_path, pictures):
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    labels = {"labels": np.arange(5)}
    file = write_batch(tmp_path / "out.npz", 5, (3, 6, 4), images.split(2), labels)
    with np.load(file, allow_pickle=False) as written:
        assert (written["arr_0"] == pictures).all() and written["arr_0"].dtype == np.uint8
        assert (written["labels"] == np.arange(5)).all()
    assert torch.equal(opened(file).tensor(), images)
    again = write_batch(tmp_path / "again.npz", 5, (3, 6, 4), iter([images]), labels)
    assert again.read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match="4 images were given, not 5"):
        write_batch(tmp_path / "few.npz", 5, (3, 6, 4), [images[:4]])
    assert not (tmp_path / "few.npz").exists()


def test_samples_of_a_run_are_found_in_its_folder(tmp_path, pictures):
    save(tmp_path / "samples", pictures, ["000000.png", "000001.png"])
    save(tmp_path, pictures[2:], ["grid.png"])
    (tmp_path / "config.yaml").touch()
    with pytest.raises(
        InputError, match=r"is not finished; resume it with tinyfusion sample resume="
    ):
        opened(tmp_path)
    (tmp_path / "finished.json").write_text(json.dumps({}))
    assert (opened(tmp_path).tensor().permute(0, 2, 3, 1).numpy() == pictures[:2]).all()


def test_batches_of_a_run_are_one_set(tmp_path, pictures):
    for first, last in ((0, 3), (3, 5)):
        np.savez(tmp_path / f"{first:06d}.npz", arr_0=pictures[first:last])
    images = opened(tmp_path)
    assert len(images) == 5 and [len(batch) for batch in images.batches(2)] == [2, 2, 1]
    assert (images.tensor().permute(0, 2, 3, 1).numpy() == pictures).all()
    assert len(opened(tmp_path, 4).tensor()) == 4 and len(opened(tmp_path, 3).tensor()) == 3
    np.savez(tmp_path / "000005.npz", arr_0=pictures[:, :3])
    with pytest.raises(InputError, match=r"000005.npz' holds images of shape \(3, 3, 4\)"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "float32 of shape (2, 4, 4, 3); valid"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "shape (2, 3, 4, 4); valid: uint8"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "valid: uint8"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "has no images: it holds mu, sigma"),
        ({"arr_0": np.array([{}], dtype=object)}, "is not a readable .npz file"),
    ],
)
def test_other_batches_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "batch.npz", **content)
    with pytest.raises(InputError, match=re.escape(message)):
        opened(tmp_path / "batch.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(3)}, "holds mu alone; valid: both mu and sigma"),
        ({"sigma_s": np.zeros((3, 3))}, "holds sigma_s alone; valid: both mu_s and sigma_s"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, "(3,) and sigma (2, 2); valid: (D,)"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "sigma holds values that are not"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma is no covariance: it must be symmetric"),
        ({"mu": np.zeros(2), "sigma": np.ones((2, 2)) + np.eye(2, k=1)}, "sigma is no covariance"),
        ({"mu": np.array([np.nan, 0]), "sigma": np.eye(2)}, "mu holds values that are not"),
        ({"mu": np.array(["a", "b"]), "sigma": np.zeros((2, 2))}, "is not a readable .npz file"),
    ],
)
def test_other_statistics_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "batch.npz", **content)
    with pytest.raises(InputError, match=re.escape(message)):
        read_statistics(tmp_path / "batch.npz", "evaluation.reference")


def test_missing_broken_and_unequal_files_are_refused(tmp_path, pictures):
    with pytest.raises(InputError, match=r"images='.*absent.npz' does not exist; valid: an \.npz"):
        opened(tmp_path / "absent.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="not a readable"):
        opened(tmp_path / "torn.npz")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        opened(folder)
    save(folder, pictures, ["a.png"])
    Image.fromarray(pictures[0, :3]).save(folder / "b.png")
    with pytest.raises(InputError, match=r"b.png' is 4x3 pixels, but .*a.png' is 4x6"):
        opened(folder)
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b.png' can't be decoded"):
        opened(folder)


def test_a_picture_that_is_cut_short_is_named_when_it_is_read(tmp_path, pictures):
    save(tmp_path, np.repeat(pictures, 20, axis=1), ["a.png", "b.png"])
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    images = opened(tmp_path)
    with pytest.raises(InputError, match=r"b.png' can't be decoded"):
        images.tensor()


def test_a_batch_that_is_cut_short_is_named(tmp_path, pictures):
    header = {"descr": "|u1", "fortran_order": False, "shape": (5, 6, 4, 3)}
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        with archive.open("arr_0.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(pictures[:4].tobytes())
    with pytest.raises(InputError, match=r"short.npz' is not a readable"):
        opened(tmp_path / "short.npz").tensor()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 4, 4), "samples must be uint8 0..255, got float32"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"samples must have shape \(N, C, H, W\)"),
    ],
)
def test_other_tensors_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        TensorImages(images, "samples")
