"""Real images that the user names: ADM batches and folders of pictures."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.metrics.reference import read_reference


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)


def test_reads_a_batch_in_the_adm_layout(tmp_path, pictures):
    np.savez(tmp_path / "batch.npz", arr_0=pictures, mu=np.zeros(3))
    images = read_reference(tmp_path / "batch.npz")
    assert images.shape == (5, 3, 6, 4) and images.dtype == torch.uint8
    assert torch.equal(images[2, :, 1, 3], torch.from_numpy(pictures[2, 1, 3]))
    assert torch.equal(read_reference(tmp_path / "batch.npz", limit=2), images[:2])


def test_reads_a_folder_in_the_order_of_names(tmp_path, pictures):
    for number, name in enumerate(("b/1.png", "a/2.png", "c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pictures[number]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    images = read_reference(tmp_path).permute(0, 2, 3, 1).numpy()
    assert (images == pictures[[1, 0, 2]]).all()


def test_grey_pictures_keep_one_channel(tmp_path, pictures):
    Image.fromarray(pictures[0, ..., 0]).save(tmp_path / "grey.png")
    assert read_reference(tmp_path).shape == (1, 1, 6, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "float32 of shape (2, 4, 4, 3); valid"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "shape (2, 3, 4, 4); valid: uint8"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "has no images: it holds mu, sigma"),
        ({"arr_0": np.array([{}], dtype=object)}, "is not a readable .npz file"),
    ],
)
def test_refuses_other_batches(tmp_path, content, message):
    np.savez(tmp_path / "batch.npz", **content)
    with pytest.raises(InputError, match=re.escape(message)):
        read_reference(tmp_path / "batch.npz")


def test_refuses_missing_broken_and_unequal_files(tmp_path, pictures):
    with pytest.raises(InputError, match=r"does not exist; valid: an \.npz file"):
        read_reference(tmp_path / "absent.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="not a readable"):
        read_reference(tmp_path / "torn.npz")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        read_reference(folder)
    Image.fromarray(pictures[0]).save(folder / "a.png")
    Image.fromarray(pictures[0, :3]).save(folder / "b.png")
    with pytest.raises(InputError, match=r"b.png' is 4x3 .*a.png' is 4x6"):
        read_reference(folder)
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b.png' can't be decoded"):
        read_reference(folder)
