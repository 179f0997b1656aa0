"""Real images as the metrics know them: statistics of files, and features kept by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.data.digits import Digits
from tinyfusion.data.image_sets import TensorImages
from tinyfusion.errors import InputError
from tinyfusion.metrics import reference as reference_module
from tinyfusion.metrics.features import DIGITS_EXTRACTOR, extract
from tinyfusion.metrics.fidelity import Statistics
from tinyfusion.metrics.reference import RealImages, check_statistics, read_reference, reference_of


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return Digits().reference()[:40]


def batch(path: Path, images: torch.Tensor | None, **arrays: np.ndarray) -> Path:
    if images is not None:
        arrays["arr_0"] = images.permute(0, 2, 3, 1).numpy()
    np.savez(path, **arrays)
    return path


def statistics(images: torch.Tensor, layer: str) -> Statistics:
    return Statistics.of(extract(TensorImages(images), DIGITS_EXTRACTOR)[layer])


def test_a_files_own_statistics_go_before_those_of_its_images(tmp_path, digits) -> None:
    larger = Digits().reference()[40:200]
    pooled, spatial = statistics(larger, "features"), statistics(larger, "spatial")
    own = {"mu": pooled.mu, "sigma": pooled.sigma, "mu_s": spatial.mu, "sigma_s": spatial.sigma}
    found = reference_of(read_reference(batch(tmp_path / "a.npz", digits, **own)), DIGITS_EXTRACTOR)
    assert (found.statistics["fid"].sigma == pooled.sigma).all()
    assert (found.statistics["sfid"].mu == spatial.mu).all()
    assert len(found.features["features"]) == 40
    # Of a file with pool statistics alone, the spatial ones are those of its images.
    some = batch(tmp_path / "b.npz", digits, mu=pooled.mu, sigma=pooled.sigma)
    found = reference_of(read_reference(some), DIGITS_EXTRACTOR)
    assert (found.statistics["fid"].mu == pooled.mu).all()
    np.testing.assert_allclose(found.statistics["sfid"].mu, statistics(digits, "spatial").mu)


def test_statistics_alone_give_no_precision(tmp_path, digits) -> None:
    pooled = statistics(digits, "features")
    file = batch(tmp_path / "a.npz", None, mu=pooled.mu, sigma=pooled.sigma)
    real = read_reference(file)
    assert real.images is None
    found = reference_of(real, DIGITS_EXTRACTOR)
    assert set(found.statistics) == {"fid"} and found.features == {}


def test_statistics_of_another_extractor_are_refused(tmp_path) -> None:
    file = batch(tmp_path / "a.npz", None, mu=np.zeros(2048), sigma=np.eye(2048))
    message = r"real='.*a.npz': mu is of 2048 features, but extractor 'tinyfusion-digits' has 64"
    with pytest.raises(InputError, match=message):
        check_statistics(read_reference(file), DIGITS_EXTRACTOR, key="real")


def test_a_file_with_neither_images_nor_statistics_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="has no images: it holds labels"):
        read_reference(batch(tmp_path / "a.npz", None, labels=np.zeros(3)))


def test_features_are_kept_by_content(tmp_path, digits, monkeypatch) -> None:
    counted = []

    def counting(*args, **kwargs):
        counted.append(len(args[0]))
        return extract(*args, **kwargs)

    monkeypatch.setattr(reference_module, "extract", counting)

    def found(images):
        real = RealImages(TensorImages(images), {})
        return reference_of(real, DIGITS_EXTRACTOR, cache=tmp_path)

    first, again = found(digits), found(digits.clone())
    assert counted == [40]
    for name, value in first.statistics.items():
        assert (again.statistics[name].mu == value.mu).all()
        assert (again.statistics[name].sigma == value.sigma).all()
    assert {name: value.tolist() for name, value in first.features.items()} == {
        name: value.tolist() for name, value in again.features.items()
    }
    found(digits[:30])
    assert counted == [40, 30]
    # A torn file is made anew.
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    found(digits)
    assert counted == [40, 30, 40]


def test_the_key_of_kept_features_holds_the_extractor_and_its_weights(
    tmp_path, digits, monkeypatch
) -> None:
    made = []
    monkeypatch.setattr(
        reference_module, "extract", lambda *a, **k: made.append(a[1]) or extract(*a[:2])
    )
    digest = {"": "one"}
    monkeypatch.setattr(reference_module, "weights_digest", lambda name, weights: digest[""])
    real = RealImages(TensorImages(digits), {})

    def found():
        return reference_of(real, DIGITS_EXTRACTOR, cache=tmp_path)

    found()
    found()
    assert len(made) == 1
    digest[""] = "another"
    found()
    assert len(made) == 2
    monkeypatch.setattr(reference_module, "code_digest", lambda *modules: "another")
    found()
    assert len(made) == 3


def test_of_a_folder_some_pictures_are_spread_over_the_names(tmp_path, digits) -> None:
    for index, image in enumerate(digits[:9]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index}.png")
    some = read_reference(tmp_path, 3).images
    assert torch.equal(some.tensor(), digits[[0, 3, 6]])
    assert len(read_reference(tmp_path, 20).images) == 9


def test_statistics_of_more_images_are_marked(tmp_path, digits) -> None:
    pooled = statistics(digits, "features")
    file = batch(tmp_path / "a.npz", digits, mu=pooled.mu, sigma=pooled.sigma)
    assert reference_of(read_reference(file), DIGITS_EXTRACTOR).larger
    plain = batch(tmp_path / "b.npz", digits)
    assert not reference_of(read_reference(plain), DIGITS_EXTRACTOR).larger
    assert read_reference(file).digest() != read_reference(plain).digest()
