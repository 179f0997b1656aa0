"""What a backbone has to offer so that its blocks can be gated, scored and removed.

A prunable backbone is an ``nn.Module`` that keeps its residual blocks in one ordered list and
runs each of them through a *block runner*. Gating, block scores, hidden states for distillation
and pruned forwards are all block runners; none of them knows what is inside a block.

Shape suffixes: B batch, C channels, H height, W width of the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyfusion.backbones.public_files import PublicFiles
from tinyfusion.backbones.width_plan import WidthPlan
from tinyfusion.conditioning import Conditioning, as_conditioning
from tinyfusion.errors import InputError
from tinyfusion.states import States

BlockRunner = Callable[[int, nn.Module, States, Any], States]
"""``runner(index, block, states, condition) -> states``; see `tinyfusion.states`."""


def run_plain(index: int, block: nn.Module, states: States, condition: Any) -> States:
    """Run one block as it is; every other runner runs its blocks through this one.

    In a block that :func:`recompute_blocks` marked, autograd keeps the input alone and computes
    the block again in the backward pass.
    """
    if getattr(block, _RECOMPUTED, False) and torch.is_grad_enabled():
        return checkpoint(block, states, condition, use_reentrant=False)
    return block(states, condition)


_RECOMPUTED = "_tinyfusion_recomputed"


def recompute_blocks(net: Backbone, recompute: bool = True) -> None:
    """Trade time for memory: recompute the blocks' activations in the backward pass.

    Args:
        net: the network; forwards without gradients stay as they are.
        recompute: whether to, from now on.
    """
    for block in net.blocks:
        setattr(block, _RECOMPUTED, recompute)


def compile_blocks(net: Backbone, backend: str, dynamic: bool | None = None) -> None:
    """Compile every block in place; names, state dict and hooks stay as they are.

    Blocks are alike, so that compiling them takes about as long as compiling one of them.

    Args:
        net: the network.
        backend: name of a ``torch.compile`` backend, such as ``inductor``.
        dynamic: as in ``torch.compile``: ``False`` compiles anew for every shape of the states.
    """
    for block in net.blocks:
        block.compile(backend=backend, dynamic=dynamic)


class Backbone(nn.Module, ABC):
    """Base class of every prunable denoiser, a user's own among them.

    docs/own_backbone.md explains the contract and `tinyfusion.conformance.check_backbone` checks
    it. A class from outside this package must be importable by its dotted name, by which files
    name it.

    Attributes:
        blocks: the residual blocks in the order in which they run, each called as ``block(states,
            condition)`` and giving states of the same shape and type: one tensor, or a tuple of
            one per stream (image and text). Removing a block means leaving the states unchanged,
            so what it does must not depend on its place.
        kept_from: for each block, its index in the model this one was pruned from, or ``None``
            for a model that was not pruned.
        process_kind: kind of process whose inputs and targets the backbone was made for, such as
            ``"diffusion"`` (integer steps), ``"interpolant"`` (real times in 0..1) or ``"masked"``
            (hidden tokens).
        in_channels: channels C of the data.
        input_size: height H and width W of the data.
        num_classes: number of classes without the null class; 0 for a network that is told
            something else than a class label.
        source_borders: the `borders` of the model that ``kept_from`` counts in.
        depth_arguments: constructor arguments that count blocks, one for each stack. A stack may
            be empty if there are others.
        public_files: what is known of the files that its authors published, if there are any.
    """

    blocks: nn.ModuleList
    in_channels: int
    input_size: int
    num_classes: int
    kept_from: tuple[int, ...] | None = None
    process_kind: str = "diffusion"
    source_borders: tuple[int, ...] = ()
    depth_arguments: ClassVar[tuple[str, ...]] = ("depth",)
    public_files: ClassVar[PublicFiles | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Let peft save adapters of any backbone.

        It takes the attribute ``config`` of a model for a configuration of transformers and asks
        that for ``to_dict()``; the answer is what it assumes of models without one.
        """
        super().__init_subclass__(**options)
        cls.config.to_dict = lambda: {"model_type": "custom"}

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain data, enough to rebuild the module without weights.

        They describe the module as it now is: pruning changes the number of blocks.
        """

    @abstractmethod
    def forward(self, *inputs: Tensor, run_block: BlockRunner = run_plain) -> Tensor:
        """Predict what the process asks for, sending every block through ``run_block``.

        Every block once, in order, with its index: ``states = run_block(index, block, states,
        condition)``. States have the batch in front; the condition is anything that blocks take.
        In eval mode nothing is random, and samples don't see each other.

        Args:
            inputs: what the process made of clean data (`tinyfusion.processes.contract`), then
                the arguments of the conditioning: of a class-conditional network the labels (B,).
                All have the batch in front. Processes of kinds ``"diffusion"`` and
                ``"interpolant"`` make a noisy input (B, C, H, W) and times (B,), so that the
                signature is ``forward(x, t, y, run_block=run_plain)``.
            run_block: how to run each block.

        Returns:
            The prediction, shape (B, ...).
        """

    def example_inputs(
        self, count: int = 1, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Inputs of one forward, conditioning last, to measure and check the network with.

        These are what processes of kinds ``"diffusion"`` and ``"interpolant"`` make; a backbone of
        another kind says what its own takes.

        Args:
            count: batch size.
            device: where to; default: the current default device.
        """
        x = torch.zeros(
            count,
            self.in_channels,
            self.input_size,
            self.input_size,
            dtype=dtype_of(self),
            device=device,
        )
        t = torch.zeros(count, dtype=torch.long, device=device)
        return x, t, *self.example_conditioning(count, device).arguments()

    def example_conditioning(
        self, count: int = 1, device: torch.device | str | None = None
    ) -> Conditioning:
        """What samples may be told, different ones where there are: the classes in turn.

        A backbone that is not class-conditional says what its own is told.

        Args:
            count: number of samples.
            device: where to; default: the current default device.
        """
        if self.num_classes < 1:
            raise NotImplementedError(
                f"{type(self).__name__} has no classes: give it a method example_conditioning"
            )
        return as_conditioning(torch.arange(count, device=device) % self.num_classes)

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return len(self.blocks)

    @property
    def borders(self) -> tuple[int, ...]:
        """Block indices at which a stack of another type begins; groups must not cross them."""
        return ()

    @property
    def stack_names(self) -> tuple[str, ...]:
        """Names of the module lists that hold the blocks, in order: one more than `borders`.

        Found by the names of the blocks; a backbone that can lose a whole stack has to say them.
        """
        places = {id(module): name for name, module in self.named_modules()}
        lists = (places[id(block)].rpartition(".")[0] for block in self.blocks)
        return tuple(dict.fromkeys(lists))

    @property
    def null_label(self) -> int:
        """Label that stands for "no class" in a class-conditional network (see `ClassLabels`)."""
        raise NotImplementedError(f"{type(self).__name__} has no null label")

    def width_plan(self) -> WidthPlan:
        """Where the widths begin that can be cut, and which constructor arguments count them.

        Raises:
            InputError: the class says nothing of its widths, so that they can't be cut.
        """
        raise InputError(
            f"a {type(self).__name__} has no width plan, so its width can't be pruned: give its "
            "class a method width_plan(), or choose a pruner of blocks"
        )

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Drop every block but ``kept`` in place; called by :func:`tinyfusion.surgery.prune`."""
        self.blocks = nn.ModuleList([self.blocks[i] for i in kept])


def predict(
    net: Backbone,
    inputs: Sequence[Tensor],
    conditioning: Conditioning,
    run_block: BlockRunner = run_plain,
) -> Tensor:
    """Run ``net``: the one place where a network is given its conditioning.

    Args:
        net: the backbone.
        inputs: what the process made of clean data, each of shape (B, ...).
        conditioning: of the same samples, on the same device.
        run_block: how to run each block.

    Returns:
        The prediction, shape (B, ...).
    """
    return net(*inputs, *conditioning.arguments(), run_block=run_block)


def forward_with_states(
    net: Backbone, inputs: Sequence[Tensor], conditioning: Conditioning, wanted: Iterable[int]
) -> tuple[Tensor, dict[int, States]]:
    """Run ``net`` and also return the hidden states after the ``wanted`` blocks.

    Args:
        net: the backbone.
        inputs: see `predict`.
        conditioning: see `predict`.
        wanted: block indices.

    Returns:
        The prediction and a dict from block index to states.
    """
    wanted = frozenset(wanted)
    collected: dict[int, States] = {}

    def runner(index: int, block: nn.Module, states: States, condition: Any) -> States:
        out = run_plain(index, block, states, condition)
        if index in wanted:
            collected[index] = out
        return out

    return predict(net, inputs, conditioning, runner), collected


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put ``net`` in eval mode and give each of its modules its own mode back afterwards."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def count_parameters(net: nn.Module, trainable_only: bool = False) -> int:
    """Number of tensor elements among the parameters of ``net``.

    Args:
        net: any module, also one on the meta device.
        trainable_only: leave out parameters that take no gradient (fixed position tables).
    """
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not trainable_only)


def dtype_of(net: nn.Module) -> torch.dtype:
    """Floating type of the first parameter of ``net``."""
    return next(net.parameters()).dtype
