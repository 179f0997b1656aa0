"""Training checkpoints in the layout of the public code, and what their args say."""

import argparse

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.sit import SiT
from tinyfusion.checkpoints import load, read_checkpoint
from tinyfusion.errors import InputError


@pytest.fixture
def train(net, tmp_path):
    """Writer of a training checkpoint; the weights under 'model' have the names that DDP gives."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    net(torch.randn(2, 2, 8, 8), torch.tensor([1, 2]), torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    raw = {f"module.{name}": tensor + 1 for name, tensor in net.state_dict().items()}

    def write(drop=(), **args):
        content = {
            "model": raw,
            "ema": net.state_dict(),
            "opt": optimizer.state_dict(),
            "args": argparse.Namespace(**args),
            "train_steps": 400000,
        }
        path = tmp_path / "0400000.pt"
        torch.save({k: v for k, v in content.items() if k not in drop}, path)
        return path

    return write


def test_everything_in_the_file_is_accounted_for(net, train):
    checkpoint = read_checkpoint(train(model="DiT-XL/2", global_batch_size=256, betas=(0.9, 0.99)))
    assert torch.equal(checkpoint.state["pos_embed"], net.pos_embed)
    assert checkpoint.layout == "training checkpoint, weights under 'ema'"
    assert checkpoint.also == {
        "model": "state dict of 52 tensors",
        "opt": "optimizer state of 51 tensors",
        "train_steps": "400000",
    }
    assert checkpoint.provenance == {
        "args": {"model": "DiT-XL/2", "global_batch_size": 256, "betas": [0.9, 0.99]}
    }


def test_without_averages_the_raw_weights_are_taken_and_it_is_said(net, train, caplog):
    path = train(drop=["ema"])
    loaded = load(path, num_heads=4)
    assert torch.equal(loaded.final_layer.linear.bias, net.final_layer.linear.bias + 1)
    assert "weights under 'model' (it holds no averaged ones)" in caplog.text


def test_averages_that_are_no_state_dict_are_told(net, tmp_path, caplog):
    content = {"model": net.state_dict(), "ema": {"decay": 0.9999, "shadow": []}}
    torch.save(content, tmp_path / "net.pt")
    load(tmp_path / "net.pt", num_heads=4)
    assert "weights under 'model' (it holds no averaged ones)" in caplog.text


@pytest.mark.parametrize(("model", "kind"), [("DiT-XL/2", DiT), ("SiT-XL/2", SiT), ("mine", DiT)])
def test_args_say_which_family_it_is(train, model, kind, caplog):
    assert type(load(train(model=model), num_heads=4)) is kind
    assert ("read as DiT; SiT files look the same" in caplog.text) == (model == "mine")


def test_family_that_contradicts_the_args_is_refused(train):
    with pytest.raises(InputError, match="is a 'sit', but backbone='dit' was given"):
        load(train(model="SiT-XL/2"), backbone="dit", num_heads=4)


def test_args_that_contradict_the_tensors_are_told(train, caplog):
    path = train(model="DiT-D14/2", image_size=256, num_classes=1000)
    notes = read_checkpoint(path).notes
    assert [note.partition(", which means ")[2].partition(", but")[0] for note in notes] == [
        "hidden_size=1152",
        "depth=14",
        "input_size=32",
        "num_classes=1000",
    ]
    assert notes[1] == (
        "its args say model=DiT-D14/2, which means depth=14, but its tensors have depth=4; the "
        "tensors are believed"
    )
    assert load(path, num_heads=4).depth == 4
    assert all(note in caplog.text for note in notes)


def test_args_that_fit_the_tensors_are_not_mentioned(tmp_path):
    net = DiT(depth=1, hidden_size=384, num_heads=6, num_classes=7, input_size=4, mlp_ratio=0.25)
    args = argparse.Namespace(model="DiT-S/2", image_size=32, num_classes=7)
    torch.save({"ema": net.state_dict(), "args": args}, tmp_path / "net.pt")
    assert [n.split(" ")[6] for n in read_checkpoint(tmp_path / "net.pt").notes] == ["depth=12,"]


def test_expectations_are_checked_with_three_shapes(train):
    with pytest.raises(InputError) as caught:
        load(train(model="DiT-XL/2"), backbone="dit_s_4")
    start, _, listed = str(caught.value).partition(": pos_embed: ")
    assert start.endswith("0400000.pt: does not fit backbone='dit_s_4'")
    assert listed.startswith("(1, 16, 48) in the file, (1, 64, 384) expected; x_embedder")
    assert str(caught.value).count(" in the file, ") == 3


@pytest.mark.parametrize("depth", [7, 14, 19])
@pytest.mark.parametrize("key", [None, "ema"])
def test_published_shallow_models_number_their_blocks_without_gaps(tmp_path, depth, key):
    net = DiT(input_size=8, hidden_size=48, depth=28, num_heads=4, num_classes=5)
    kept = sorted(torch.randperm(28)[:depth].tolist())
    net.keep_blocks(kept)
    state = net.state_dict()
    args = argparse.Namespace(model=f"DiT-D{depth}/2")
    torch.save({key: state, "args": args} if key else state, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt", num_heads=4)
    assert loaded.depth == depth and loaded.kept_from is None  # the file does not say
    assert torch.equal(loaded.blocks[-1].attn.qkv.weight, net.blocks[-1].attn.qkv.weight)


def test_lightning_checkpoints_say_what_they_are(net, tmp_path):
    content = {
        "state_dict": {f"student.{name}": tensor for name, tensor in net.state_dict().items()},
        "global_step": 31,
        "pytorch-lightning_version": "2.6.0",
        "tinyfusion": {"averages": {}},
    }
    path = tmp_path / "run" / "recover" / "resume.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    message = r"resume checkpoint of a run at step 31, not a model; continue with resume=FOLDER$"
    with pytest.raises(InputError, match=message):
        load(path)
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(InputError, match=f"continue with resume={tmp_path / 'run'}$"):
        load(path)
    torch.save({"global_step": 31, "pytorch-lightning_version": "2.6.0"}, path)
    with pytest.raises(InputError, match="a Lightning trainer at step 31, whose module is not kn"):
        load(path)


@pytest.mark.parametrize("key", ["args", "hyper_parameters", "config"])
def test_arguments_of_unknown_scripts_are_compared_by_their_names(net, tmp_path, key):
    args = {"image_size": 512, "num_classes": 5, "depth": 9, "learn_sigma": False, "lr": 1e-4}
    torch.save({"ema": net.state_dict(), key: args}, tmp_path / "net.pt")
    assert [note.partition(";")[0] for note in read_checkpoint(tmp_path / "net.pt").notes] == [
        "its args say depth=9, but its tensors have depth=4",
        "its args say learn_sigma=False, but its tensors have learn_sigma=True",
        "its args say image_size=512, but its tensors have input_size=8",
    ]
    fitting = {"image_size": 64, "num_classes": 5, "depth": 4, "learn_sigma": True}
    torch.save({"ema": net.state_dict(), key: fitting}, tmp_path / "net.pt")
    assert read_checkpoint(tmp_path / "net.pt").notes == ()
