"""Bare state dicts and training checkpoints: recognised, inferred, and checked."""

import argparse
import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import infer_dit, load, read_checkpoint, save_model
from tinyfusion.errors import InputError


def same_weights(loaded, net):
    theirs = loaded.state_dict()
    return all(torch.equal(theirs[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_bare_pytorch_file(net, batch, tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    torch.save(net.state_dict(), path)
    loaded = load(path, num_heads=4)
    assert same_weights(loaded, net) and not loaded.training
    assert loaded.config() == net.config()
    with torch.no_grad():
        assert torch.equal(loaded(*batch), net(*batch))
    checkpoint = read_checkpoint(path)
    assert (checkpoint.arguments, checkpoint.backbone, checkpoint.kept_from) == (None, None, None)


def test_file_of_the_old_pytorch_format(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert same_weights(load(tmp_path / "net.pt", num_heads=4), net)


def test_bare_safetensors_file(net, tmp_path):
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    assert same_weights(load(tmp_path / "net.safetensors", num_heads=4), net)


@pytest.mark.parametrize("foreign", [{"_class_name": "Other"}, ["a list"]])
def test_foreign_config_beside_a_file_is_ignored(net, tmp_path, foreign):
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(foreign))
    assert read_checkpoint(tmp_path / "model.safetensors").arguments is None


def test_config_that_names_another_file_is_ignored(net, tmp_path):
    save_model(net, tmp_path)
    save_file(net.state_dict(), tmp_path / "other.safetensors")
    assert read_checkpoint(tmp_path / "other.safetensors").arguments is None


def test_training_checkpoint_prefers_ema_and_says_so(net, tmp_path, caplog):
    raw = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    content = {
        "model": raw,
        "ema": net.state_dict(),
        "opt": torch.optim.AdamW(net.parameters()).state_dict(),
        "args": argparse.Namespace(model="DiT-XL/2", global_batch_size=256),
    }
    torch.save(content, tmp_path / "0400000.pt")
    with caplog.at_level(logging.INFO, logger="tinyfusion.checkpoints"):
        assert same_weights(load(tmp_path / "0400000.pt", num_heads=4), net)
    assert "weights under 'ema'" in caplog.text and "0400000.pt" in caplog.text


def test_training_checkpoint_without_ema_uses_model(net, tmp_path):
    torch.save({"model": net.state_dict(), "opt": {}}, tmp_path / "net.pt")
    assert same_weights(load(tmp_path / "net.pt", num_heads=4), net)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_removed(net, tmp_path, prefix):
    torch.save({prefix + n: t for n, t in net.state_dict().items()}, tmp_path / "net.pt")
    assert same_weights(load(tmp_path / "net.pt", num_heads=4), net)


def test_name_that_occurs_twice_is_refused(net, tmp_path):
    state = net.state_dict()
    torch.save({**state, "module.pos_embed": state["pos_embed"]}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="holds tensor 'pos_embed' twice"):
        load(tmp_path / "net.pt", num_heads=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(net, tmp_path, dtype):
    torch.save({n: t.to(dtype) for n, t in net.state_dict().items()}, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt", num_heads=4)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    weight = net.blocks[0].attn.qkv.weight
    assert torch.equal(loaded.blocks[0].attn.qkv.weight, weight.to(dtype).float())


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_size": 8, "in_channels": 1, "hidden_size": 32, "depth": 3, "num_classes": 10},
        {"input_size": 16, "patch_size": 4, "hidden_size": 64, "depth": 1, "learn_sigma": False},
        {"input_size": 16, "patch_size": 8, "hidden_size": 48, "depth": 2, "mlp_ratio": 100 / 48},
        {"input_size": 6, "patch_size": 1, "hidden_size": 24, "depth": 12, "mlp_ratio": 2.3},
    ],
)
def test_architecture_is_inferred(arguments):
    net = DiT(num_heads=4, **arguments)
    inferred = infer_dit(net.state_dict(), "test")
    twin = DiT(num_heads=4, **inferred)
    shapes = {n: t.shape for n, t in net.state_dict().items()}
    assert {n: t.shape for n, t in twin.state_dict().items()} == shapes
    exact = set(inferred) - {"mlp_ratio"}
    assert {k: inferred[k] for k in exact} == {k: net.config()[k] for k in exact}


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_published_widths_have_published_heads(tmp_path, width, heads):
    net = DiT(input_size=4, hidden_size=width, depth=1, num_heads=heads, mlp_ratio=0.25)
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").num_heads == heads


def test_unknown_heads_are_refused_with_the_documented_sentence(net, tmp_path):
    path = tmp_path / "net.pt"
    torch.save(net.state_dict(), path)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: hidden size 48 is not one of the published widths (384, 768, 1024, 1152) and "
        "the file does not say how many attention heads it has: give num_heads="
    )


def test_golden_state_dict_loads_and_computes_as_published(golden, tmp_path):
    numbers = golden("dit")
    state = {k[3:]: v for k, v in numbers.items() if k.startswith("sd.")}
    torch.save(state, tmp_path / "DiT.pt")
    net = load(tmp_path / "DiT.pt", num_heads=4)
    with torch.no_grad():
        out = net(numbers["x"], numbers["t"], numbers["y"])
    torch.testing.assert_close(out, numbers["out"], rtol=1e-4, atol=1e-5)
