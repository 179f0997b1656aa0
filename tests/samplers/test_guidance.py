from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.errors import InputError
from tinyfusion.samplers.guidance import Guidance


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_three_guided_channels_match_golden(golden, golden_dit, scale):
    tensors = golden("dit")
    half = len(tensors["cfg.x"]) // 2
    with torch.no_grad():
        out = Guidance(scale, channels=3).predict(
            golden_dit,
            *(tensors[f"cfg.{name}"][:half] for name in "xt"),
            ClassLabels(tensors["cfg.y"][:half]),
        )
    torch.testing.assert_close(out, tensors[f"cfg.out_{scale}"][:half], rtol=1e-4, atol=1e-5)


@pytest.fixture
def inputs():
    labels = ClassLabels(torch.tensor([0, 1, 2]))
    return torch.randn(3, 1, 4, 4), torch.tensor([5, 400, 999]), labels


def test_scale_one_runs_the_network_once_on_the_plain_batch(tiny, inputs):
    sizes = []
    tiny.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    x, t, labels = inputs
    assert torch.equal(Guidance(1.0).predict(tiny, *inputs), tiny(x, t, labels.labels))
    assert sizes == [3, 3]


def test_guided_noise_is_extrapolated_and_variance_stays_conditional(tiny, inputs):
    x, t, labels = inputs
    with_class, without = tiny(x, t, labels.labels), tiny(x, t, torch.full((3,), 3))
    assert (with_class - without).abs().min() > 0
    out = Guidance(2.5).predict(tiny, x, t, labels)
    expected = without[:, :1] + 2.5 * (with_class - without)[:, :1]
    torch.testing.assert_close(out[:, :1], expected)
    torch.testing.assert_close(out[:, 1:], with_class[:, 1:])


def test_scale_zero_ignores_the_class(tiny, inputs):
    x, t, labels = inputs
    out = Guidance(0.0).predict(tiny, x, t, labels)
    torch.testing.assert_close(out[:, :1], tiny(x, t, torch.full((3,), 3))[:, :1])


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_scale_is_refused(scale):
    with pytest.raises(InputError, match=f"scale={scale}"):
        Guidance(scale)


def test_bad_channels_are_refused(tiny, inputs):
    with pytest.raises(InputError, match="channels=0"):
        Guidance(2.0, channels=0)
    with pytest.raises(InputError, match="channels=3, but the data has 1"):
        Guidance(2.0, channels=3).predict(tiny, *inputs)


def test_model_without_null_class_cannot_be_guided(inputs):
    net = DiT(
        input_size=4,
        in_channels=1,
        hidden_size=16,
        depth=1,
        num_heads=2,
        num_classes=3,
        class_dropout_prob=0.0,
    )
    assert Guidance().predict(net, *inputs).shape == (3, 2, 4, 4)
    with pytest.raises(InputError, match="no null class"):
        Guidance(2.0).predict(net, *inputs)
