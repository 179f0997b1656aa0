"""Models of latents from the command line: decoded samples, and what is refused before work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import save_model


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = DiT(4, 2, 4, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    return save_model(net, tmp_path_factory.mktemp("latent_model"))


def test_samples_are_pictures(tf, latent_model, tiny_autoencoder, only_run):
    result = tf(
        "sample",
        f"checkpoint={latent_model}",
        "autoencoder=kl",
        f"autoencoder.path={tiny_autoencoder}",
        "process=ddpm_latents",
        "n=3",
        "guidance.channels=3",
    )
    assert result.status == 0, result.err
    folder = only_run("sample")
    with np.load(folder / "samples.npz") as written:
        assert written["arr_0"].shape == (3, 8, 8, 3) and written["arr_0"].dtype == np.uint8
        picture = np.asarray(Image.open(folder / "samples" / "000001.png"))
        assert (picture == written["arr_0"][1]).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "in_channels=4, so its samples are latents: give their decoder (autoencoder="),
        (["autoencoder=kl", "autoencoder.path={vae}"], "process.clip=true clamps to the range"),
        (["autoencoder=kl", "autoencoder.path=absent/folder/x"], "does not exist; valid: a folder"),
        (["autoencoder=kl"], "'autoencoder.path' must be given"),
        (["autoencoder=nothing"], "autoencoder=nothing is not known; valid: kl, none"),
    ],
)
def test_wrong_decoders_are_refused(tf, latent_model, tiny_autoencoder, root, overrides, message):
    filled = [text.replace("{vae}", str(tiny_autoencoder)) for text in overrides]
    result = tf("sample", f"checkpoint={latent_model}", *filled)
    assert result.status == 2 and result.err.count("\n") == 1
    assert message in result.err
    assert not root.exists()


def test_a_decoder_of_other_channels_is_refused(tf, tiny_autoencoder):
    result = tf(
        "sample", "autoencoder=kl", f"autoencoder.path={tiny_autoencoder}", "process=ddpm_latents"
    )
    assert result.status == 2
    assert "decodes latents of 4 channels, but the model has in_channels=1" in result.err
