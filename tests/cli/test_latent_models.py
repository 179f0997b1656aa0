"""Models of latents from the command line: decoded samples, and what is refused before work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import save_model
from tinyfusion.cli import main


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


def test_a_run_on_latents_shows_and_scores_pictures(
    tf, tmp_path, tiny_autoencoder, only_run, monkeypatch
):
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    from tinyfusion.metrics.features import extractor_class

    class Corners(extractor_class("tinyfusion-digits")):
        input_shape = (3, 16, 16)

        def forward(self, input):
            return super().forward(input[:, :1, :8, :8])

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "corners", Corners)
    shown = {}
    monkeypatch.setattr(
        "tinyfusion.figures.grid.comparison_grid", lambda rows, path: shown.update(rows)
    )
    monkeypatch.setattr("tinyfusion.tracking.trackers.Trackers.image", lambda *_: None)
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    decoder = ("autoencoder=kl", f"autoencoder.path={tiny_autoencoder}")
    store = tmp_path / "latents"
    images = (f"data.root={tmp_path / 'images'}", "data.size=16")
    assert main(["encode", *images, *decoder, f"store={store}", f"output_root={tmp_path}"]) == 0
    torch.manual_seed(0)
    net = DiT(8, 2, 4, hidden_size=16, depth=2, num_heads=2, num_classes=2)
    result = tf(
        "run",
        *decoder,
        f"checkpoint={save_model(net, tmp_path / 'model')}",
        "data=latents",
        f"data.root={store}",
        "data.held_out=8",
        "process=ddpm_latents",
        "pruner=random",
        "keep=1",
        "recovery=kd",
        "evaluation.extractor=corners",
        "evaluation.seeds=[0]",
    )
    assert result.status == 0, result.err
    assert set(shown) == {"source", "pruned", "recovered"}
    assert all(row.shape == (2, 3, 16, 16) for row in shown.values())
    metrics = json.loads((only_run("run") / "metrics.json").read_text())
    assert metrics["models"]["recovered"]["fid"] > 0
    assert "decoded" in metrics["protocol"]["reference"]
