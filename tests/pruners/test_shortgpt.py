"""Block influence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, BlockRunner, forward_with_states, run_plain
from tinyfusion.backbones.dit import DiT
from tinyfusion.errors import InputError
from tinyfusion.pruners.shortgpt import ShortGPT, block_influence, least_important


class Turn(nn.Module):
    """Turns two-dimensional states by an angle and scales them."""

    def __init__(self, angle: float, factor: float = 1.0) -> None:
        super().__init__()
        cos, sin = factor * math.cos(angle), factor * math.sin(angle)
        self.register_buffer("matrix", torch.tensor([[cos, -sin], [sin, cos]]))

    def forward(self, states: Tensor, condition: Any) -> Tensor:
        return states @ self.matrix.T


class Turning(Backbone):
    """A stack of turns; its states are its input."""

    def __init__(self, *blocks: Turn) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def config(self) -> dict[str, Any]:
        return {}

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, run_block: BlockRunner = run_plain
    ) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = run_block(index, block, x, None)
        return x


class Batches:
    """Calibration inputs (x, t, y) that are noised already."""

    def __init__(self, *batches: tuple[Tensor, Tensor, Tensor]) -> None:
        self.batches = batches

    def predict(self, net: Backbone, run_block: BlockRunner) -> None:
        for batch in self.batches:
            net(*batch, run_block=run_block)


def influence(net: Backbone, *batches: Tensor) -> list[float]:
    return block_influence(net, Batches(*((x, x, x) for x in batches))).tolist()


def test_identity_turn_and_scaling() -> None:
    net = Turning(Turn(0.0), Turn(0.7), Turn(-0.3, factor=5.0), Turn(math.pi))
    expected = [0.0, 1 - math.cos(0.7), 1 - math.cos(0.3), 2.0]
    first, second = torch.randn(3, 5, 2), torch.randn(2, 5, 2)
    assert influence(net, first, second) == pytest.approx(expected, abs=1e-6)


def test_batches_may_come_in_any_order_and_size() -> None:
    net = Turning(Turn(0.4), Turn(0.1))
    net.blocks[0].matrix[0, 0] = 2.0  # no longer the same angle everywhere
    x = torch.randn(6, 5, 2)
    whole = influence(net, x)
    assert influence(net, x[4:], x[:4]) == pytest.approx(whole, abs=1e-6)
    by_hand = 1 - torch.cosine_similarity(net.blocks[0](x, None), x, dim=-1).mean()
    assert whole[0] == pytest.approx(float(by_hand), abs=1e-6)


def test_golden_scores_and_choice(golden) -> None:
    data = golden("bi_score")
    net = DiT(8, hidden_size=32, depth=8, num_heads=4, num_classes=10)
    net.load_state_dict({k[3:]: v for k, v in data.items() if k.startswith("sd.")})
    batches = [tuple(data[f"b{b}.{name}"] for name in "xty") for b in range(3)]
    scores = block_influence(net, Batches(*batches))
    # The official code ranks by similarity, the paper by one minus it.
    torch.testing.assert_close(1 - scores.float(), data["bi_score"], rtol=1e-4, atol=1e-6)
    for b, batch in enumerate(batches):
        _, states = forward_with_states(net, batch, range(8))
        for index, ours in states.items():
            torch.testing.assert_close(ours, data[f"b{b}.h.{index}"], rtol=1e-4, atol=1e-5)
    dropped = least_important(scores, 4, protected=[7])
    assert list(dropped) == data["pruned_order"].tolist()
    assert sorted(dropped) == data["pruned"].tolist()
    assert [i for i in range(8) if i not in dropped] == data["kept"].tolist()


def test_least_important_respects_protection_and_ties() -> None:
    scores = torch.tensor([0.5, 0.1, 0.1, 0.0])
    assert least_important(scores, 2, []) == (3, 1)
    assert least_important(scores, 2, [3]) == (1, 2)
    with pytest.raises(InputError, match="3 blocks are to go but only 2 are not protected"):
        least_important(scores, 3, [0, 3])


def silence(block: nn.Module) -> None:
    nn.init.zeros_(block.adaLN_modulation[1].weight)
    nn.init.zeros_(block.adaLN_modulation[1].bias)


def test_drops_the_identity_blocks_but_never_the_last(net: DiT, context) -> None:
    silence(net.blocks[1])
    silence(net.blocks[3])
    choice = ShortGPT(num_samples=30).choose(context(3))
    assert choice.kept == (0, 2, 3)
    scores = choice.scores["block_influence"]
    assert scores[1] == pytest.approx(0, abs=1e-6)
    assert min(scores[0], scores[2]) > 1e-3
    assert ShortGPT(num_samples=30, protect_last=False).choose(context(2)).kept == (0, 2)


def test_calibration_is_the_same_for_every_candidate(net: DiT, context) -> None:
    first, again = context(2).calibration(30), context(2).calibration(30)
    assert len(first.labels) == 30
    assert torch.equal(first.parts[0][1].noisy, again.parts[0][1].noisy)
    assert first(net) == again(net)
    other = context(2, seed=1).calibration(30)
    assert not torch.equal(first.parts[0][1].noisy, other.parts[0][1].noisy)
    with pytest.raises(InputError, match=r"pruner\.num_samples=0"):
        context(2).calibration(0)


@pytest.mark.parametrize("keep", [0, 4])
def test_refuses_to_keep_all_or_nothing(context, keep: int) -> None:
    with pytest.raises(InputError, match=f"keep={keep} must be between 1 and 3"):
        ShortGPT().choose(context(keep))
