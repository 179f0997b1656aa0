"""Tensors and config under diffusers' names, against the library and the golden numbers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.dit_diffusers import from_diffusers, to_diffusers
from tinyfusion.backbones.presets import build, family_of
from tinyfusion.checkpoints.convention import set_convention
from tinyfusion.checkpoints.diffusers_folder import diffusers_files_of
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune

OUTPUTS = {
    "out_stock": (127.0, 1e-5),
    "out_shift0_eps1e-5": (128.0, 1e-5),
    "out_shift1_eps1e-6": (127.0, 1e-6),
    "out_exact": (128.0, 1e-6),
    "out_official": (128.0, 1e-6),
}
"""Frequency divisor and norm epsilon that each golden output was computed with."""


@pytest.fixture(scope="module")
def reference(golden, golden_folder):
    """Golden tensors, the diffusers state dict among them, and the diffusers config."""
    tensors = golden("dit_diffusers")
    with safe_open(golden_folder / "dit_diffusers.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])["diffusers_config"]
    state = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    return tensors, state, config


def theirs(state, config):
    """The same model in the library."""
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    net.load_state_dict(state)
    return net.eval()


def ours(state, config, **changes):
    public, arguments = from_diffusers(state, config, "file")
    net = build(arguments | changes).eval()
    net.load_state_dict(public)
    return net


@torch.no_grad()
def outputs_of(net, x, t, y):
    """Output of our or their model."""
    if isinstance(net, DiT):
        return net(x, t, y)
    return net(x, timestep=t, class_labels=y).sample


@pytest.mark.parametrize("name", OUTPUTS)
def test_golden_outputs_of_our_model(name, reference):
    tensors, state, config = reference
    divisor, eps = OUTPUTS[name]
    net = ours(state, config, frequency_divisor=divisor, mlp_norm_eps=eps)
    found = outputs_of(net, tensors["x"], tensors["t"], tensors["y"])
    torch.testing.assert_close(found, tensors[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OUTPUTS)
def test_golden_outputs_of_the_library_with_the_convention_set(name, reference):
    tensors, state, config = reference
    net = theirs(state, config)
    set_convention(net, *OUTPUTS[name])
    found = outputs_of(net, tensors["x"], tensors["t"], tensors["y"])
    torch.testing.assert_close(found, tensors[name], rtol=1e-4, atol=1e-5)


def test_what_came_from_diffusers_is_computed_as_diffusers_does(reference):
    tensors, state, config = reference
    net = ours(state, config)
    assert (net.frequency_divisor, net.mlp_norm_eps) == (127.0, 1e-5)
    found = outputs_of(net, tensors["x"], tensors["t"], tensors["y"])
    torch.testing.assert_close(found, tensors["out_stock"], rtol=1e-4, atol=1e-5)
    # The measured difference that the convention is about.
    assert (found - tensors["out_official"]).abs().max() == pytest.approx(0.78, abs=0.01)


def test_golden_tensors_both_ways(reference, golden):
    _, state, config = reference
    public, _ = from_diffusers(state, config, "file")
    official = {n[3:]: t for n, t in golden("dit").items() if n.startswith("sd.")}
    assert public.keys() == official.keys()
    for name, tensor in official.items():
        assert torch.equal(public[name], tensor), name
    back, written = to_diffusers(ours(state, config))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert {key: config[key] for key in written} == written


def test_pruned_model_equals_the_library_with_those_blocks(net, batch):
    pruned = prune(net, [0, 2, 3])
    state, config = to_diffusers(pruned)
    assert config["num_layers"] == 3
    other = theirs(state, config)
    set_convention(other, 128, 1e-6)
    torch.testing.assert_close(outputs_of(other, *batch), outputs_of(pruned, *batch))
    public, arguments = from_diffusers(state, config, "file")
    assert arguments == pruned.config() | {"frequency_divisor": 127.0}
    assert all(torch.equal(public[n], t) for n, t in pruned.state_dict().items())


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_stock_models_equal_the_library(learn_sigma):
    from diffusers import DiTTransformer2DModel

    other = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6 if learn_sigma else None,
        num_layers=2,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=7,
    ).eval()
    # The library draws the copies of the embedders apart; a trained model has equal ones.
    for block in other.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(other.transformer_blocks[0].norm1.emb.state_dict())
    for parameter in other.parameters():
        parameter.data.add_(0.1)
    net = ours(other.state_dict(), dict(other.config))
    inputs = torch.randn(3, 3, 8, 8), torch.tensor([1, 500, 999]), torch.tensor([0, 6, 7])
    torch.testing.assert_close(
        outputs_of(net, *inputs), outputs_of(other, *inputs), rtol=1e-5, atol=1e-5
    )


def test_defaults_of_the_config_are_those_of_the_library():
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        other = DiTTransformer2DModel(num_layers=1)
    state = {name: torch.zeros(1).expand(t.shape) for name, t in other.state_dict().items()}
    _, stated = from_diffusers(state, dict(other.config), "file")
    _, left_out = from_diffusers(
        state, {"_class_name": "Transformer2DModel", "num_layers": 1}, "file"
    )
    assert left_out == stated
    assert (stated["hidden_size"], stated["learn_sigma"]) == (1152, False)


@pytest.fixture
def exported(net):
    return to_diffusers(net)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm_type", "ada_norm", "'norm_type' is 'ada_norm'; valid: 'ada_norm_zero'"),
        ("activation_fn", "geglu", "'activation_fn' is 'geglu'; valid: 'gelu-approximate'"),
        ("attention_bias", False, "'attention_bias' is False; valid: True"),
        ("norm_elementwise_affine", True, "'norm_elementwise_affine' is True; valid: False"),
        ("dropout", 0.1, "'dropout' is 0.1; valid: 0.0"),
        ("_class_name", "PixArtTransformer2DModel", "'_class_name' is 'PixArtTransformer2DModel'"),
        ("num_layers", "4", "'num_layers' is '4'; valid: a positive integer"),
        ("num_embeds_ada_norm", None, "'num_embeds_ada_norm' is None; valid: a positive integer"),
        ("out_channels", 3, "'out_channels' is 3; valid with in_channels 2: 2, or 4 with learned"),
        ("norm_eps", 0, "'norm_eps' is 0; valid: a positive number"),
        ("_tinyfusion", {"convention": {}}, "'_tinyfusion' has frequency_divisor=None"),
    ],
)
def test_other_architectures_are_refused_by_key(exported, key, value, message):
    state, config = exported
    with pytest.raises(InputError) as caught:
        from_diffusers(state, config | {key: value}, "model/x.safetensors")
    assert str(caught.value).startswith("model/x.safetensors: config key ")
    assert message in str(caught.value)


def test_convention_in_the_config_is_taken(exported):
    state, config = exported
    record = {"convention": {"frequency_divisor": 128.0, "mlp_norm_eps": 1e-6}}
    _, arguments = from_diffusers(state, config | {"_tinyfusion": record}, "file")
    assert arguments["frequency_divisor"] == 128.0


def test_missing_and_surplus_tensors_are_named(exported):
    state, config = exported
    with pytest.raises(InputError, match=r"has no tensor 'transformer_blocks.4.attn1.to_q.weight'"):
        from_diffusers(state, config | {"num_layers": 5}, "file")
    with pytest.raises(InputError, match=r"not ask for: transformer_blocks.3.attn1"):
        from_diffusers(state, config | {"num_layers": 3}, "file")


def test_embedders_that_differ_between_blocks_are_refused(exported):
    state, config = exported
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
    state[name] = state[name] + 1
    with pytest.raises(InputError, match=rf"tensor {name} differs from that of block 0"):
        from_diffusers(state, config, "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_ratio": 2.0}, r"mlp_ratio=2.0 can't be exported to diffusers; valid there: 4.0"),
        ({"class_dropout_prob": 0.0}, "without null class"),
        ({"backbone": "sit"}, "a SiT can't be exported to diffusers"),
    ],
)
def test_what_the_library_cannot_hold_is_refused(changes, message):
    arguments = {"input_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
    net = build(arguments | changes)
    with pytest.raises(InputError, match=message):
        diffusers_files_of(net).write(net)


class Altered(DiT):
    """Has the tensors of a DiT, but may compute something else."""


def test_a_subclass_is_not_taken_for_the_class_of_the_library():
    net = Altered(input_size=4, hidden_size=8, depth=1, num_heads=2, num_classes=3)
    with pytest.raises(InputError, match="a Altered can't be exported to diffusers"):
        diffusers_files_of(net)
    assert family_of(net) == f"{__name__}.Altered"


def test_own_position_table_is_refused(net):
    net.pos_embed.data += 1
    with pytest.raises(InputError, match="its own position table"):
        to_diffusers(net)


def test_tensors_share_no_memory(exported):
    state, _ = exported
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
