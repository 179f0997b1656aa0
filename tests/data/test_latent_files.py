"""The layout of DiT's feature extraction: one .npy per latent and one per label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyfusion.data.latent_files import LatentFiles
from tinyfusion.errors import InputError
from tinyfusion.notices import captured
from tinyfusion.seeding import Rows, StepNoise

COUNT, CLASSES = 12, 3
FEATURES, LABELS = "imagenet256_features", "imagenet256_labels"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Latents 0.npy to 11.npy; that of image i is i + 1, its mirror's -(i + 1)."""
    for name in (FEATURES, LABELS):
        (tmp_path / name).mkdir()
    for number in range(COUNT):
        pair = np.full((2, 4, 6, 6), number + 1, np.float32)
        pair[1] *= -1
        np.save(tmp_path / FEATURES / f"{number}.npy", pair)
        np.save(tmp_path / LABELS / f"{number}.npy", np.array([number % CLASSES]))
    return tmp_path


def numbers_of(latents: torch.Tensor) -> list[int]:
    return latents[:, 0, 0, 0].int().tolist()


def test_every_latent_once_as_it_is_with_its_label(root: Path) -> None:
    source = LatentFiles(root, num_classes=CLASSES, held_out=4)
    assert (len(source), source.channels, source.size, source.pixels) == (8, 4, 6, False)
    train, labels = source.plain(torch.arange(8))
    held_out, held_out_labels = source.held_out()
    assert train.dtype == torch.float32 and labels.labels.dtype == torch.int64
    numbers = numbers_of(train) + numbers_of(held_out)
    # No scale: the values are those of the files.
    assert sorted(numbers) == list(range(1, COUNT + 1))
    together = labels.cat([labels, held_out_labels]).labels
    assert together.tolist() == [(n - 1) % CLASSES for n in numbers]
    with pytest.raises(InputError, match="no images to compare"):
        source.reference()


def test_mirrors_follow_step_and_position(root: Path) -> None:
    source, noise = LatentFiles(root, num_classes=CLASSES), StepNoise(0, "test")
    indices, rows = torch.arange(COUNT).repeat(20), Rows(0, 0, 240)
    stored, labels = source.fetch(indices, noise, rows)
    found = source.finish(stored, noise, rows)
    plain, plain_labels = source.plain(indices)
    assert torch.equal(found.abs(), plain) and torch.equal(labels.labels, plain_labels.labels)
    assert 90 < (found[:, 0, 0, 0] < 0).sum() < 150
    part = Rows(0, 100, 30)
    assert torch.equal(source.fetch(indices[100:130], noise, part)[0], found[100:130])
    still = LatentFiles(root, num_classes=CLASSES, flip=False)
    assert torch.equal(still.fetch(indices, noise, rows)[0], plain)


def test_without_mirrors(root: Path) -> None:
    for file in (root / FEATURES).iterdir():
        np.save(file, np.load(file)[:1])
    with pytest.raises(InputError, match=r"shape \(1, 4, 6, 6\) has no mirror; .*flip=false"):
        LatentFiles(root, num_classes=CLASSES)
    assert len(LatentFiles(root, num_classes=CLASSES, flip=False).plain(torch.arange(12))[0]) == 12


def test_labels_may_be_scalars(root: Path) -> None:
    for file in (root / LABELS).iterdir():
        np.save(file, np.load(file)[0])
    source = LatentFiles(root, num_classes=CLASSES, verify=True)
    assert source.plain(torch.arange(3))[1].labels.shape == (3,)


def remove_folder(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / LABELS / "5.npy").unlink(), "features/5.npy' has no partner .*labels/5"),
        (lambda r: (r / FEATURES / "5.npy").unlink(), "labels/5.npy' has no partner .*features/5"),
        (lambda r: remove_folder(r / LABELS), r"one folder '\*_labels', found none; give data.lab"),
        (lambda r: (r / "x_features").mkdir(), "found imagenet256_features, x_features; give data"),
        (lambda r: np.save(r / FEATURES / "0.npy", np.zeros(3)), r"0.npy' has shape \(3,\)"),
        (
            lambda r: np.save(r / FEATURES / "0.npy", np.zeros((2, 4, 6, 6), int)),
            "0.npy' holds int64 of shape",
        ),
        (lambda r: np.save(r / LABELS / "0.npy", np.zeros(2, int)), r"shape \(2,\); valid: one"),
        (lambda r: np.save(r / LABELS / "0.npy", np.zeros(1)), "labels/0.npy' holds float64"),
        (
            lambda r: np.save(r / LABELS / "0.npy", np.array([CLASSES])),
            r"labels/0.npy': label 3 .* is no class; valid: 0\.\.2",
        ),
        (lambda r: (r / FEATURES / "0.npy").write_bytes(b"torn"), "features/0.npy' can't be read"),
        (
            lambda r: np.save(r / LABELS / "0.npy", np.array([{}]), allow_pickle=True),
            "labels/0.npy' can't be read: .*allow_pickle",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    root: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(root)
    with pytest.raises(InputError, match=message):
        LatentFiles(root, num_classes=CLASSES)


def test_later_files_are_looked_at_when_due_or_by_verifying(root: Path) -> None:
    np.save(root / LABELS / "7.npy", np.array([-1]))
    np.save(root / FEATURES / "8.npy", np.zeros((2, 4, 5, 5), np.float32))
    source = LatentFiles(root, num_classes=CLASSES)
    with pytest.raises(InputError, match=r"7\.npy|8\.npy"):
        source.plain(torch.arange(COUNT))
    with pytest.raises(InputError, match=r"labels/7\.npy': label -1"):
        LatentFiles(root, num_classes=CLASSES, verify=True)
    np.save(root / LABELS / "7.npy", np.array([1]))
    with pytest.raises(InputError, match=r"8\.npy' holds float32 of shape \(2, 4, 5, 5\); valid"):
        LatentFiles(root, num_classes=CLASSES, verify=True)


def test_arguments(root: Path) -> None:
    (root / "more_labels").mkdir()
    assert len(LatentFiles(root, labels=LABELS, num_classes=CLASSES)) == COUNT
    with pytest.raises(InputError, match=r"data\.features='none': no such folder in"):
        LatentFiles(root, features="none", labels=LABELS)
    with pytest.raises(InputError, match=r"data\.root='.*nothing': no such folder"):
        LatentFiles(root / "nothing")
    with pytest.raises(InputError, match=r"data\.held_out=12: must be between 0 and 11"):
        LatentFiles(root, labels=LABELS, num_classes=CLASSES, held_out=12)
    with pytest.raises(InputError, match=r"data\.num_classes=0"):
        LatentFiles(root, num_classes=0)


def test_what_is_no_latent_is_left_out_and_what_is_not_finite_replaced(root: Path) -> None:
    (root / FEATURES / ".~0.npy").touch()
    (root / FEATURES / "log.txt").touch()
    (root / FEATURES / "13.npy").mkdir()
    (root / ".old_features").mkdir()
    latent = np.load(root / FEATURES / "5.npy")
    latent[0, 0] = np.inf
    np.save(root / FEATURES / "5.npy", latent)
    source = LatentFiles(root, num_classes=CLASSES, flip=False)
    with captured() as events:
        found, labels = source.plain(torch.arange(COUNT))
    numbers = numbers_of(found)
    assert len(source) == COUNT and 6 not in numbers and set(numbers) == set(range(1, 13)) - {6}
    assert labels.labels.tolist() == [(n - 1) % CLASSES for n in numbers]
    (event,) = events
    assert event.item == f"latent file {str(root / FEATURES / '5.npy')!r}"
