"""Scores that would fail after all training, for want of a file, are refused before."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.presets import build_empty
from tinyfusion.backbones.sit import SiT
from tinyfusion.commands.check_scores import check_files
from tinyfusion.commands.checks import check_decoder, check_latents, check_sampling
from tinyfusion.data.digits import Digits
from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.features import DIGITS_EXTRACTOR, extractor_class, load_extractor
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.samplers.autoregressive import AutoregressiveSampler
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.guidance import Guidance


def protocol(**changes) -> Evaluation:
    return Evaluation(num_samples=4, sampler=DDIMSampler(2), guidance=Guidance(), **changes)


def test_what_is_all_there_is_taken(tmp_path: Path, tiny_autoencoder: Path) -> None:
    file = tmp_path / "real.npz"
    np.savez(file, arr_0=np.zeros((5, 8, 8, 1), np.uint8))
    check_files(protocol(reference=str(file)), Digits(), "evaluation")
    decoder = Autoencoder(str(tiny_autoencoder))
    check_files(protocol(autoencoder=decoder), Digits(), "evaluation")


def test_an_extractor_whose_weights_can_not_be_fetched(monkeypatch) -> None:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Remote(extractor_class(DIGITS_EXTRACTOR)):
        def __init__(self, name, features_list, **kwargs) -> None:
            torch.rand(3)  # start values
            raise URLError("no network here")

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "remote", Remote)
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=r"'remote' can't be fetched or read .*no network here"):
        check_files(protocol(extractor="remote"), Digits(), "evaluation")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError, match="'nothing' is not registered"):
        load_extractor("nothing")


def test_a_decoder_without_its_weights(tmp_path: Path, tiny_autoencoder: Path) -> None:
    shutil.copytree(tiny_autoencoder, tmp_path / "torn")
    (weights,) = (tmp_path / "torn").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:2000])
    decoder = Autoencoder(str(tmp_path / "torn"))
    with pytest.raises(InputError, match="torn' can't be loaded"):
        check_files(protocol(autoencoder=decoder), Digits(), "evaluation")


def test_a_reference_that_is_missing_or_of_another_shape(tmp_path: Path) -> None:
    file = tmp_path / "real.npz"
    with pytest.raises(InputError, match=r"real\.npz' does not exist"):
        check_files(protocol(reference=str(file)), Digits(), "evaluation")
    np.savez(file, arr_0=np.zeros((5, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"of shape \(3, 16, 16\), but .* have \(1, 8, 8\)"):
        check_files(protocol(reference=str(file)), Digits(), "evaluation")


def test_a_decoder_of_latents_of_other_channels_or_scale(tiny_autoencoder: Path) -> None:
    process, decoder = GaussianDiffusion(clip=False), Autoencoder(str(tiny_autoencoder))
    net, source = DiT(8, 2, 3, 16, 1, 2, num_classes=10), Digits()
    with pytest.raises(InputError, match="of 4 channels, but the model has in_channels=3"):
        check_decoder(net, process, decoder, source)
    net = DiT(8, 2, 4, 16, 1, 2, num_classes=10)
    check_decoder(net, process, decoder, source)
    source.scale = decoder.scale
    check_decoder(net, process, decoder, source)
    source.scale = 0.5
    with pytest.raises(InputError, match=r"scaling_factor 0\.18215, but .* encoded with 0\.5"):
        check_decoder(net, process, decoder, source)
    with pytest.raises(InputError, match=r"process\.clip=true clamps"):
        check_decoder(net, GaussianDiffusion(clip=True), decoder)


def test_latents_in_a_process_of_pixels() -> None:
    source = Digits()
    check_latents(source, GaussianDiffusion(clip=True))
    source.pixels = False
    check_latents(source, GaussianDiffusion(clip=False))
    with pytest.raises(InputError, match="the data holds latents; give process=ddpm_latents"):
        check_latents(source, GaussianDiffusion(clip=True))
    with pytest.raises(InputError, match=r"the data holds latents; give process=mar$"):
        check_latents(source, MaskedDiffusion(clip=True))
    check_latents(source, Interpolant())


def test_a_sampler_of_another_kind_of_process_is_told_which_fit() -> None:
    net = SiT(8, 2, 1, 16, 1, 2, num_classes=10)
    kinds = "kind 'diffusion', but process=Interpolant is of kind 'interpolant'"
    with pytest.raises(InputError, match=f"sampler: DDIMSampler .*{kinds}") as caught:
        check_sampling(net, Interpolant(), "sampler", DDIMSampler(2))
    valid = str(caught.value).partition("valid: sampler=")[2].split(", ")
    assert {"ode_heun_10", "sde_euler_250"} <= set(valid)
    assert not {"ddpm_20", "ddim_50", "mar_16"} & set(valid)
    with pytest.raises(InputError, match=r"evaluation: Auto.* valid: sampler=ddim_50, ddpm_20, "):
        check_sampling(net, GaussianDiffusion(), "evaluation", AutoregressiveSampler(2))


def test_a_key_that_a_sampler_names_itself_is_named_once() -> None:
    net = MAR(8, 16, 1, 1, 2, patch_size=2, in_channels=1, head_depth=1, head_width=8)
    sampler = AutoregressiveSampler(17)
    process = MaskedDiffusion(2)
    with pytest.raises(InputError, match=r"^sampler\.iterations=17, but the model has 16 token"):
        check_sampling(net, process, "sampler", sampler)
    with pytest.raises(InputError, match=r"^evaluation: sampler\.iterations=17, but"):
        check_sampling(net, process, "evaluation", sampler)


def test_samples_that_are_latents_are_told_how_they_become_pictures() -> None:
    for name, process, example in (
        ("sit_s_8", Interpolant(), r"\(autoencoder=sd_vae_ft_ema\)"),
        ("mar_base", MaskedDiffusion(), r"\(autoencoder=kl autoencoder.path=FOLDER\)"),
        ("dit_s_8", GaussianDiffusion(clip=True), "sd_vae_ft_ema process=ddpm_latents"),
    ):
        with torch.device("meta"):
            net = build_empty(name)
        with pytest.raises(InputError, match=f"samples are latents: .*{example}"):
            check_decoder(net, process, None)
