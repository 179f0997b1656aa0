"""The Inception extractor with spatial features, on random weights; and its weights' file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tinyfusion import files
from tinyfusion.data.image_sets import TensorImages
from tinyfusion.errors import InputError
from tinyfusion.files import sha256_of
from tinyfusion.metrics import inception
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.features import (
    extract,
    extractor_class,
    feature_sizes,
    layers,
    load_extractor,
    weights_digest,
)
from tinyfusion.metrics.inception import INCEPTION_EXTRACTOR
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.guidance import Guidance


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of random weights under the published names."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bare(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Bare("bare", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    torch.save(net.state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_spatial_features_are_the_first_channels_of_mixed_6_conv(weights, images) -> None:
    found = extract(TensorImages(images), INCEPTION_EXTRACTOR, weights)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "2048": (3, 2048),
        "logits_unbiased": (3, 1008),
        "spatial": (3, 2023),
    }
    net = load_extractor(INCEPTION_EXTRACTOR, weights)
    maps = {}
    handle = net.Mixed_6c.register_forward_hook(lambda _, args, output: maps.update(x=output))
    net(images)
    handle.remove()
    branch = net.Mixed_6d.branch1x1
    expected = F.relu(branch.bn(branch.conv(maps["x"])))[:, :7]
    assert expected.shape == (3, 7, 17, 17)
    # Row, column, channel, as statistics in reference files have them.
    at = found["spatial"].view(3, 17, 17, 7)
    torch.testing.assert_close(at, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    assert (at == 0).any() and (at > 0).any()


def test_other_features_are_torch_fidelitys_own(weights, images) -> None:
    found = extract(TensorImages(images), INCEPTION_EXTRACTOR, weights)
    own = extract(TensorImages(images), "inception-v3-compat", weights)
    assert set(own) == {"2048", "logits_unbiased"}
    for name, value in own.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_torch_fidelity_computes_sfid_through_the_registry(weights, images) -> None:
    from torch_fidelity import calculate_metrics

    from tinyfusion.metrics.fidelity import Statistics, frechet_distance

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

    extractor_class(INCEPTION_EXTRACTOR)  # registers it
    more = images.flip(0, 2)
    theirs = calculate_metrics(
        input1=Images(images),
        input2=Images(more),
        fid=True,
        feature_extractor=INCEPTION_EXTRACTOR,
        feature_extractor_weights_path=weights,
        feature_layer_fid="spatial",
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )["frechet_inception_distance"]
    ours = frechet_distance(
        *(
            Statistics.of(extract(TensorImages(x), INCEPTION_EXTRACTOR, weights)["spatial"])
            for x in (images, more)
        )
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_layers_of_the_metrics_and_their_sizes(weights) -> None:
    assert layers(INCEPTION_EXTRACTOR) == {
        "fid": "2048",
        "isc": "logits_unbiased",
        "prc": "2048",
        "sfid": "spatial",
    }
    assert "sfid" not in layers("inception-v3-compat")
    sizes = feature_sizes(INCEPTION_EXTRACTOR, weights)
    assert sizes == {"2048": 2048, "logits_unbiased": 1008, "spatial": 2023}


def test_a_broken_image_is_named(weights, images, monkeypatch) -> None:
    net = load_extractor(INCEPTION_EXTRACTOR, weights)
    true_forward = type(net).forward

    def forward(self, x):
        out = true_forward(self, x)
        out[0][-1] = np.nan
        return out

    monkeypatch.setattr(type(net), "forward", forward)
    message = r"samples: the features \('2048'\) of image 1 are not finite"
    with pytest.raises(InputError, match=message):
        extract(TensorImages(images), INCEPTION_EXTRACTOR, weights, batch_size=2, name="samples")


class Dangerous:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"evaluation\.weights='.*absent\.pth' does not exist; get https"),
        ({"a": torch.zeros(2)}, "does not hold the weights of Inception"),
        ([1, 2], "does not hold the weights of Inception"),
        (b"no weights", "can't be read as the weights of Inception"),
        (b"hello", "can't be read as the weights of Inception"),
        ({"fc.weight": Dangerous()}, "can't be read as the weights of Inception"),
        ({"fc.weight": torch.zeros(2)}, "does not hold the weights of Inception"),
    ],
)
def test_other_files_are_refused_and_run_no_code(tmp_path: Path, content, message, capsys) -> None:
    file = tmp_path / ("absent.pth" if content is None else "weights.pth")
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(InputError, match=message) as caught:
        load_extractor(INCEPTION_EXTRACTOR, str(file))
    assert "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "extractor",
    [INCEPTION_EXTRACTOR, pytest.param("inception-v3-compat", marks=pytest.mark.slow)],
)
def test_an_evaluation_reads_the_weights_once(
    tmp_path, weights, images, monkeypatch, extractor
) -> None:
    # A file that no other test has read.
    file = tmp_path / "weights.pth"
    file.write_bytes(Path(weights).read_bytes())
    np.savez(tmp_path / "real.npz", arr_0=images.repeat(2, 1, 1, 1).permute(0, 2, 3, 1).numpy())
    reads: list[str] = []

    def counted(name: str, call):
        def counting(source, *args, **kwargs):
            if str(source) == str(file):
                reads.append(name)
            return call(source, *args, **kwargs)

        return counting

    # Of matrices of 2048 x 2048 it takes longer than all else here.
    monkeypatch.setattr(np.linalg, "eigvals", lambda matrix: np.zeros(len(matrix)))
    monkeypatch.setattr(torch, "load", counted("load", torch.load))
    monkeypatch.setattr(files, "sha256_of", counted("hash", files.sha256_of))
    for seed in (0, 1):
        evaluation = Evaluation(
            num_samples=4,
            sampler=AncestralSampler(2),
            guidance=Guidance(1.0),
            extractor=extractor,
            weights=str(file),
            neighbours=1,
            reference=str(tmp_path / "real.npz"),
            features_folder=str(tmp_path / f"features{seed}"),
        )
        load_extractor(extractor, str(file))
        content = evaluation.content()
        evaluation.fidelity(TensorImages(images.repeat(2, 1, 1, 1)), None)
    evaluation.floor(None, draws=2)
    assert sorted(reads) == ["hash", "load"]
    assert content["weights"] == sha256_of(weights)


def test_weights_that_were_replaced_are_read_again(tmp_path, weights, images) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(Path(weights).read_bytes())
    first = extract(TensorImages(images), INCEPTION_EXTRACTOR, str(file))
    digest = weights_digest(INCEPTION_EXTRACTOR, str(file))
    state = torch.load(weights, weights_only=True)
    torch.save({name: value * 1.1 for name, value in state.items()}, tmp_path / "other.pth")
    (tmp_path / "other.pth").replace(file)
    second = extract(TensorImages(images), INCEPTION_EXTRACTOR, str(file))
    assert not torch.equal(first["2048"], second["2048"])
    assert weights_digest(INCEPTION_EXTRACTOR, str(file)) != digest


def test_without_a_network_it_is_said_what_to_fetch(tmp_path: Path, monkeypatch) -> None:
    def download(url, file, hash_prefix):
        assert hash_prefix == "6726825d"
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(InputError, match=r"not on this machine .*no network here.*weights=FILE"):
        inception.inception_file(None)


def test_a_fetched_file_is_found_again(tmp_path: Path, weights, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.write_bytes(Path(weights).read_bytes())
    with pytest.raises(InputError, match="is damaged: remove it to have it fetched again"):
        inception.inception_file(None)
    monkeypatch.setattr(inception, "_HASH", sha256_of(file)[:8])
    assert inception.inception_file(None) == file
    assert weights_digest(INCEPTION_EXTRACTOR) == sha256_of(file)


def test_spatial_features_alone(weights, images) -> None:
    alone = extractor_class(INCEPTION_EXTRACTOR)(
        INCEPTION_EXTRACTOR, ["64", "spatial"], feature_extractor_weights_path=weights
    )
    whole = extract(TensorImages(images), INCEPTION_EXTRACTOR, weights)
    torch.testing.assert_close(alone(images)[1], whole["spatial"], rtol=1e-5, atol=1e-6)
