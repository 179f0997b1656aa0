"""DiT against numbers of the official implementation, and its laws."""

import pytest
import torch
from torch.testing import assert_close

from tinyfusion.backbones.contract import forward_with_states
from tinyfusion.backbones.dit import DiT, sincos_positions
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError

TINY = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 48,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 10,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def numbers(golden):
    return golden("dit")


@pytest.fixture
def golden_net(numbers):
    net = DiT(**TINY)
    net.load_state_dict({k[3:]: v for k, v in numbers.items() if k.startswith("sd.")})
    return net.eval()


def randomised(net):
    """Weights that no block ignores: adaLN-Zero starts as the identity."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return net.eval()


def test_parameter_names_are_the_official_ones(numbers):
    official = {k[3:]: tuple(v.shape) for k, v in numbers.items() if k.startswith("sd.")}
    assert {k: tuple(v.shape) for k, v in DiT(**TINY).state_dict().items()} == official


def test_output_matches_golden(numbers, golden_net):
    with torch.no_grad():
        assert_close(golden_net(numbers["x"], numbers["t"], numbers["y"]), numbers["out"], **CLOSE)


def test_hidden_states_match_golden(numbers, golden_net):
    with torch.no_grad():
        seen = (numbers["x"], numbers["t"]), ClassLabels(numbers["y"])
        out, states = forward_with_states(golden_net, *seen, range(4))
    assert sorted(states) == [0, 1, 2, 3]
    for index, states_BTD in states.items():
        assert_close(states_BTD, numbers[f"h.{index}"], **CLOSE)
    assert_close(out, numbers["out"], **CLOSE)


def test_condition_and_embedding_match_golden(numbers, golden_net):
    with torch.no_grad():
        condition = golden_net.t_embedder(numbers["t"]) + golden_net.y_embedder(numbers["y"])
        embedded = golden_net.x_embedder(numbers["x"]) + golden_net.pos_embed
    assert_close(condition, numbers["cond"], **CLOSE)
    assert_close(embedded, numbers["h.embed"], **CLOSE)


def test_position_table_matches_golden(numbers):
    assert_close(sincos_positions(48, 4), numbers["sd.pos_embed"], rtol=0, atol=1e-7)
    assert not DiT(**TINY).pos_embed.requires_grad


def test_fresh_model_is_the_identity_in_every_block():
    x_BTD, condition_BD = torch.randn(2, 16, 48), torch.randn(2, 48)
    for block in DiT(**TINY).blocks:
        assert torch.equal(block(x_BTD, condition_BD), x_BTD)


def test_gate_bias_init_sets_only_the_two_gates():
    bias = DiT(**TINY, gate_bias_init=0.15).blocks[1].adaLN_modulation[1].bias.view(6, 48)
    assert torch.equal(bias[[2, 5]], torch.full((2, 48), 0.15))
    assert not bias[[0, 1, 3, 4]].any()


def test_keep_blocks_equals_skipping_the_others():
    net = randomised(DiT(**TINY))
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([0, 3, 10])
    kept = (0, 3)

    def skipping(index, block, states_BTD, condition):
        return block(states_BTD, condition) if index in kept else states_BTD

    with torch.no_grad():
        full, expected = net(x, t, y), net(x, t, y, run_block=skipping)
        net.keep_blocks(kept)
        pruned = net(x, t, y)
    assert net.depth == net.config()["depth"] == 2
    assert torch.equal(pruned, expected)
    assert (pruned - full).abs().max() > 1e-3


def test_config_rebuilds_the_module():
    net = randomised(
        DiT(**TINY | {"mlp_ratio": 2.0, "learn_sigma": False, "frequency_divisor": 127.0})
    )
    twin = DiT(**net.config()).eval()
    twin.load_state_dict(net.state_dict())
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 700]), torch.tensor([1, 2])
    with torch.no_grad():
        assert net(x, t, y).shape == (2, 4, 8, 8)
        assert torch.equal(net(x, t, y), twin(x, t, y))


def test_convention_changes_the_output():
    net = randomised(DiT(**TINY))
    stock = DiT(**TINY, frequency_divisor=127.0, mlp_norm_eps=1e-5).eval()
    stock.load_state_dict(net.state_dict())
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([100, 700]), torch.tensor([1, 2])
    with torch.no_grad():
        assert (net(x, t, y) - stock(x, t, y)).abs().max() > 1e-5


def test_null_label_is_the_last_row():
    net = DiT(**TINY)
    assert net.null_label == 10
    assert net.y_embedder.embedding_table.num_embeddings == 11


def test_null_label_without_dropout_is_refused():
    with pytest.raises(InputError, match="no null class"):
        _ = DiT(**TINY, class_dropout_prob=0.0).null_label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"patch_size": 3}, "patch_size must divide input_size, got patch_size=3"),
        ({"num_heads": 5}, "num_heads must divide hidden_size, got num_heads=5"),
        ({"hidden_size": 6, "num_heads": 2}, "hidden_size must be a multiple of 4, got 6"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        DiT(**TINY | change)
