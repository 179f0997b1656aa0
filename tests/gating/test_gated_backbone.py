"""A gated forward is the forward of the sampled sub-network."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyfusion.backbones.contract import predict
from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.scheme import parse_scheme
from tinyfusion.seeding import Rows, StepNoise
from tinyfusion.surgery import prune

Inputs = tuple[tuple[Tensor, Tensor], ClassLabels]


def gated(net: DiT, scheme: object) -> tuple[GatedBackbone, Tensor]:
    gates = PatternGates(parse_scheme(scheme, net.depth))
    gates.temperature, gates.scale = 2.0, 100.0
    noise = StepNoise(1, "test").gumbel("gumbel", Rows(0, 0, 8), gates.num_draws)
    return GatedBackbone(net, gates), noise


def test_equals_the_sliced_model_of_every_sample(net: DiT, inputs: Inputs) -> None:
    for scheme in ("1:2", "2:3", [[1, 2], [3, 4]]):
        model, noise = gated(net, scheme)
        with torch.no_grad():
            out = model(*inputs, noise)
            kept_BL = model.gates(noise) > 0.5
            assert len({tuple(row.tolist()) for row in kept_BL}) > 2
            for sample, kept in enumerate(kept_BL):
                (x, t), labels, one = *inputs, slice(sample, sample + 1)
                sliced = prune(net, kept.nonzero().flatten().tolist())
                wanted = predict(sliced, (x[one], t[one]), labels[one])
                torch.testing.assert_close(out[one], wanted, rtol=1e-5, atol=1e-5)


def test_every_logit_gets_gradient(net: DiT, inputs: Inputs) -> None:
    model, noise = gated(net, "2:3")
    model(*inputs, noise).square().mean().backward()
    for gate in model.gates.groups:
        assert (gate.logits_C.grad != 0).all()


def test_block_kept_by_no_sample_gets_exactly_no_weight_gradient(net: DiT, inputs: Inputs) -> None:
    model, _ = gated(net, "1:2")
    # Noise that makes every sample keep the first block of groups 0 and 1, the second of group 2.
    noise = torch.tensor([9.0, 0.0, 9.0, 0.0, 0.0, 9.0]).repeat(8, 1)
    model(*inputs, noise).square().mean().backward()
    for index, block in enumerate(net.blocks):
        largest = max(float(p.grad.abs().max()) for p in block.parameters())
        assert (largest > 0) == (index in (0, 2, 5)), index
    # Their gates learn all the same.
    assert all((gate.logits_C.grad != 0).all() for gate in model.gates.groups)


def test_masks_have_the_type_of_the_states_whatever_comes_first(net: DiT, inputs: Inputs) -> None:
    class TimesFirst(torch.nn.Module):
        units, run_units, condition_rows = net.units, net.run_units, net.condition_rows

        def forward(self, t: Tensor, x: Tensor, y: Tensor, run_block: object) -> Tensor:
            return net(x, t, y, run_block=run_block)

    model, noise = gated(net, "2:3")
    wanted = model(*inputs, noise)
    (x, t), labels = inputs
    out = GatedBackbone(TimesFirst(), model.gates)((t, x), labels, noise)
    assert torch.equal(out, wanted)
    out.square().mean().backward()
    assert all((gate.logits_C.grad != 0).all() for gate in model.gates.groups)
    half = GatedBackbone(net.bfloat16(), model.gates)
    assert half((x.bfloat16(), t), labels, noise).dtype == torch.bfloat16
