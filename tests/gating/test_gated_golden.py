"""Values and gradients of the official gated network."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.conditioning import ClassLabels
from tinyfusion.gating.gated_backbone import GatedBackbone
from tinyfusion.gating.pattern_gates import PatternGates
from tinyfusion.scheme import parse_scheme

CASES = {
    "gated_forward_1of2": ([[1, 2]] * 3, 4),
    "gated_forward_2of4": ([[2, 4]] * 2, 3),
    "gated_forward_mixed": ([[2, 4], [3, 4]], 2),
}


def close(ours: torch.Tensor, theirs: torch.Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(ours.view_as(theirs), theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("scenario", ["A", "B"])
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
def test_forward_and_gradients_match_golden(golden, name: str, scenario: str, dense: bool) -> None:
    groups, heads = CASES[name]
    data = golden(name)
    scheme = parse_scheme(groups, sum(size for _, size in groups))
    net = DiT(8, hidden_size=24, depth=scheme.depth, num_heads=heads, num_classes=10)
    net.load_state_dict({k[3:]: v for k, v in data.items() if k.startswith("sd.")})
    gates = PatternGates(scheme)
    gates.temperature = float(data[f"{scenario}.tau"])
    gates.scale = float(data[f"{scenario}.scaling"])
    indices = range(len(groups))
    with torch.no_grad():
        for i in indices:
            gates.groups[i].logits_C.copy_(data[f"gate.{i}"][0])
    noise = [data[f"{scenario}.gumbel.{i}"] for i in indices]

    entering: dict[int, torch.Tensor] = {}
    for index, block in enumerate(net.blocks):
        block.register_forward_pre_hook(
            lambda _, args, index=index: entering.__setitem__(index, args[0].detach())
        )
    x = data["x"].clone().requires_grad_()
    inputs, labels = (x, data["t"]), ClassLabels(data["y"])
    out = GatedBackbone(net, gates, dense=dense)(inputs, labels, torch.cat(noise, 1))
    loss = (out - data["target"]).square().mean()
    loss.backward()

    for i, gate in enumerate(gates.groups):
        assert torch.equal(gate.choices_CM, data[f"options.{i}"].float())
        soft = gate.soft_choice(noise[i], gates.temperature, gates.scale)
        close(soft, data[f"{scenario}.soft.{i}"], 1e-4, 1e-6)
        hard = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1])
        assert torch.equal(hard, data[f"{scenario}.hard.{i}"])
        close(gate.logits_C.grad, data[f"{scenario}.grad.gate.{i}"], 1e-3, 1e-6)
        confidence = gates.probabilities(gates.logits())[i].max()
        close(confidence, data[f"{scenario}.confidence.{i}"], 1e-4, 1e-6)
    mask = gates(gumbel_BK=torch.cat(noise, 1)).detach()
    assert torch.equal(mask.round().long(), data[f"{scenario}.mask"])
    assert torch.equal(mask == 0, data[f"{scenario}.mask"] == 0)
    assert list(gates.state(gates.logits()).kept) == data["decision"].tolist()

    assert len(entering) == scheme.depth
    for index, states in entering.items():
        wanted = data[f"{scenario}.block_in.{index}"]
        if not dense:  # of the last call the first are the samples that keep the block
            kept_B = mask[:, index] > 0.5
            states, wanted = states[: kept_B.sum()], wanted[kept_B]
        close(states, wanted, 1e-4, 1e-5)
    close(out, data[f"{scenario}.out"], 1e-4, 1e-5)
    close(loss, data[f"{scenario}.loss"], 1e-4, 1e-5)
    close(x.grad, data[f"{scenario}.grad.x"], 1e-3, 1e-6)
    prefix = f"{scenario}.grad."
    weights = [k.removeprefix(prefix) for k in data if k.startswith(prefix)]
    weights = [k for k in weights if k != "x" and not k.startswith("gate.")]
    assert len(weights) == 4 * scheme.depth + 3
    for key in weights:
        close(net.get_parameter(key).grad, data[prefix + key], 1e-3, 1e-6)
