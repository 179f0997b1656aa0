"""MAR in every layout that can hold it: recognised, inferred, checked, written."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.mar_files import infer_mar
from tinyfusion.checkpoints import load, read_checkpoint, save_model, save_public
from tinyfusion.checkpoints.card import model_card
from tinyfusion.checkpoints.describe import describe
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune

SIZES = {
    "input_size": 4,
    "hidden_size": 48,
    "encoder_depth": 3,
    "decoder_depth": 2,
    "num_heads": 4,
    "in_channels": 8,
    "num_classes": 5,
    "buffer_size": 6,
    "head_depth": 2,
    "head_width": 24,
}


@pytest.fixture
def mar():
    net = MAR(**SIZES).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


@pytest.fixture
def bare(mar, tmp_path):
    torch.save(mar.state_dict(), tmp_path / "mar.pth")
    return tmp_path / "mar.pth"


def outputs(net):
    draws = torch.Generator().manual_seed(3)
    inputs = [
        torch.randn(part.shape, generator=draws) if part.is_floating_point() else part
        for part in net.example_inputs(2)
    ]
    with torch.no_grad():
        return net(*inputs)


def same(a, b):
    return type(a) is type(b) and torch.equal(outputs(a), outputs(b))


def test_bare_file_is_recognised_without_a_remark(mar, bare, caplog):
    loaded = load(bare, num_heads=4)
    assert same(loaded, mar) and loaded.config() == mar.config()
    assert not caplog.records and not loaded.training and loaded.kept_from is None


def test_bare_safetensors_file_in_half_precision(mar, tmp_path):
    state = {name: tensor.half() for name, tensor in mar.state_dict().items()}
    save_file(state, tmp_path / "mar.safetensors")
    loaded = load(tmp_path / "mar.safetensors", backbone="mar", num_heads=4)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.mask_token, mar.mask_token.half().float())


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": 16, "in_channels": 3, "buffer_size": 1, "learn_sigma": False},
        {"encoder_depth": 0, "mlp_ratio": 2.3, "head_depth": 1},
        {"decoder_depth": 0, "encoder_depth": 12, "num_classes": 1000},
    ],
)
def test_architecture_is_inferred(changes):
    net = MAR(**SIZES | changes)
    inferred = infer_mar(net.state_dict(), "test", {})
    shapes = {n: t.shape for n, t in net.state_dict().items()}
    twin = MAR(num_heads=4, **inferred)
    assert {n: t.shape for n, t in twin.state_dict().items()} == shapes
    exact = set(inferred) - {"mlp_ratio"}
    assert {k: inferred[k] for k in exact} == {k: net.config()[k] for k in exact}


def test_patches_are_told_from_channels_by_what_is_expected(tmp_path):
    net = MAR(**SIZES | {"input_size": 8, "patch_size": 2, "in_channels": 2})
    torch.save(net.state_dict(), tmp_path / "a")
    assert load(tmp_path / "a", num_heads=4).config() == net.config() | {
        "input_size": 4,
        "patch_size": 1,
        "in_channels": 8,
    }
    expected = {"backbone": "mar", "patch_size": 2}
    assert load(tmp_path / "a", expected, num_heads=4).config() == net.config()
    with pytest.raises(InputError, match="patch_size=3 does not fit tokens of 8 values, which"):
        load(tmp_path / "a", expected | {"patch_size": 3}, num_heads=4)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 16)])
def test_published_widths_have_published_heads(tmp_path, width, heads):
    net = MAR(**SIZES | {"hidden_size": width, "num_heads": heads, "mlp_ratio": 0.125})
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").num_heads == heads


def test_other_widths_need_their_heads(bare):
    message = r"hidden size 48 is not one of the published widths \(768, 1024, 1280\)"
    with pytest.raises(InputError, match=message):
        load(bare)


@pytest.fixture
def train(mar, tmp_path):
    """Writer of a checkpoint of the public training script."""

    def write(drop=(), **args):
        content = {
            "model": {name: tensor + 1 for name, tensor in mar.state_dict().items()},
            "model_ema": mar.state_dict(),
            "optimizer": torch.optim.AdamW(mar.parameters()).state_dict(),
            "epoch": 399,
            "scaler": {},
            "args": argparse.Namespace(**args),
        }
        path = tmp_path / "checkpoint-last.pth"
        torch.save({k: v for k, v in content.items() if k not in drop}, path)
        return path

    return write


def test_averages_of_a_training_checkpoint_are_taken(mar, train, caplog):
    path = train(model="mar_large", blr=1e-4)
    checkpoint = read_checkpoint(path)
    assert checkpoint.layout == "training checkpoint, weights under 'model_ema'"
    assert (checkpoint.backbone, checkpoint.also["epoch"]) == ("mar", "399")
    assert checkpoint.provenance == {"args": {"model": "mar_large", "blr": 1e-4}}
    assert same(load(path, num_heads=4), mar)
    assert "weights under 'model_ema'" in caplog.text


def test_without_averages_the_raw_weights_are_taken_and_it_is_said(mar, train, caplog):
    loaded = load(train(drop=["model_ema"], model="mar_large"), num_heads=4)
    assert torch.equal(loaded.mask_token, mar.mask_token + 1)
    assert "weights under 'model' (it holds no averaged ones)" in caplog.text


def test_args_that_contradict_the_tensors_are_told(train):
    said = {"img_size": 256, "vae_stride": 16, "vae_embed_dim": 8, "diffloss_d": 3}
    notes = read_checkpoint(train(model="mar_base", class_num=5, **said)).notes
    assert [note.partition(", which means ")[2].partition(", but")[0] for note in notes] == [
        "hidden_size=768",
        "encoder_depth=12",
        "decoder_depth=12",
        "head_depth=3",
        "input_size=16",
    ]


def test_args_say_the_patch_size(train):
    path = train(model="mar_x", patch_size=2, vae_embed_dim=2, img_size=64, vae_stride=8)
    assert read_checkpoint(path).notes == ()
    net = load(path, num_heads=4)
    assert (net.patch_size, net.in_channels, net.input_size) == (2, 2, 8)


def test_other_families_are_refused(mar, bare, train, tmp_path):
    with pytest.raises(InputError, match="have the names of a MAR, but backbone='dit' was given"):
        load(bare, backbone="dit", num_heads=4)
    with pytest.raises(InputError, match="is a 'mar', but backbone='sit_s_2' was given"):
        load(train(model="mar_large"), backbone="sit_s_2")
    torch.save(DiT(4, 2, 1, 16, 1, 2).state_dict(), tmp_path / "dit.pt")
    message = "have the names of a DiT or SiT, but backbone='mar_digits' was given"
    with pytest.raises(InputError, match=message):
        load(tmp_path / "dit.pt", backbone="mar_digits")


def test_expectations_are_checked_with_three_shapes(bare):
    with pytest.raises(InputError) as caught:
        load(bare, backbone="mar_base")
    assert (
        f"{bare}: does not fit backbone='mar_base': fake_latent: (1, 48) in the file, (1, 768) "
        in (str(caught.value))
    )
    assert str(caught.value).count(" in the file, ") == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_emb.weight": None}, "not a MAR state dict: it has no tensor 'class_emb.weight'"),
        ({"z_proj.weight": torch.zeros(3)}, r"tensor 'z_proj.weight' has shape \(3,\)"),
        ({"decoder_embed.weight": torch.zeros(32, 48)}, "a decoder of width 32; valid: a MAR with"),
        (
            {"diffusion_pos_embed_learned": torch.zeros(1, 22, 48)},
            "encoder_pos_embed_learned has 22 positions for 22 tokens; valid: more",
        ),
        (
            {"diffusion_pos_embed_learned": torch.zeros(1, 15, 48)},
            "diffusion_pos_embed_learned has 15 positions; valid: the square of an integer",
        ),
        (
            {"decoder_blocks.4.norm1.weight": torch.zeros(48)},
            r"decoder_blocks are numbered up to 4 without \[2, 3\]",
        ),
        ({"diffloss.net.final_layer.linear.weight": torch.zeros(9, 24)}, "has 9 rows; valid .*: 8"),
        ({"mask_token": torch.zeros(1, 1, 9)}, r"mask_token: \(1, 1, 9\) in the file, \(1, 1, 48"),
        ({"mask_token": torch.full((1, 1, 48), torch.nan)}, "'mask_token' holds 48 values that"),
    ],
)
def test_tensors_that_form_no_mar_are_refused(mar, tmp_path, changes, message):
    state = mar.state_dict() | changes
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "net.pt", num_heads=4)
    assert str(tmp_path / "net.pt") in str(caught.value)


@pytest.mark.parametrize("kept", [[0, 2, 4], [3, 4], [0, 1]])
@pytest.mark.parametrize("layout", ["ours", "public"])
def test_pruned_models_come_back_with_their_places(mar, tmp_path, kept, layout):
    pruned = prune(mar, kept)
    record = {"pruned_from": "x"}
    if layout == "ours":
        path = save_model(pruned, tmp_path / "net", record)
    else:
        path = save_public(pruned, tmp_path / "net.pt", record)
    loaded = load(path)
    assert same(loaded, pruned) and loaded.config() == pruned.config()
    assert loaded.kept_from == tuple(kept) and loaded.source_borders == (3,)
    assert read_checkpoint(path).provenance == record
    again = prune(loaded, [1])
    assert again.kept_from == (kept[1],) and again.source_borders == (3,)


def test_wrong_borders_in_a_record_are_refused(mar, tmp_path):
    path = save_model(prune(mar, [0, 3]), tmp_path) / "config.json"
    config = json.loads(path.read_text())
    assert config["source_borders"] == [3] and config["depth"] == 2
    path.write_text(json.dumps(config | {"source_borders": "3"}))
    with pytest.raises(InputError, match="source_borders must list block indices, got '3'"):
        load(tmp_path)


def test_dropout_of_the_expected_backbone_is_no_contradiction(mar, tmp_path):
    save_model(mar, tmp_path)
    assert load(tmp_path, {"backbone": "mar", "dropout": 0.1}).dropout == 0.1


def test_description_names_both_stacks(mar, bare, tmp_path):
    facts = describe(read_checkpoint(bare))
    expected = {
        "architecture": "MAR", "backbone": "mar", "depth": 5, "heads": None, "convention": None,
        "stacks": {"encoder_depth": 3, "decoder_depth": 2}, "assumed": ["patch_size"],
        "further": {"buffer_size": 6, "head_depth": 2, "head_width": 24}, "notes": [],
    }  # fmt: skip
    assert facts.items() >= expected.items()
    facts = describe(read_checkpoint(save_model(prune(mar, [0, 4]), tmp_path / "pruned")))
    assert (facts["kept_from"], facts["source_borders"], facts["assumed"]) == ([0, 4], [3], [])


@pytest.mark.parametrize("layout", ["ours", "public"])
def test_cards_cite_mar_and_speak_of_no_convention(mar, layout):
    card = model_card(prune(mar, [0, 4]), {}, layout, "net.pt")
    assert "A MAR of 2 blocks and" in card and "width 48, 4 heads, patch size 1" in card
    assert "2406.11838" in card and "2412.01199" in card and "Convention" not in card
    assert "\n  - mar\n" in card or "\n- mar\n" in card
    assert ("encoder_depth=1, decoder_depth=1" in card) == (layout == "public")


def test_golden_state_dict_loads_and_computes_as_published(golden, tmp_path):
    numbers = golden("mar")
    state = {k[3:]: v for k, v in numbers.items() if k.startswith("sd.")}
    torch.save(state, tmp_path / "mar.pth")
    net = load(tmp_path / "mar.pth", num_heads=4)
    with torch.no_grad():
        out = net.head(numbers["net.x"], numbers["net.t"], numbers["net.c"])
    torch.testing.assert_close(out, numbers["net.out"], rtol=1e-4, atol=1e-5)
    hidden = numbers["orders"][:, : int(numbers["num_masked"])]
    with torch.no_grad():
        conditions = net.conditions(numbers["latents"], hidden, numbers["labels"])
    torch.testing.assert_close(conditions, numbers["dec_out"], rtol=1e-4, atol=1e-5)
