"""Scores that can't be computed are refused before any sample is drawn or looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tinyfusion.commands.check_scores import check_files, check_images
from tinyfusion.data.digits import Digits
from tinyfusion.data.image_sets import TensorImages
from tinyfusion.data.open_images import open_images
from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.guidance import Guidance


def protocol(**changes) -> Evaluation:
    values = {"num_samples": 8, "sampler": DDIMSampler(2), "guidance": Guidance()}
    return Evaluation(**(values | changes))


def images(count: int, channels: int = 1, size: int = 8) -> TensorImages:
    return TensorImages(torch.zeros(count, channels, size, size, dtype=torch.uint8))


def batch(folder: Path, shape: tuple[int, ...], **arrays: np.ndarray) -> str:
    np.savez(folder / "real.npz", arr_0=np.zeros(shape, np.uint8), **arrays)
    return str(folder / "real.npz")


def test_images_that_fit_are_taken(tmp_path: Path) -> None:
    check_images(protocol(), images(4), Digits())
    reference = batch(tmp_path, (5, 8, 8, 1))
    check_images(protocol(reference=reference), images(4), None)
    check_files(protocol(reference=reference), Digits(), "evaluation")


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        (images(3), {}, "samples: 3 images are too few, neighbours=3 needs at least 4"),
        (images(9), {"neighbours": 9}, "samples: 9 images are too few, neighbours=9"),
        (images(8), {"is_split_size": 9}, "is_split_size=9: valid for 8 samples are 1 to 8"),
        (images(8, 3), {}, r"does not take these images: images are 3x8x8, but .* takes 1x8x8"),
        (images(8, size=16), {}, "does not take these images: images are 1x16x16"),
    ],
)
def test_images_that_do_not_fit_are_refused(given, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        check_images(protocol(**changes), given, Digits())


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((5, 16, 16, 1), {}, r"holds images of shape \(1, 16, 16\), but .* have \(1, 8, 8\)"),
        ((5, 8, 8, 3), {}, r"holds images of shape \(3, 8, 8\), but .* have \(1, 8, 8\)"),
        ((3, 8, 8, 1), {}, "reference: 3 images are too few, neighbours=3 needs at least 4"),
        ((9, 8, 8, 1), {"neighbours": 5, "reference_samples": 5}, "reference: 5 images are too"),
    ],
)
def test_references_that_do_not_fit_are_refused(tmp_path, shape, changes, message) -> None:
    evaluation = protocol(reference=batch(tmp_path, shape), **changes)
    with pytest.raises(InputError, match=message):
        check_images(evaluation, images(8), None)
    with pytest.raises(InputError, match=message):
        check_files(evaluation, Digits(), "evaluation")


def test_statistics_of_another_extractor_are_refused(tmp_path) -> None:
    reference = batch(tmp_path, (5, 8, 8, 1), mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(InputError, match=r"evaluation.reference='.*real.npz': mu is of 5 features"):
        check_files(protocol(reference=reference), Digits(), "evaluation")


def test_too_few_samples_for_the_protocol_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(InputError, match="samples: 8 images are too few, neighbours=8"):
        check_files(protocol(neighbours=8), Digits(), "evaluation")
    with pytest.raises(InputError, match="is_split_size=5000: valid for 8 samples"):
        check_files(protocol(is_split_size=5000), Digits(), "evaluation")


def test_an_unfinished_run_is_named(tmp_path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="is not finished; resume it with"):
        open_images(tmp_path, None, "images")
