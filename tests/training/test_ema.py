"""Moving averages."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from tinyfusion.training.ema import Ema
from tinyfusion.training.mask_learning import gate_decay


@pytest.fixture
def module() -> nn.Linear:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    return module


def test_follows_trainable_parameters_only(module: nn.Linear) -> None:
    assert list(Ema(module, 0.9).shadow) == ["weight"]


def test_decay_warms_up(module: nn.Linear) -> None:
    ema = Ema(module, 0.3)
    expected = module.weight.detach().clone()
    for n in range(8):
        module.weight.data.normal_()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * module.weight.detach()
        ema.update(module)
    torch.testing.assert_close(ema.shadow["weight"], expected)
    assert ema.num_updates == 8


def test_without_warm_up_the_decay_is_constant(module: nn.Linear) -> None:
    ema = Ema(module, 0.9, warm_up=False)
    module.weight.data += 1.0
    start = ema.shadow["weight"].clone()
    ema.update(module)
    torch.testing.assert_close(ema.shadow["weight"], start + 0.1)


def test_averaged_weights_are_entered_and_left_exactly(module: nn.Linear) -> None:
    ema = Ema(module, 0.9)
    module.weight.data.normal_()
    live, pointer = module.weight.detach().clone(), module.weight.data_ptr()
    with ema.averaged(module):
        assert torch.equal(module.weight, ema.shadow["weight"])
        assert not torch.equal(module.weight, live)
        assert torch.is_grad_enabled()
    assert torch.equal(module.weight, live)
    with pytest.raises(KeyError), ema.averaged(module):
        raise KeyError
    assert torch.equal(module.weight, live)
    assert module.weight.data_ptr() == pointer, "the optimiser must still hold the same tensor"


def test_state_round_trip(module: nn.Linear) -> None:
    ema = Ema(module, 0.9)
    module.weight.data.normal_()
    ema.update(module)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    other = Ema(module, 0.9)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.shadow["weight"], ema.shadow["weight"])
    assert other.num_updates == 1
    other.update(module)
    ema.update(module)
    assert torch.equal(other.shadow["weight"], ema.shadow["weight"])


@pytest.mark.parametrize(
    ("steps", "decay"),
    [(10_009, 0.999), (100_000, 0.999), (1000, 0.99), (150, 1 - 1 / 15), (5, 0.0), (1, 0.0)],
)
def test_gate_average_looks_back_over_a_tenth_of_the_run(steps: int, decay: float) -> None:
    assert gate_decay(steps) == pytest.approx(decay, abs=1e-12)
