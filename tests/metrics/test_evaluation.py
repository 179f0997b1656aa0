"""A scoring protocol on a tiny model."""

import numpy as np
import pytest
import torch

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.dit import DiT
from tinyfusion.data.digits import Digits
from tinyfusion.data.drawn_images import DrawnImages
from tinyfusion.data.image_sets import TensorImages
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics import sample_scoring
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.features import extractor_class
from tinyfusion.metrics.fidelity import fidelity
from tinyfusion.metrics.reporting import floor_line, for_table
from tinyfusion.pixels import to_uint8
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.generate import generate
from tinyfusion.samplers.guidance import Guidance


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    deep = DiT(8, 2, 1, hidden_size=16, depth=4, num_heads=2, num_classes=10)
    for parameter in deep.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return deep


def protocol(**changes):
    values = {"num_samples": 40, "sampler": DDIMSampler(3), "guidance": Guidance()}
    return Evaluation(**(values | changes))


def test_score_has_every_figure_and_is_reproducible(nets):
    process, source = GaussianDiffusion(clip=True), Digits()
    evaluation = protocol(seeds=(0, 1))
    row = evaluation.score(nets, process, source, teacher=nets)
    assert row == evaluation.score(nets, process, source, teacher=nets)
    assert row["teacher_distance"] == 0.0
    assert row["fid_std"] > 0 and row["depth"] == 4
    single = [protocol(seeds=(seed,)).score(nets, process, source)["fid"] for seed in (0, 1)]
    assert row["fid"] == pytest.approx(sum(single) / 2)
    assert for_table(row) == {k: v for k, v in row.items() if k != "fid_std"} | {
        "fid": (row["fid"], row["fid_std"])
    }
    assert row["parameters"] == sum(p.numel() for p in nets.parameters())


def test_one_seed_has_no_spread(nets):
    row = protocol(held_out_repeats=1).score(nets, GaussianDiffusion(), Digits())
    assert "fid_std" not in row
    assert for_table(row) == row


def test_speed_is_relative_to_the_first(nets):
    speeds = protocol(speed_samples=4, speed_repeats=1).speed(
        {"a": nets, "b": nets}, GaussianDiffusion()
    )
    assert speeds["a"]["ratio"] == 1.0 and speeds["b"]["images_per_s"] > 0
    assert protocol(speed_samples=0).speed({"a": nets}, GaussianDiffusion()) == {}


def test_floor_is_that_of_the_real_data():
    floor = protocol().floor(Digits())
    assert 0.3 < floor["fid_real_halves"] < 1.0
    assert floor_line(floor).startswith("FID between halves of the real data 0.")
    assert floor_line({}) == ""


def test_useless_protocols_are_refused():
    wrong = {
        "num_samples": 3,
        "batch_size": 0,
        "held_out_repeats": 0,
        "speed_samples": -1,
        "speed_repeats": 0,
    }
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"evaluation.{name}={value} must be at least"):
            protocol(**{name: value})
    with pytest.raises(InputError, match="seeds is empty"):
        protocol(seeds=())
    with pytest.raises(InputError, match=r"evaluation.class_balance='even' is not known; valid"):
        protocol(class_balance="even")


