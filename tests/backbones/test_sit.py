"""SiT against numbers of the official implementation, and how it differs from DiT."""

import pytest
import torch
from torch.testing import assert_close

from tinyfusion.backbones.contract import forward_with_states
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.presets import build
from tinyfusion.backbones.sit import SiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.surgery import prune

TINY = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 40,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 10,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def numbers(golden):
    return golden("sit")


@pytest.fixture
def golden_net(numbers):
    net = SiT(**TINY)
    net.load_state_dict({k[3:]: v for k, v in numbers.items() if k.startswith("sd.")})
    return net.eval()


def test_names_and_shapes_are_the_official_ones_and_those_of_dit(numbers):
    official = {k[3:]: tuple(v.shape) for k, v in numbers.items() if k.startswith("sd.")}
    for kind in (SiT, DiT):
        assert {k: tuple(v.shape) for k, v in kind(**TINY).state_dict().items()} == official


def test_output_and_hidden_states_match_golden(numbers, golden_net):
    inputs = numbers["x"], numbers["t"], numbers["y"]
    with torch.no_grad():
        seen = inputs[:2], ClassLabels(numbers["y"])
        out, states = forward_with_states(golden_net, *seen, range(4))
        full = DiT.forward(golden_net, *inputs)
        condition = golden_net.t_embedder(numbers["t"]) + golden_net.y_embedder(numbers["y"])
    assert out.shape == numbers["x"].shape
    assert_close(out, numbers["out"], **CLOSE)
    assert_close(full, numbers["out_full"], **CLOSE)
    assert_close(condition, numbers["cond"], **CLOSE)
    for index, states_BTD in states.items():
        assert_close(states_BTD, numbers[f"h.{index}"], **CLOSE)


def test_times_are_real_and_unscaled(numbers, golden_net):
    x, y = numbers["x"], numbers["y"]
    with torch.no_grad():
        near = golden_net(x, torch.full((5,), 0.40), y), golden_net(x, torch.full((5,), 0.45), y)
    assert (near[0] - near[1]).abs().max() > 1e-4


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_prediction_has_the_channels_of_the_input(learn_sigma):
    net = SiT(**TINY, learn_sigma=learn_sigma).eval()
    with torch.no_grad():
        out = net(torch.randn(2, 4, 8, 8), torch.tensor([0.0, 1.0]), torch.tensor([0, 10]))
    assert out.shape == (2, 4, 8, 8)


def test_config_rebuilds_the_module(numbers, golden_net):
    twin = build({"backbone": "sit", **golden_net.config()}).eval()
    twin.load_state_dict(golden_net.state_dict())
    with torch.no_grad():
        assert_close(twin(numbers["x"], numbers["t"], numbers["y"]), numbers["out"], **CLOSE)


def test_pruned_sit_is_a_sit(golden_net):
    pruned = prune(golden_net, [0, 3])
    assert type(pruned) is SiT and pruned.kept_from == (0, 3)


def test_it_was_made_for_another_kind_of_process_than_dit():
    assert SiT.process_kind == "interpolant"
    assert DiT.process_kind == GaussianDiffusion.kind == "diffusion"
