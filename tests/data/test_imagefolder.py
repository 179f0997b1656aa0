from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.data.imagefolder import ImageFolder, centre_crop
from tinyfusion.errors import InputError
from tinyfusion.seeding import Rows, StepNoise


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, twelve images; each image is a ramp of its own brightness."""
    ramp = np.arange(8, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)
    for number in range(12):
        folder = tmp_path / "images" / "cab"[number % 3]
        save(folder / ("deep" if number == 6 else "") / f"{number:02}.png", ramp + 10 * number)
    (tmp_path / "images" / "a" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_classes_are_numbered_by_name_and_values_scaled(root: Path) -> None:
    source = ImageFolder(root, size=8, flip=False)
    assert (len(source), source.num_classes, source.channels, source.size) == (12, 3, 3, 8)
    images, labels = source.fetch(torch.arange(12), None, None)
    assert images.shape == (12, 3, 8, 8) and images.dtype == torch.float32
    numbers = ((images[:, 0, 0, 0] + 1) * 127.5 / 10).round().long()
    assert sorted(numbers.tolist()) == list(range(12))
    # "cab"[number % 3] sorted: a = 0, b = 1, c = 2.
    assert labels.labels.tolist() == [(2, 0, 1)[number % 3] for number in numbers.tolist()]
    assert labels.labels.dtype == torch.int64


def test_held_out_images_are_never_trained_on(root: Path) -> None:
    source = ImageFolder(root, size=8, held_out=5)
    assert len(source) == 7
    train, _ = source.fetch(torch.arange(7), None, None)
    held_out, labels = source.held_out()
    assert held_out.shape == (5, 3, 8, 8) and len(labels) == 5
    every = torch.cat([train, held_out])
    assert len(torch.unique(every[:, 0, 0, 0])) == 12
    assert torch.equal(source.reference(), ((every + 1) * 127.5).round().to(torch.uint8))
    again, _ = ImageFolder(root, size=8, held_out=5).held_out()
    assert torch.equal(again, held_out)
    assert ImageFolder(root, size=8).held_out()[0].shape == (0, 3, 8, 8)


def test_flips_follow_step_and_position(root: Path) -> None:
    source, noise = ImageFolder(root, size=8), StepNoise(0, "test")
    indices = torch.arange(12).repeat(10)
    plain, _ = source.fetch(indices, None, None)
    whole, _ = source.fetch(indices, noise, Rows(4, 0, 120))
    same = (whole == plain).flatten(1).all(1)
    mirrored = (whole == plain.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 30 < int(mirrored.sum()) < 90
    part, _ = source.fetch(indices[50:70], noise, Rows(4, 50, 20))
    assert torch.equal(part, whole[50:70])
    assert not torch.equal(source.fetch(indices, noise, Rows(5, 0, 120))[0], whole)
    unflipped = ImageFolder(root, size=8, flip=False)
    assert torch.equal(unflipped.fetch(indices, noise, Rows(4, 0, 120))[0], plain)


def test_grey(root: Path) -> None:
    images, _ = ImageFolder(root, size=8, channels=1).fetch(torch.arange(12), None, None)
    assert images.shape == (12, 1, 8, 8)


def test_crop_halves_by_averaging_and_keeps_the_centre() -> None:
    # 32 x 48 -> two halvings -> 8 x 12: no bicubic step, so plain averages of 4 x 4 pixels.
    coarse = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
    image = Image.fromarray(coarse.repeat(4, 0).repeat(4, 1))
    assert np.array_equal(np.asarray(centre_crop(image, 8)), coarse[:, 2:10])
    fine = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    mean = fine.reshape(8, 2, 8, 2).mean((1, 3))
    halved = np.asarray(centre_crop(Image.fromarray(fine), 8)).astype(float)
    # Pillow rounds rows, then columns.
    assert np.abs(halved - mean).max() <= 1


def test_crop_resizes_the_short_side_bicubically() -> None:
    # 12 x 27 at size 8: scale 2/3, so 8 x 18, columns 5..12 of it. A linear ramp stays one.
    ramp = np.tile(np.arange(27, dtype=np.uint8) * 9, (12, 1))
    cropped = np.asarray(centre_crop(Image.fromarray(ramp), 8)).astype(float)
    expected = ((np.arange(5, 13) + 0.5) * 1.5 - 0.5) * 9
    assert cropped.shape == (8, 8)
    assert np.abs(cropped - expected).max() <= 1
    # Small images are enlarged.
    assert centre_crop(Image.fromarray(ramp), 20).size == (20, 20)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root='.*nowhere'"):
        ImageFolder(tmp_path / "nowhere", size=8)


def test_root_without_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "loose.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match="no class folders"):
        ImageFolder(tmp_path, size=8)


def test_empty_class_folder(root: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="'empty' holds no images"):
        ImageFolder(root, size=8)


def test_too_few_images(root: Path) -> None:
    with pytest.raises(InputError, match=r"data\.held_out=12.*0 and 11.*12 images"):
        ImageFolder(root, size=8, held_out=12)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": 8, "channels": 4}])
def test_impossible_arguments(root: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"data\.(size=0|channels=4)"):
        ImageFolder(root, **arguments)


def test_undecodable_image_is_named(root: Path) -> None:
    (root / "b" / "99.png").write_bytes((root / "b" / "02.png").read_bytes()[:45])
    source = ImageFolder(root, size=8)
    with pytest.raises(InputError, match=r"99\.png"):
        source.reference()
    (root / "a" / "00.png").write_text("no image at all")
    with pytest.raises(InputError, match=r"00\.png"):
        ImageFolder(root, size=8)
