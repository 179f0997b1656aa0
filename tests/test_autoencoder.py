"""The wrapper of diffusers' AutoencoderKL, against diffusers itself and with broken folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tinyfusion.autoencoder import Autoencoder
from tinyfusion.errors import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_autoencoder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny autoencoder, to be broken."""
    return Path(shutil.copytree(tiny_autoencoder, tmp_path / "vae"))


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value != "remove"}
    (folder / "config.json").write_text(json.dumps(config))


def test_moments_and_images_are_those_of_diffusers(tiny_autoencoder: Path) -> None:
    ours = Autoencoder(str(tiny_autoencoder), batch_size=2)
    theirs = AutoencoderKL.from_pretrained(tiny_autoencoder).eval()
    assert (ours.scale, ours.channels, ours.factor) == (0.18215, 4, 2)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    moments = ours.moments(images)
    assert moments.shape == (3, 8, 8, 8) and moments.dtype == torch.float32
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.logvar], 1))
    # `decode` takes what the diffusion model makes: latents times the scale factor.
    again = ours.decode(ours.scale * moments[:, :4])
    torch.testing.assert_close(again, decoded.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert not again.requires_grad


def test_it_is_no_module_of_whoever_holds_it(tiny_autoencoder: Path) -> None:
    holder = torch.nn.Module()
    holder.decoder = Autoencoder(str(tiny_autoencoder))
    holder.decoder.decode(torch.zeros(1, 4, 2, 2))
    assert not list(holder.parameters()) and not holder.state_dict()


def test_files_of_the_first_diffusers_are_read(copy: Path) -> None:
    """sd-vae-ft-ema names the attention weights in the old way and has no scaling_factor."""
    images = torch.rand(1, 3, 16, 16)
    wanted = Autoencoder(str(copy)).moments(images)
    old_names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    tensors = {}
    for name, tensor in load_file(copy / WEIGHTS).items():
        for new, old in old_names:
            name = name.replace(new, old)
        tensors[name] = tensor
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, copy / WEIGHTS)
    edit(copy, scaling_factor="remove")
    autoencoder = Autoencoder(str(copy))
    assert torch.equal(autoencoder.moments(images), wanted)
    assert autoencoder.scale == 0.18215


def test_half_precision_weights_are_computed_in_float32(copy: Path) -> None:
    halves = {name: tensor.half() for name, tensor in load_file(copy / WEIGHTS).items()}
    save_file(halves, copy / WEIGHTS)
    assert Autoencoder(str(copy)).moments(torch.rand(1, 3, 16, 16)).dtype == torch.float32


def test_hash_is_of_the_weights(copy: Path, tiny_autoencoder: Path) -> None:
    before = Autoencoder(str(copy)).weights_hash
    assert before == Autoencoder(str(tiny_autoencoder)).weights_hash
    tensors = load_file(copy / WEIGHTS)
    tensors["encoder.conv_in.bias"] += 1
    save_file(tensors, copy / WEIGHTS)
    assert Autoencoder(str(copy)).weights_hash != before


def test_a_pipelines_folder_needs_the_subfolder(copy: Path) -> None:
    with pytest.raises(InputError, match=r"no config.json in it; give autoencoder.subfolder=vae"):
        Autoencoder(str(copy.parent))
    assert Autoencoder(str(copy.parent), subfolder="vae").channels == 4


def test_hub_ids_are_fetched_when_needed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(copy.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    autoencoder = Autoencoder("owner/pipeline", subfolder="vae")
    assert not asked
    assert autoencoder.factor == 2 and autoencoder.moments(torch.rand(1, 3, 4, 4)).shape[1] == 8
    ((repo_id, patterns),) = asked
    assert repo_id == "owner/pipeline"
    assert patterns == ["vae/*.json", "vae/diffusion_pytorch_model*.safetensors"]


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"'owner/vae' .*from the hub: no route to host$"):
        _ = Autoencoder("owner/vae").scale


@pytest.mark.parametrize(
    ("path", "message"),
    [("/no/such", "'/no/such' does not exist"), ("", "'' does not exist"), ("word", "does not")],
)
def test_paths_that_can_not_be_one(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Autoencoder(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "describes 'AutoencoderTiny', not an AutoencoderKL"),
        ({"shift_factor": 0.1159}, "shift_factor=0.1159 is not supported"),
        ({"block_out_channels": "remove"}, "no block_out_channels"),
    ],
)
def test_other_autoencoders_are_refused(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    edit(copy, **changes)
    with pytest.raises(InputError, match=message):
        Autoencoder(str(copy))


def test_broken_weights_are_named(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    short = {name: tensor for name, tensor in tensors.items() if name != "decoder.conv_in.bias"}
    for content, message in (
        (short, "missing weights: decoder.conv_in.bias$"),
        ({**tensors, "more": torch.ones(1)}, "unexpected weights: more$"),
        ({**tensors, "decoder.conv_in.bias": torch.ones(3)}, "can't be loaded: .*conv_in"),
    ):
        save_file(content, copy / WEIGHTS)
        with pytest.raises(InputError, match=message):
            Autoencoder(str(copy)).decode(torch.zeros(1, 4, 2, 2))
    (copy / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(InputError, match="can't be loaded"):
        Autoencoder(str(copy)).decode(torch.zeros(1, 4, 2, 2))
    (copy / WEIGHTS).rename(copy / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="other weight files can run code"):
        Autoencoder(str(copy)).decode(torch.zeros(1, 4, 2, 2))