class Latents(ImageSource):
    """Twelve random latents; the last four are held out."""

    num_classes, channels, size, pixels = 3, 4, 4, False

    def __init__(self):
        self.values = torch.randn(12, 4, 4, 4, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return 8

    def fetch(self, indices, augment, rows):
        return self.values[indices] / 2, indices % 3

    def finish(self, stored, augment, rows):
        return 2 * stored

    def held_out(self):
        return self.values[8:], torch.arange(4) % 3

    def reference(self):
        raise InputError("latents have no pixels")


@pytest.fixture
def colours(monkeypatch):
    """A registered extractor that takes decoded pictures."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    digits = extractor_class("tinyfusion-digits")

    class Colours(digits):
        input_shape = (3, 8, 8)

        def forward(self, input):
            return super().forward(input[:, :1])

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "colours", Colours)
    return "colours"


@pytest.fixture(scope="module")
def latent_net():
    torch.manual_seed(0)
    return DiT(4, 2, 4, hidden_size=16, depth=1, num_heads=2, num_classes=3).eval()


def test_samples_of_a_latent_model_are_decoded(latent_net, tiny_autoencoder, colours):
    decoder = Autoencoder(str(tiny_autoencoder), batch_size=3)
    evaluation = protocol(num_samples=8, autoencoder=decoder, extractor=colours)
    process, source = GaussianDiffusion(), Latents()
    pictures = DrawnImages(evaluation.drawing(latent_net, process, seed=0)).tensor()
    assert pictures.shape == (8, 3, 8, 8) and pictures.dtype == torch.uint8
    latents = generate(latent_net, process, DDIMSampler(3), torch.arange(8) % 3, 0)
    assert torch.equal(pictures, to_uint8(decoder.decode(latents)))
    row = evaluation.score(latent_net, process, source)
    assert row["fid"] > 0 and row["held_out_loss"] > 0
    # The real images are decoded training latents.
    assert evaluation.protocol()["reference"] == "decoded training latents"
    real = evaluation.real(source).images.tensor()
    assert torch.equal(real, to_uint8(decoder.decode(source.values[:8])))
    assert row["fid"] == pytest.approx(fidelity(pictures, real, colours)["fid"])


def test_reference_takes_the_place_of_the_data(latent_net, tiny_autoencoder, colours, tmp_path):
    images = torch.randint(0, 256, (9, 8, 8, 3), dtype=torch.uint8).numpy()
    np.savez(tmp_path / "reference.npz", arr_0=images)
    evaluation = protocol(
        num_samples=8,
        autoencoder=Autoencoder(str(tiny_autoencoder)),
        extractor=colours,
        reference=str(tmp_path / "reference.npz"),
        reference_samples=6,
    )
    real = evaluation.real(Latents()).images.tensor()
    assert (real.permute(0, 2, 3, 1).numpy() == images[:6]).all()
    assert evaluation.protocol()["reference"].endswith("reference.npz")


def test_latents_without_decoder_are_refused(nets):
    with pytest.raises(InputError, match="holds latents: give autoencoder="):
        protocol().real(Latents())


def test_at_most_so_many_real_images():
    source = Digits()
    some = protocol(reference_samples=50).real(source).images
    assert torch.equal(some.tensor(), source.reference()[:50])
    assert len(protocol().real(source).images) == 1797
    with pytest.raises(InputError, match="reference_samples=3 must be at least 4"):
        protocol(reference_samples=3)


def test_protocol_names_the_sampler_with_its_settings():
    line = protocol().protocol()["sampler"]
    assert line == "DDIMSampler(steps=3, eta=0.0)"


def test_real_images_are_looked_at_once_and_let_go(monkeypatch, tmp_path):
    looked = []
    found = sample_scoring.reference_of
    monkeypatch.setattr(
        sample_scoring, "reference_of", lambda *a, **k: looked.append(a[0]) or found(*a, **k)
    )
    source, other = Digits(), Digits()
    evaluation = protocol(features_folder=str(tmp_path / "features"))
    first = evaluation.known(source)
    assert evaluation.known(source)[1] is first[1] and len(looked) == 1
    evaluation.known(other)
    assert len(looked) == 2 and len(evaluation._known) == 1
    assert first[0] == (1, 8, 8)
    assert len(list((tmp_path / "features").iterdir())) == 1  # of equal content


def test_images_are_compared_with_the_real_ones(nets):
    evaluation, source = protocol(), Digits()
    wide = TensorImages(torch.zeros(8, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="samples are 3x8x8 and reference images 1x8x8"):
        evaluation.fidelity(wide, source)
    # Their number is their own, not the protocol's.
    many = TensorImages(source.reference()[:60])
    split = protocol(is_split_size=50)
    assert split.fidelity(many, source)["fid"] >= 0
    assert split.scoring(60)["is_split_size"] == 50
    assert protocol().scoring(60)["is_split_size"] == 60


def test_halves_are_drawn_anew(nets):
    assert protocol().floor(Digits())["fid_real_halves_std"] > 0


def test_what_is_compared_with_more_images_has_no_floor(tmp_path):
    images = Digits().reference()[:40].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "real.npz", arr_0=images, mu=np.zeros(64), sigma=np.eye(64))
    evaluation = protocol(reference=str(tmp_path / "real.npz"))
    assert evaluation.floor(None) == {}
    before = evaluation.content()
    np.savez(tmp_path / "real.npz", arr_0=images, mu=np.ones(64), sigma=np.eye(64))
    assert evaluation.content() != before  # the same path


def test_samples_are_computed_in_the_given_precision(nets):
    process = GaussianDiffusion(clip=True)
    evaluation = protocol(num_samples=8)
    plain, half = (
        DrawnImages(evaluation.drawing(nets, process, 0, dtype)).tensor()
        for dtype in (None, torch.bfloat16)
    )
    labels = torch.arange(8) % 10
    expected = generate(nets, process, DDIMSampler(3), labels, 0, dtype=torch.bfloat16)
    assert torch.equal(half, to_uint8(expected))
    assert not torch.equal(half, plain)
    row = evaluation.score(nets, process, Digits(), dtype=torch.bfloat16)
    assert row["fid"] == pytest.approx(evaluation.fidelity(TensorImages(half), Digits())["fid"])
