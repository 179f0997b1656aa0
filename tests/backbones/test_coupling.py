"""Torch-Pruning finds the entries that belong to a channel, for every backbone with a plan."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.coupling import Coupling, coupled_groups, coupling
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.presets import build_empty
from tinyfusion.backbones.sit import SiT
from tinyfusion.backbones.width_plan import WidthGroup, WidthPlan
from tinyfusion.errors import InputError
from tinyfusion.gating.deltas import Lora

SMALL = {"input_size": 4, "in_channels": 1, "num_classes": 3, "depth": 2}


def entries(found: Coupling, group: str) -> dict[tuple[str, int], list[list[int]]]:
    return {(p.tensor, p.axis): p.entries_UK.tolist() for p in found.parts[group]}


def places_of_dit(depth: int) -> dict[str, set[tuple[str, int]]]:
    """What the architecture says, written down by hand."""
    residual = {("x_embedder.proj.weight", 0), ("x_embedder.proj.bias", 0), ("pos_embed", 2)}
    residual |= {("final_layer.linear.weight", 1)}
    residual |= {(f"final_layer.adaLN_modulation.1.{part}", 0) for part in ("weight", "bias")}
    condition = {("t_embedder.mlp.2.weight", 0), ("t_embedder.mlp.2.bias", 0)}
    condition |= {("y_embedder.embedding_table.weight", 1)}
    condition |= {("final_layer.adaLN_modulation.1.weight", 1)}
    found = {}
    for i in range(depth):
        b = f"blocks.{i}"
        residual |= {(f"{b}.attn.qkv.weight", 1), (f"{b}.mlp.fc1.weight", 1)}
        for name in ("attn.proj", "mlp.fc2", "adaLN_modulation.1"):
            residual |= {(f"{b}.{name}.weight", 0), (f"{b}.{name}.bias", 0)}
        condition |= {(f"{b}.adaLN_modulation.1.weight", 1)}
        found[f"{b}.heads"] = {
            *[(f"{b}.attn.qkv.weight", 0), (f"{b}.attn.qkv.bias", 0)],
            (f"{b}.attn.proj.weight", 1),
        }
        found[f"{b}.neurons"] = {
            *[(f"{b}.mlp.fc1.weight", 0), (f"{b}.mlp.fc1.bias", 0)],
            (f"{b}.mlp.fc2.weight", 1),
        }
    time = {("t_embedder.mlp.0.weight", 0), ("t_embedder.mlp.0.bias", 0)}
    time |= {("t_embedder.mlp.2.weight", 1)}
    return found | {"residual": residual, "condition": condition, "time": time}


# Tokens as many as channels, an MLP as wide as the stream, one head: sizes that could be mistaken.
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 12, "num_heads": 3, "patch_size": 2},
        {"hidden_size": 16, "num_heads": 2, "patch_size": 1, "mlp_ratio": 1.0},
        {"hidden_size": 4, "num_heads": 1, "patch_size": 2, "learn_sigma": False},
        {"hidden_size": 8, "num_heads": 3, "head_dim": 2, "mlp_width": 7, "patch_size": 2},
    ],
)
@pytest.mark.parametrize("kind", [DiT, SiT])
def test_dit_is_coupled_as_its_architecture_says(kind: type[DiT], sizes: dict) -> None:
    net = kind(**SMALL, **sizes)
    found = coupling(net)
    for group, places in places_of_dit(2).items():
        assert set(entries(found, group)) == places, group
    assert found.count(found.widths) == sum(p.numel() for p in net.parameters())

    width, dim = net.hidden_size, net.head_dim
    residual = entries(found, "residual")
    for name, chunks in (("blocks.1", 6), ("final_layer", 2)):
        wanted = [[c + k * width for k in range(chunks)] for c in range(width)]
        assert residual[f"{name}.adaLN_modulation.1.weight", 0] == wanted
        assert residual[f"{name}.adaLN_modulation.1.bias", 0] == wanted
    inner = net.num_heads * dim
    wanted = [
        [h * dim + k * inner + c for k in range(3) for c in range(dim)]
        for h in range(net.num_heads)
    ]
    heads = entries(found, "blocks.0.heads")
    assert heads["blocks.0.attn.qkv.weight", 0] == wanted
    assert heads["blocks.0.attn.proj.weight", 1] == [
        [h * dim + c for c in range(dim)] for h in range(net.num_heads)
    ]


def test_both_stacks_of_mar_are_coupled() -> None:
    net = MAR(4, 12, 2, 1, 3, in_channels=2, num_classes=5, buffer_size=2, head_depth=1,
              head_width=20)  # fmt: skip
    found = coupling(net)
    encoder, decoder = entries(found, "encoder"), entries(found, "decoder")
    assert {("class_emb.weight", 1), ("fake_latent", 1), ("decoder_embed.weight", 1)} <= set(
        encoder
    )
    assert {("z_proj_ln.weight", 0), ("encoder_norm.bias", 0)} <= set(encoder)
    assert {("mask_token", 2), ("decoder_pos_embed_learned", 2)} <= set(decoder)
    assert {("diffloss.net.cond_embed.weight", 1), ("decoder_embed.bias", 0)} <= set(decoder)
    assert ("encoder_blocks.1.norm2.weight", 0) in encoder
    assert found.widths == {"hidden_size": 12, "num_heads": 3, "mlp_width": 48}
    # Every tensor with the width in its shape is cut along it; the head's own width is not.
    cut = {(part.tensor, part.axis) for parts in found.parts.values() for part in parts}
    for name, shape in found.shapes.items():
        for axis, size in enumerate(shape):
            if size == 12:
                assert (name, axis) in cut, name
    assert not any(name.startswith("diffloss.net.res_blocks") for name, _ in cut)


def test_counts_other_sizes_as_a_network_of_these_has() -> None:
    found = coupling(DiT(**SMALL, hidden_size=16, num_heads=4, patch_size=2))
    net = DiT(**SMALL, hidden_size=12, num_heads=3, head_dim=4, mlp_width=20, patch_size=2)
    widths = {"hidden_size": 12, "num_heads": 3, "mlp_width": 20}
    assert found.count(widths) == sum(p.numel() for p in net.parameters())


def test_tracing_leaves_the_network_as_it_was() -> None:
    net = DiT(**SMALL, hidden_size=8, num_heads=2, patch_size=2).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    coupled_groups(net)
    assert net.training
    assert not net.pos_embed.requires_grad
    assert net.blocks[0].attn.proj.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


class Mistaken(DiT):
    def width_plan(self) -> WidthPlan:
        return WidthPlan((WidthGroup("residual", "hidden_size", "nowhere"),))


class Uneven(DiT):
    def width_plan(self) -> WidthPlan:
        group = WidthGroup("residual", "hidden_size", "x_embedder.proj", unit=3)
        return WidthPlan((group,), tables={"pos_embed": 2})


class Planless(DiT):
    width_plan = Backbone.width_plan


def test_a_wrong_or_missing_plan_is_refused() -> None:
    sizes = {**SMALL, "hidden_size": 8, "num_heads": 2, "patch_size": 2}
    with pytest.raises(InputError, match=r"width plan of Mistaken does not fit it.*nowhere"):
        coupling(Mistaken(**sizes))
    with pytest.raises(InputError, match="group 'residual' does not run evenly through x_embedder"):
        coupling(Uneven(**sizes))
    with pytest.raises(InputError, match="a Planless has no width plan"):
        coupling(Planless(**sizes))


def test_widths_that_are_not_the_usual_ones_are_in_the_config_and_no_others() -> None:
    usual = DiT(**SMALL, hidden_size=8, num_heads=2, patch_size=2, head_dim=4, mlp_width=32)
    assert not {"head_dim", "mlp_width"} & set(usual.config())
    net = DiT(**SMALL, hidden_size=8, num_heads=3, patch_size=2, head_dim=4, mlp_width=20)
    assert net.config()["head_dim"] == 4
    assert net.config()["mlp_width"] == 20
    twin = build_empty({"backbone": "dit", **net.config()})
    assert {n: p.shape for n, p in twin.state_dict().items()} == {
        n: p.shape for n, p in net.state_dict().items()
    }
    Lora(rank=2, alpha=4.0).attach(net)  # adapts heads that don't fill the width
    assert net(*net.example_inputs()).shape == (1, 2, 4, 4)
    for key, value in (("head_dim", 0), ("mlp_width", "wide"), ("head_dim", True)):
        with pytest.raises(InputError, match=f"{key} must be a positive integer"):
            DiT(**SMALL, hidden_size=8, num_heads=2, patch_size=2, **{key: value})
    with pytest.raises(InputError, match="num_heads must divide hidden_size"):
        DiT(**SMALL, hidden_size=8, num_heads=3, patch_size=2)
