"""Exports in the real ``DiTPipeline``: images equal ours once the convention is set.

A tiny DiT of 1000 classes and a tiny autoencoder, both with random weights; the pipeline hard-codes
class 1000 as null, guides all latent channels and ignores the variance half.
"""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

import tinyfusion
from tinyfusion.autoencoder import Autoencoder
from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import load, save_diffusers, set_convention, use_published_convention
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.surgery import prune

PUBLISHED = {"frequency_divisor": 128.0, "mlp_norm_eps": 1e-6}


def tiny_dit(num_classes=1000, **changes):
    net = DiT(
        **dict(input_size=8, hidden_size=32, depth=5, num_heads=4, num_classes=num_classes)
        | changes
    )
    draws = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    return net.eval()


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """Folder of a tiny autoencoder for latents of four channels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    ).save_pretrained(folder)
    return folder


def pipeline(folder, **components):
    loaded = DiTPipeline.from_pretrained(folder, **components)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def their_images(pipe, labels, scale, steps=10):
    draws = torch.Generator().manual_seed(7)
    return pipe(
        labels,
        guidance_scale=scale,
        num_inference_steps=steps,
        generator=draws,
        output_type="pt",
    ).images


def our_images(net, vae, labels, scale, steps=10):
    """Images in [0, 1] from the noise that the pipeline draws."""
    size = (len(labels), net.in_channels, net.input_size, net.input_size)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(7))
    latents = DDIMSampler(f"ddim{steps}")(
        net, GaussianDiffusion(), lambda: noise, ClassLabels(torch.tensor(labels)), Guidance(scale)
    )
    return Autoencoder(str(vae)).decode(latents) / 2 + 0.5


LABELS = [0, 417, 999]


@pytest.mark.parametrize("kept", [None, [0, 2, 4]], ids=["full", "pruned"])
@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_images_equal_ours_after_the_call(kept, scale, vae, tmp_path):
    net = tiny_dit() if kept is None else prune(tiny_dit(), kept)
    pipe = pipeline(save_diffusers(net, tmp_path / "export", vae=vae))
    expected = our_images(net, vae, LABELS, scale)
    stock = their_images(pipe, LABELS, scale)
    assert use_published_convention(pipe) == PUBLISHED
    found = their_images(pipe, LABELS, scale)
    assert found.shape == (3, 3, 16, 16)
    assert (found - expected).abs().max() < 1e-4
    # Images that are all grey would agree whatever was computed; and without the call they differ.
    assert expected.std() > 0.05
    assert (stock - expected).abs().max() > 0.01


def test_difference_comes_from_the_frequencies_not_from_epsilon(vae, tmp_path):
    net = tiny_dit()
    pipe = pipeline(save_diffusers(net, tmp_path / "export", vae=vae))
    exact = our_images(net, vae, LABELS, 4.0)
    set_convention(pipe, 128, 1e-5)
    assert (their_images(pipe, LABELS, 4.0) - exact).abs().max() < 1e-3


def test_other_numbers_of_classes_sample_without_guidance(vae, tmp_path):
    net = tiny_dit(num_classes=10)
    folder = save_diffusers(net, tmp_path / "export", vae=vae)
    record = json.loads((folder / "transformer" / "tinyfusion.json").read_text())
    assert record["sampling"] == {"pipeline": "DiTPipeline", "guidance": False, "null_class": 10}
    assert "samples there without guidance only" in (folder / "README.md").read_text()
    pipe = pipeline(folder)
    use_published_convention(pipe)
    expected = our_images(net, vae, [0, 9], 1.0)
    assert (their_images(pipe, [0, 9], 1.0) - expected).abs().max() < 1e-4
    with pytest.raises(IndexError):
        their_images(pipe, [0, 9], 4.0)


def test_model_without_variance_samples_too(vae, tmp_path):
    net = tiny_dit(learn_sigma=False)
    pipe = pipeline(save_diffusers(net, tmp_path / "export", vae=vae))
    use_published_convention(pipe)
    assert (their_images(pipe, LABELS, 4.0) - our_images(net, vae, LABELS, 4.0)).abs().max() < 1e-4


def test_every_step_count_that_divides_1000_visits_our_times(tmp_path):
    scheduler = pipeline(save_diffusers(tiny_dit(), tmp_path / "export"), vae=None).scheduler
    for steps in (10, 20, 50, 250):
        scheduler.set_timesteps(steps)
        chain = GaussianDiffusion().respaced(f"ddim{steps}")
        assert scheduler.timesteps.flip(0).tolist() == chain.time_map_S.tolist()


def test_without_an_autoencoder_one_is_given_when_loading(vae, tmp_path):
    net = tiny_dit()
    folder = save_diffusers(net, tmp_path / "export")
    assert not (folder / "vae").exists()
    with pytest.raises(ValueError, match="expected"):
        pipeline(folder)
    pipe = pipeline(folder, vae=AutoencoderKL.from_pretrained(vae))
    tinyfusion.use_published_convention(pipe)
    assert (their_images(pipe, LABELS, 4.0) - our_images(net, vae, LABELS, 4.0)).abs().max() < 1e-4
    alone = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    assert alone.config.num_layers == 5


@pytest.mark.parametrize("scheduler", ["ddpm", "dpm"])
def test_other_schedulers_sample(scheduler, vae, tmp_path):
    pipe = pipeline(save_diffusers(tiny_dit(), tmp_path / "x", vae=vae, scheduler=scheduler))
    assert their_images(pipe, [3], 4.0, steps=5).isfinite().all()


def test_class_names_reach_the_pipeline(tmp_path):
    net = tiny_dit(num_classes=2)
    labels = {0: "tench, Tinca tinca", 1: "goldfish"}
    pipe = pipeline(save_diffusers(net, tmp_path / "x", labels=labels), vae=None)
    assert pipe.labels == {"Tinca tinca": 0, "goldfish": 1, "tench": 0}


def test_convention_survives_saving_by_diffusers(tmp_path):
    net = tiny_dit()
    loaded = DiTTransformer2DModel.from_pretrained(
        save_diffusers(net, tmp_path / "a"), subfolder="transformer"
    )
    set_convention(loaded)
    loaded.save_pretrained(tmp_path / "b")
    assert load(tmp_path / "b").config() == net.config()


def test_weights_from_diffusers_need_no_call(vae, tmp_path):
    net = tiny_dit(frequency_divisor=127.0, mlp_norm_eps=1e-5)
    folder = save_diffusers(net, tmp_path / "export", vae=vae)
    card = (folder / "README.md").read_text()
    assert "which is how diffusers computes them" in card
    assert "import tinyfusion" not in card
    pipe = pipeline(folder)
    assert (their_images(pipe, LABELS, 4.0) - our_images(net, vae, LABELS, 4.0)).abs().max() < 1e-4
    with pytest.raises(InputError, match="expect frequency divisor 127 and norm epsilon 1e-05"):
        use_published_convention(pipe)
    assert set_convention(pipe) == {"frequency_divisor": 127.0, "mlp_norm_eps": 1e-5}


def test_models_of_others_do_not_say_what_they_expect():
    stock = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, sample_size=4
    )
    with pytest.raises(InputError, match="frequency_divisor and mlp_norm_eps must be given"):
        set_convention(stock)
    with pytest.raises(InputError, match="mlp_norm_eps must be given"):
        set_convention(stock, frequency_divisor=128)
    with pytest.raises(InputError, match=r"frequency_divisor=0: must be a positive number"):
        set_convention(stock, 0, 1e-6)
    use_published_convention(stock)
    shifts = {block.norm1.emb.time_proj.downscale_freq_shift for block in stock.transformer_blocks}
    assert shifts == {0.0}
    assert {block.norm3.eps for block in stock.transformer_blocks} == {1e-6}
    with pytest.raises(InputError, match="a Linear has no convention to set"):
        use_published_convention(torch.nn.Linear(2, 2))
