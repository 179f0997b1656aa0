"""Cutting widths leaves slices of the source, and computes what a masked source computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.coupling import coupling
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.dit_diffusers import check_holdable
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.sit import SiT
from tinyfusion.changes import Resizing
from tinyfusion.checkpoints import load, read_checkpoint, save_model, save_public
from tinyfusion.checkpoints.describe import describe
from tinyfusion.checkpoints.lineage import lineage
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.metrics.memory import LiveBytes, bytes_of
from tinyfusion.surgery import prune
from tinyfusion.tools.facts import report
from tinyfusion.tools.inspect import examine

SIZES = {"input_size": 4, "in_channels": 1, "hidden_size": 16, "depth": 2, "num_heads": 4}


def randomised(net: Backbone) -> Backbone:
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.fixture
def net() -> DiT:
    return randomised(DiT(**SIZES, num_classes=3))


def decision_for(net: Backbone, widths: dict[str, int], seed: int = 0) -> Decision:
    """A decision that keeps random units of every group."""
    found = coupling(net)
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in found.plan.groups:
        order = torch.randperm(found.units[group.name], generator=generator)
        kept[group.name] = tuple(order[: widths[group.argument]].sort().values.tolist())
    resized = Resizing(kept, found.units, widths, found.widths, 1, int(found.count(found.widths)))
    return Decision(None, net.depth, resized=resized)


NARROW = {"hidden_size": 12, "num_heads": 3, "mlp_width": 40}


def test_kept_tensors_are_slices_and_the_source_is_left_alone(net: DiT) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    decision = decision_for(net, NARROW)
    pruned = prune(net, decision)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    stream, condition = (torch.tensor(decision.resized.kept[k]) for k in ("residual", "condition"))
    heads = torch.tensor(decision.resized.kept["blocks.1.heads"])
    neurons = torch.tensor(decision.resized.kept["blocks.1.neurons"])
    assert torch.equal(pruned.pos_embed, net.pos_embed[..., stream])
    assert torch.equal(
        pruned.y_embedder.embedding_table.weight,
        net.y_embedder.embedding_table.weight[:, condition],
    )
    mine, theirs = pruned.blocks[1], net.blocks[1]
    # (3, heads, head_dim, width), so that whole heads are picked in q, k and v alike.
    qkv = theirs.attn.qkv.weight.view(3, 4, 4, 16)[:, heads][..., stream]
    assert torch.equal(mine.attn.qkv.weight, qkv.reshape(36, 12))
    assert torch.equal(mine.mlp.fc1.weight, theirs.mlp.fc1.weight[neurons][:, stream])
    # Six chunks, cut in the same places.
    chunks = theirs.adaLN_modulation[1].weight.view(6, 16, 16)[:, stream][..., condition]
    assert torch.equal(mine.adaLN_modulation[1].weight, chunks.reshape(72, 12))
    final = net.final_layer.adaLN_modulation[1].bias.view(2, 16)[:, stream]
    assert torch.equal(pruned.final_layer.adaLN_modulation[1].bias, final.flatten())
    assert pruned.config() == net.config() | NARROW
    assert not pruned.pos_embed.requires_grad
    pruned.blocks[1].attn.qkv.weight.data.zero_()
    assert net.blocks[1].attn.qkv.weight.abs().sum() > 0


def test_mode_and_what_is_trained_are_the_sources(net: DiT) -> None:
    assert not prune(net, decision_for(net, NARROW)).training
    net.train().blocks[1].requires_grad_(False)
    pruned = prune(net, decision_for(net, NARROW))
    assert pruned.training
    for name, parameter in pruned.named_parameters():
        assert parameter.requires_grad == net.get_parameter(name).requires_grad, name


def test_everything_kept_is_the_identity(net: DiT) -> None:
    pruned = prune(net, decision_for(net, coupling(net).widths))
    assert pruned.config() == net.config()
    assert all(torch.equal(value, net.state_dict()[n]) for n, value in pruned.state_dict().items())


@pytest.mark.parametrize("kind", [DiT, SiT])
def test_cutting_heads_and_neurons_is_zeroing_them(kind: type[DiT]) -> None:
    net = randomised(kind(**SIZES, num_classes=3))
    decision = decision_for(net, {"hidden_size": 16, "num_heads": 2, "mlp_width": 24})
    pruned = prune(net, decision)
    for index, block in enumerate(net.blocks):
        gone = [h for h in range(4) if h not in decision.resized.kept[f"blocks.{index}.heads"]]
        block.attn.proj.weight.data.view(16, 4, 4)[:, gone] = 0
        gone = [n for n in range(64) if n not in decision.resized.kept[f"blocks.{index}.neurons"]]
        block.mlp.fc2.weight.data[:, gone] = 0
    x, y = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 3])
    t = torch.tensor([1, 400, 900]) if kind is DiT else torch.tensor([0.1, 0.4, 0.9])
    with torch.no_grad():
        assert torch.allclose(pruned(x, t, y), net(x, t, y), atol=1e-5)


def test_cutting_the_stream_is_zeroing_it_with_norms_over_what_stays(
    net: DiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = decision_for(net, {"hidden_size": 8, "num_heads": 4, "mlp_width": 64})
    pruned = prune(net, decision)
    x, t, y = torch.randn(3, 1, 4, 4), torch.tensor([1, 400, 900]), torch.tensor([0, 1, 3])
    with torch.no_grad():
        out = pruned(x, t, y)
    stays = torch.zeros(16, dtype=torch.bool)
    stays[list(decision.resized.kept["residual"])] = True
    found = coupling(net)
    for group in ("residual", "condition", "time"):
        for part in found.parts[group]:
            gone = [u for u in range(16) if u not in decision.resized.kept[group]]
            tensor = net.get_parameter(part.tensor).data
            tensor.index_fill_(part.axis, part.entries_UK[gone].flatten(), 0.0)
    layer_norm = F.layer_norm

    def over_what_stays(x, shape, *args, **options):
        if tuple(shape) != (16,):
            return layer_norm(x, shape, *args, **options)
        normed = torch.zeros_like(x)
        normed[..., stays] = layer_norm(x[..., stays], (8,), *args, **options)
        return normed

    monkeypatch.setattr(F, "layer_norm", over_what_stays)
    with torch.no_grad():
        assert torch.allclose(net(x, t, y), out, atol=1e-5)


def test_mar_is_cut_and_stored(tmp_path) -> None:
    net = randomised(
        MAR(
            4, 12, 2, 1, 3, in_channels=2, num_classes=5, buffer_size=2, head_depth=1, head_width=20
        )
    )
    decision = decision_for(net, {"hidden_size": 8, "num_heads": 2, "mlp_width": 20})
    pruned = prune(net, decision)
    gone = [u for u in range(12) if u not in decision.resized.kept["encoder"]]
    assert pruned.encoder_norm.weight.shape == (8,)
    assert torch.equal(
        pruned.class_emb.weight, net.class_emb.weight[:, list(decision.resized.kept["encoder"])]
    )
    assert gone
    again = load(save_model(pruned, tmp_path / "pruned"))
    inputs = pruned.example_inputs(2)
    with torch.no_grad():
        assert torch.equal(again(*inputs), pruned(*inputs))


def test_stored_and_loaded_like_any_other_checkpoint(net: DiT, tmp_path) -> None:
    pruned = prune(net, decision_for(net, NARROW))
    x, t, y = torch.randn(2, 1, 4, 4), torch.tensor([3, 900]), torch.tensor([0, 3])
    ours = load(save_model(pruned, tmp_path / "ours"))
    half = load(save_model(pruned, tmp_path / "half", half=True))
    public = load(save_public(pruned, tmp_path / "net.pt"))
    with torch.no_grad():
        for again in (ours, public):
            assert again.config() == pruned.config()
            assert torch.equal(again(x, t, y), pruned(x, t, y))
    assert torch.equal(half.pos_embed, pruned.pos_embed)


def test_what_lies_beside_a_model_tells_how_it_was_cut(net: DiT, tmp_path) -> None:
    decision = replace(decision_for(net, NARROW), method="by_hand", seed=7)
    folder = save_model(prune(net, decision), tmp_path / "pruned")
    assert "decision" not in lineage(read_checkpoint(folder))
    decision.save(tmp_path / decision.file_name)
    known = lineage(read_checkpoint(folder))["decision"]
    assert (known["method"], known["seed"], known["widths"]) == ("by_hand", 7, NARROW)
    # Those of another run are not taken for its own.
    decision_for(net, {**NARROW, "mlp_width": 44}).save(tmp_path / decision.file_name)
    assert "decision" not in lineage(read_checkpoint(folder))


def test_a_bare_file_needs_the_number_of_heads(net: DiT, tmp_path) -> None:
    pruned = prune(net, decision_for(net, {**NARROW, "num_heads": 2}))
    torch.save(pruned.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(InputError, match="attention is 8 channels wide in a model of width 12"):
        load(tmp_path / "bare.pt")
    bare = load(tmp_path / "bare.pt", num_heads=2)
    assert (bare.num_heads, bare.head_dim, bare.mlp_width) == (2, 4, 40)
    with torch.no_grad():
        inputs = pruned.example_inputs(2)
        assert torch.equal(bare(*inputs), pruned(*inputs))
    facts = describe(read_checkpoint(tmp_path / "bare.pt"))
    assert (facts["attention_width"], facts["mlp_width"], facts["notes"]) == (8, 40, [])
    assert "attention width  8 (heads don't fill" in report(examine(tmp_path / "bare.pt"))
    facts = describe(read_checkpoint(save_model(pruned, tmp_path / "ours")))
    assert (facts["heads"], facts["attention_width"], facts["notes"]) == (2, 8, [])


def test_what_diffusers_can_not_hold_is_refused(net: DiT) -> None:
    narrow_heads = prune(net, decision_for(net, {**NARROW, "num_heads": 2, "mlp_width": 48}))
    with pytest.raises(InputError, match="2 heads of 4 channels in a model of width 12"):
        check_holdable(narrow_heads)
    with pytest.raises(InputError, match="mlp_width=40"):
        check_holdable(prune(net, decision_for(net, NARROW)))


def test_depth_and_width_go_together(net: DiT) -> None:
    shallow = prune(net, [1])
    pruned = prune(shallow, decision_for(shallow, NARROW))
    assert pruned.kept_from == (1,)
    assert prune(prune(net, decision_for(net, NARROW)), [1]).config() == pruned.config()


def test_one_decision_cuts_blocks_and_channels() -> None:
    net = randomised(DiT(**{**SIZES, "depth": 4}, num_classes=3))
    whole = decision_for(net, NARROW)
    decision = replace(whole, kept=(1, 3))
    pruned = prune(net, decision)
    assert pruned.kept_from == (1, 3) and pruned.config() == net.config() | NARROW | {"depth": 2}
    step = prune(net, whole)
    for new, old in enumerate((1, 3)):
        wanted = step.blocks[old].state_dict()
        found = pruned.blocks[new].state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    # Groups of blocks that go need not be told.
    resized = whole.resized
    some = {n: k for n, k in resized.kept.items() if not n.startswith(("blocks.0", "blocks.2"))}
    sizes = {name: resized.source_sizes[name] for name in some}
    shorter = replace(decision, resized=replace(resized, kept=some, source_sizes=sizes))
    again = prune(net, shorter).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in pruned.state_dict().items())


def test_stacks_are_counted_by_themselves_when_blocks_and_channels_go() -> None:
    net = randomised(
        MAR(
            4, 12, 2, 2, 3, in_channels=2, num_classes=5, buffer_size=2, head_depth=1, head_width=20
        )
    )
    whole = decision_for(net, {"hidden_size": 8, "num_heads": 2, "mlp_width": 20})
    pruned, step = prune(net, replace(whole, kept=(1, 3))), prune(net, whole)
    for stack in ("encoder_blocks", "decoder_blocks"):
        wanted = getattr(step, stack)[1].state_dict()
        found = getattr(pruned, stack)[0].state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    assert pruned.source_borders == (2,)


@pytest.mark.parametrize(
    "widths",
    [
        {"hidden_size": 64, "num_heads": 2, "mlp_width": 256},
        {"hidden_size": 128, "num_heads": 4, "mlp_width": 508},
    ],
)
def test_channels_that_go_are_not_copied_and_types_stay(widths: dict[str, int]) -> None:
    net = randomised(DiT(**{**SIZES, "hidden_size": 128, "depth": 6}, num_classes=3))
    decision = decision_for(net, widths)
    with LiveBytes([*net.parameters(), *net.buffers()]) as counted:
        pruned = prune(net, decision)
    source, student = bytes_of(net), bytes_of(pruned)
    assert source + counted.peak <= 1.1 * (source + student)
    rounded = prune(net.bfloat16(), decision).state_dict()
    assert all(
        torch.equal(value.bfloat16(), rounded[n]) for n, value in pruned.state_dict().items()
    )


def test_a_decision_for_another_network_is_refused(net: DiT) -> None:
    other = randomised(DiT(**{**SIZES, "hidden_size": 24}, num_classes=3))
    with pytest.raises(InputError, match="24 channels in residual, this one has 16"):
        prune(net, decision_for(other, {"hidden_size": 12, "num_heads": 4, "mlp_width": 96}))
    with pytest.raises(InputError, match="made for a model of 2 blocks, this one has 1"):
        prune(prune(net, [0]), decision_for(net, NARROW))
    with pytest.raises(InputError, match=r"in blocks\.1\.heads, this one has no"):
        prune(prune(net, [0]), Decision(resized=decision_for(net, NARROW).resized))
    decision = decision_for(net, NARROW)
    kept = {**decision.resized.kept, "blocks.1.heads": (0, 1)}
    uneven = replace(decision, resized=replace(decision.resized, kept=kept))
    with pytest.raises(InputError, match=r"keeps 2 channels of blocks\.1\.heads but says num_hea"):
        prune(net, uneven)
    with pytest.raises(InputError, match="made for a model of 3 blocks"):
        prune(net, Decision((0,), 3))
