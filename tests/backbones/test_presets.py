"""Preset sizes against the published parameter counts; building from names and data."""

import json

import pytest
import torch

from tinyfusion.backbones.contract import count_parameters
from tinyfusion.backbones.presets import (
    PRESETS,
    build,
    build_empty,
    family_of,
    preset,
    preset_family,
)
from tinyfusion.errors import InputError

TINY = {"input_size": 8, "in_channels": 1, "hidden_size": 16, "num_heads": 2, "num_classes": 10}

PUBLISHED = {
    "DiT-XL/2 depth 28": "dit_xl_2",
    "DiT-XL/2 depth 19": "dit_xl_2_d19",
    "DiT-XL/2 depth 14": "dit_xl_2_d14",
    "DiT-XL/2 depth 7": "dit_xl_2_d7",
    "DiT-L/2": "dit_l_2",
    "DiT-B/2": "dit_b_2",
    "SiT-XL/2 depth 28": "sit_xl_2",
    "SiT-XL/2 depth 14": "sit_xl_2_d14",
    "SiT-XL/2 depth 7": "sit_xl_2_d7",
    "MAR-L (16+16 blocks, diffloss 8x1280, released)": "mar_large",
    "MAR-L half depth (8+8 blocks, diffloss 8x1280)": "mar_large_d16",
}
SMALLER_HEAD = {
    "MAR-L (16+16 blocks, diffloss 3x1024)": "mar_large",
    "MAR-L half depth (8+8 blocks, diffloss 3x1024)": "mar_large_d16",
}


def on_meta(name):
    with torch.device("meta"):
        return build(name)


def test_every_published_count_has_a_preset(golden_folder):
    counts = json.loads((golden_folder / "paper_params.json").read_text())["models"]
    assert set(counts) == {*PUBLISHED, *SMALLER_HEAD}


@pytest.mark.parametrize("published", PUBLISHED)
def test_parameter_counts_equal_the_published_ones(published, golden_folder):
    counts = json.loads((golden_folder / "paper_params.json").read_text())["models"][published]
    net = on_meta(PUBLISHED[published])
    assert count_parameters(net) == counts["total"]
    assert count_parameters(net, trainable_only=True) == counts["trainable"]
    if "depth" in counts:
        assert net.depth == counts["depth"]
    else:
        assert len(net.encoder_blocks) == counts["encoder_blocks"]
        assert len(net.decoder_blocks) == counts["decoder_blocks"]
        assert count_parameters(net.diffloss) == counts["diffloss_head"]
    assert {count_parameters(block) for block in net.blocks} == {counts["per_block"]}


@pytest.mark.parametrize("published", SMALLER_HEAD)
def test_counts_with_a_smaller_head_equal_the_published_ones(published, golden_folder):
    counts = json.loads((golden_folder / "paper_params.json").read_text())["models"][published]
    head = {"backbone": "mar", "head_depth": 3, "head_width": 1024}
    net = on_meta({**preset(SMALLER_HEAD[published]), **head})
    assert count_parameters(net) == counts["total"]
    assert count_parameters(net.diffloss) == counts["diffloss_head"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name):
    net = on_meta(name)
    assert (
        net.config().items()
        >= {k: v for k, v in PRESETS[name].items() if k != "gate_bias_init"}.items()
    )
    assert family_of(net) == preset_family(name) == name[:3]


def test_all_sizes_and_patches_exist():
    sizes = [f"{size}_{patch}" for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)]
    assert {f"{family}_{size}" for family in ("dit", "sit") for size in sizes} <= set(PRESETS)
    for size in sizes:
        assert PRESETS[f"sit_{size}"] == PRESETS[f"dit_{size}"]


def test_empty_build_has_shapes_and_tables_and_fills_no_linear(monkeypatch):
    arguments = {**TINY, "depth": 2}
    real, filled = build(arguments), []
    for name in ("_no_grad_normal_", "_no_grad_uniform_", "_no_grad_zero_"):
        original = getattr(torch.nn.init, name)

        def watched(tensor, *rest, original=original, **options):
            before = tensor.detach().clone().view(torch.int32)  # NaN has to equal itself
            result = original(tensor, *rest, **options)
            if isinstance(tensor, torch.nn.Parameter) and not torch.equal(
                before, tensor.detach().view(torch.int32)
            ):
                filled.append(tensor.shape)
            return result

        monkeypatch.setattr(torch.nn.init, name, watched)
    net = build_empty(arguments)
    assert filled == []
    shapes = {name: (p.shape, p.requires_grad) for name, p in real.named_parameters()}
    assert {name: (p.shape, p.requires_grad) for name, p in net.named_parameters()} == shapes
    assert torch.equal(net.pos_embed, real.pos_embed)


def test_gate_biases_start_where_they_are_told_to():
    block = build({**TINY, "depth": 1, "gate_bias_init": 0.5}).blocks[0]
    chunks = block.adaLN_modulation[1].bias.view(6, -1)
    assert torch.all(chunks[[2, 5]] == 0.5) and not chunks[[0, 1, 3, 4]].any()


def test_preset_is_a_copy():
    preset("dit_s_2")["depth"] = 1
    assert PRESETS["dit_s_2"]["depth"] == 12


def test_build_from_arguments_names_the_family():
    arguments = {**TINY, "depth": 3}
    assert build({"backbone": "dit", **arguments}).depth == build(arguments).depth == 3
    assert family_of(build({"backbone": "sit", **arguments})) == "sit"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("dit_xxl_2", "backbone 'dit_xxl_2' is unknown; valid presets: dit_s_2"),
        ({"backbone": "unet"}, "backbone 'unet' is unknown; valid families: dit"),
        ({"backbone": "mar", "encoder_depth": True}, "an integer of at least 0, got True"),
        ({"hiden_size": 32}, "has no argument 'hiden_size'; valid: input_size"),
        ({"depth": "4"}, "depth must be a positive integer, got '4'"),
        ({"patch_size": 0}, "patch_size must be a positive integer, got 0"),
        ({"learn_sigma": 1}, "learn_sigma must be true or false, got 1"),
        ({"mlp_ratio": None}, "mlp_ratio must be a number, got None"),
    ],
)
def test_wrong_names_and_values_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        build(wanted)
