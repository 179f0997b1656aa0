"""The conformance check passes what keeps the contract and says what is wrong of what does not."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tinyfusion.backbones.contract import Backbone, run_plain
from tinyfusion.backbones.presets import build
from tinyfusion.conformance import check_backbone
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion

EXAMPLE = Path(__file__).parents[2] / "docs" / "own_backbone"
SMALL = {"input_size": 4, "in_channels": 1, "hidden_size": 16, "num_heads": 2, "num_classes": 3}


class Block(nn.Module):
    """A residual block of a hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, condition):
        return x + self.down(torch.tanh(self.up(x) + condition))


class Whole(Backbone):
    """Keeps the contract; the classes below each break one part of it."""

    def __init__(self, depth: int = 4, width: int = 8, class_dropout_prob: float = 0.1) -> None:
        super().__init__()
        self.in_channels, self.input_size, self.num_classes = 1, 4, 3
        self.width, self.class_dropout_prob = width, class_dropout_prob
        self.enter = nn.Linear(4, width)
        self.label = nn.Embedding(4, 2 * width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.leave = nn.Linear(width, 4)

    def config(self):
        names = ("depth", "width", "class_dropout_prob")
        return {name: getattr(self, name) for name in names}

    @property
    def null_label(self):
        return 3

    def start(self, x, t, y):
        return self.enter(x.squeeze(1)), self.label(y)[:, None] + t.view(-1, 1, 1) / 1000

    def forward(self, x, t, y, run_block=run_plain):
        states, condition = self.start(x, t, y)
        for index, block in enumerate(self.blocks):
            states = run_block(index, block, states, condition)
        return self.leave(states).unsqueeze(1)


class NoList(Whole):
    def __init__(self, depth: int = 4, width: int = 8) -> None:
        super().__init__(depth, width)
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


class SharedBlock(Whole):
    def __init__(self, depth: int = 4) -> None:
        super().__init__(depth)
        self.blocks = nn.ModuleList([self.blocks[0]] * depth)


class UnregisteredBlocks(Whole):
    def __init__(self, depth: int = 4) -> None:
        super().__init__(depth)
        self._hidden = (self.blocks,)
        del self._modules["blocks"]

    @property
    def blocks(self):
        return self._hidden[0]

    @blocks.setter
    def blocks(self, blocks):
        self._modules["blocks"] = blocks


class NoSizes(Whole):
    def __init__(self, depth: int = 4) -> None:
        super().__init__(depth)
        del self.num_classes


class WrongBorders(Whole):
    borders = (2, 4)


class NullIsAClass(Whole):
    null_label = 2


class NoNullLabel(Whole):
    null_label = Backbone.null_label


class TensorInConfig(Whole):
    def config(self):
        return super().config() | {"scale": torch.ones(1)}


class FixedDepth(Whole):
    def __init__(self, depth: int = 4) -> None:
        super().__init__(depth)
        self.asked_for = depth

    def config(self):
        return {"depth": self.asked_for}


class UnknownArgument(Whole):
    def config(self):
        return super().config() | {"heads": 2}


class RefusesItself(Whole):
    def __init__(self, depth: int = 4, width: int | None = None) -> None:
        if width is not None:
            raise ValueError("width is made up from depth")
        super().__init__(depth)

    def config(self):
        return {"depth": self.depth, "width": 8}


class IntegerTable(Whole):
    def __init__(self, depth: int = 4) -> None:
        super().__init__(depth)
        self.register_buffer("steps", torch.arange(depth))

    def config(self):
        return {"depth": self.depth}


class TiedWeights(Whole):
    def __init__(self, depth: int = 4) -> None:
        super().__init__(depth)
        self.again = nn.Linear(4, 8)
        self.again.weight = self.enter.weight

    def config(self):
        return {"depth": self.depth}


class KeepsRunning(Whole):
    """Its copies run the blocks of the first."""

    def __deepcopy__(self, memo):
        twin = Whole(self.depth)
        twin.__class__ = type(self)
        twin.blocks = self.blocks
        return twin


class FlatExamples(Whole):
    def example_inputs(self, count=1, device=None):
        x, t, y = super().example_inputs(1, device)
        return x[0], t, y


class Random(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        return super().forward(x + torch.randn_like(x), t, y, run_block)


class BackToFront(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        states, condition = self.start(x, t, y)
        for index in reversed(range(self.depth)):
            states = run_block(index, self.blocks[index], states, condition)
        return self.leave(states).unsqueeze(1)


class RunsSome(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        states, condition = self.start(x, t, y)
        for index, block in enumerate(self.blocks):
            if index == 1:
                states = block(states, condition)
            else:
                states = run_block(index, block, states, condition)
        return self.leave(states).unsqueeze(1)


class CountsFromOne(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        states, condition = self.start(x, t, y)
        for index, block in enumerate(self.blocks):
            states = run_block(index + 1, block, states, condition)
        return self.leave(states).unsqueeze(1)


class DropsTokens(Whole):
    def __init__(self, depth: int = 2) -> None:
        super().__init__(depth)
        for block in self.blocks:
            block.register_forward_hook(lambda block, given, out: out[:, 1:])

    def config(self):
        return {"depth": self.depth}


class ForgetsTheLast(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        states, condition = self.start(x, t, y)
        for index, block in enumerate(self.blocks):
            before = states
            states = run_block(index, block, states, condition)
        return self.leave(before).unsqueeze(1)


class MixesSamples(Whole):
    def start(self, x, t, y):
        states, condition = super().start(x, t, y)
        return states - states.mean(0, keepdim=True), condition


class IgnoresLabels(Whole):
    def start(self, x, t, y):
        return super().start(x, t, torch.zeros_like(y))


class ScalesByPlace(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        states, condition = self.start(x, t, y)
        for index, block in enumerate(self.blocks):
            states = run_block(index, block, states, condition * (index + 1))
        return self.leave(states).unsqueeze(1)


class WritesWhilePruned(Whole):
    def keep_blocks(self, kept):
        super().keep_blocks(kept)
        self.leave.weight.data *= 0.5


class DetachesStates(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        def detaching(index, block, states, condition):
            return run_block(index, block, states.detach(), condition)

        return super().forward(x, t, y, detaching)


class OwnDefault(Whole):
    """Never recomputes: its default runner is one of its own."""

    def forward(self, x, t, y, run_block=lambda index, block, states, c: block(states, c)):
        return super().forward(x, t, y, run_block)


class StartValuesMatter(Whole):
    """Computes with random numbers that are neither in the state dict nor in the config."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__(depth)
        self.register_buffer("table", torch.rand(1), persistent=False)

    def config(self):
        return {"depth": self.depth}

    def start(self, x, t, y):
        states, condition = super().start(x, t, y)
        return states + self.table, condition


class TwoOutputs(Whole):
    def forward(self, x, t, y, run_block=run_plain):
        out = super().forward(x, t, y, run_block)
        return torch.cat([out, out, out], 1)


def plain_vit(**sizes) -> Backbone:
    if str(EXAMPLE) not in sys.path:
        sys.path.append(str(EXAMPLE))
    from plain_vit import PlainViT

    return PlainViT(**sizes)


MADE = {
    "DiT": (lambda: build({"depth": 3, **SMALL}), GaussianDiffusion),
    "SiT": (lambda: build({"backbone": "sit", "depth": 3, **SMALL}), Interpolant),
    "MAR": (
        lambda: build(
            {
                **SMALL,
                "backbone": "mar",
                "encoder_depth": 2,
                "decoder_depth": 3,
                "patch_size": 2,
                "buffer_size": 2,
                "head_depth": 1,
                "head_width": 16,
            }
        ),
        lambda: MaskedDiffusion(patch_size=2),
    ),
    "the example": (lambda: plain_vit(depth=3), GaussianDiffusion),
    "the one below": (Whole, GaussianDiffusion),
}


@pytest.mark.parametrize("name", MADE)
def test_what_keeps_the_contract_passes(name) -> None:
    make, process = MADE[name]
    net = make()
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    without, held = check_backbone(net), check_backbone(net, process())
    assert len(held) == len(set(held)) == len(without) + 1
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training and torch.equal(torch.random.get_rng_state(), state)


def test_a_network_that_was_pruned_or_has_one_block_passes() -> None:
    net = Whole(5)
    net.keep_blocks([0, 3, 4])
    check_backbone(net)
    check_backbone(Whole(1), GaussianDiffusion())
    check_backbone(Whole(2, class_dropout_prob=0.0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoList, "self.blocks must be an nn.ModuleList of at least one block, found list"),
        (SharedBlock, "holds the same module twice"),
        (UnregisteredBlocks, "'up.weight' of block 0 is not among net.parameters"),
        (NoSizes, "self.num_classes must be a positive integer, or 0 without classes, found None"),
        (WrongBorders, r"ascending block indices within 1..3, .* found \(2, 4\)"),
        (NullIsAClass, "none of the classes 0..2, found 2"),
        (NoNullLabel, "class_dropout_prob=0.1, but there is no null_label"),
        (TensorInConfig, r"holds scale=tensor\(\[1.\]\), which JSON can't hold"),
        (FixedDepth, r"after keep_blocks\(\[0, 1, 2\]\).*its depth is len\(self.blocks\)"),
        (UnknownArgument, "has no argument 'heads'"),
        (RefusesItself, "can't be built from .*ValueError: width is made up from depth"),
        (IntegerTable, "'steps' of its state dict is torch.int64.*persistent=False"),
        (TiedWeights, "'enter.weight' and 'again.weight' of its state dict share memory"),
        (KeepsRunning, r"copy.deepcopy\(net\) shares the memory of 'blocks.0.up.weight'"),
        (FlatExamples, r"\(1, 4, 4\) for the shape of input 0: the batch comes first"),
        (Random, "two forwards of the same inputs differ in eval mode"),
        (BackToFront, r"called for blocks \[3, 2, 1, 0\] instead of 0..3"),
        (RunsSome, r"called for blocks \[0, 2, 3\] instead of 0..3"),
        (CountsFromOne, r"index 1 with a module that is not self.blocks\[1\]"),
        (DropsTokens, r"block 0 maps states of shape \(3, 4, 8\) .* to \(3, 3, 8\)"),
        (ForgetsTheLast, "stays the same if run_block changes the states of block 3"),
        (MixesSamples, "sample 0 of a batch has another output than alone"),
        (IgnoresLabels, "the conditioning has no effect"),
        (ScalesByPlace, "what a block does must not depend on its place"),
        (WritesWhilePruned, "keep_blocks wrote into 'leave.weight' of the network that is pruned"),
        (DetachesStates, "parameter 'up.weight' of block 0 gets no gradient"),
        (OwnDefault, "block 0 was run 1 times instead of 2 .* must be run_plain"),
        (StartValuesMatter, "saved and loaded computes something else"),
    ],
)
def test_what_breaks_it_is_named(kind, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_backbone(kind())
    assert str(caught.value).startswith(f"{kind.__name__}: not so: ")
    assert "\n" not in str(caught.value)


def test_what_can_not_be_stored_by_name_is_refused() -> None:
    class Inside(Whole):
        pass

    with pytest.raises(InputError, match="Inside is defined inside a function"):
        check_backbone(Inside())
    script = type("Script", (Whole,), {"__module__": "__main__"})
    with pytest.raises(InputError, match=r"Script is defined in the script .*\(__main__\)"):
        check_backbone(script())


def test_a_process_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs a process of kind 'diffusion', but .*Interpolant"):
        check_backbone(Whole(), Interpolant())
    with pytest.raises(InputError, match="TwoOutputs: not so: the process can train it: "):
        check_backbone(TwoOutputs(), GaussianDiffusion())


def test_other_mistakes_of_the_caller_are_refused() -> None:
    with pytest.raises(InputError, match="Linear is no backbone"):
        check_backbone(nn.Linear(2, 2))
    with pytest.raises(InputError, match="count=1 must be at least 2"):
        check_backbone(Whole(), count=1)
