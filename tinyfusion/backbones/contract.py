"""What a backbone has to offer so that its blocks can be gated, scored and removed.

A prunable backbone is an ``nn.Module`` that keeps its residual blocks in one ordered list and
runs each of them through a *block runner*. Gating, block scores, hidden states for distillation
and pruned forwards are all block runners; none of them knows what is inside a block. How a network
is run with them is in `tinyfusion.backbones.forwards`, whose names can be imported from here, too.

Shape suffixes: B batch, C channels, H height, W width of the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from tinyfusion.backbones.branches import BranchedBlock
from tinyfusion.backbones.forwards import (
    BlockRunner,
    UnitRunner,
    compile_blocks,
    count_parameters,
    dtype_of,
    evaluating,
    forward_with_states,
    predict,
    recompute_blocks,
    run_plain,
    running_only,
    through_units,
)
from tinyfusion.backbones.meta import counting_macs, run_on_meta
from tinyfusion.backbones.public_files import DiffusersFiles, PublicFiles
from tinyfusion.backbones.unit_lists import block_units, branch_units, channel_units, without
from tinyfusion.backbones.unit_weights import OwnParameter, block_parameters
from tinyfusion.backbones.width_plan import WidthPlan
from tinyfusion.conditioning import Conditioning, as_conditioning
from tinyfusion.errors import InputError
from tinyfusion.states import States, rows_of_condition
from tinyfusion.units import BLOCKS, BRANCHES, CHANNELS, INTERVALS, Place, Unit, intervals_of

__all__ = [
    "Backbone",
    "BlockRunner",
    "Calibration",
    "compile_blocks",
    "count_parameters",
    "dtype_of",
    "evaluating",
    "forward_with_states",
    "predict",
    "recompute_blocks",
    "run_plain",
    "running_only",
]


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
        family: the word for the class in configurations and files; ``None`` for a class from
            outside this package, which goes by its dotted name. Not inherited.
        diffusers: how the class is stored by diffusers, if it has such a class, too. Not
            inherited, because a subclass may compute something else.
        fixed_tables: names of parameters that the constructor computes and nothing trains, such
            as position tables; files of rounded weights keep them, and loading restores them.
        fixed_shapes: whether states keep their shape while a batch is sampled, so that compiled
            blocks need no dynamic shapes.
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
    family: ClassVar[str | None] = None
    diffusers: ClassVar[DiffusersFiles | None] = None
    fixed_tables: ClassVar[tuple[str, ...]] = ()
    fixed_shapes: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        """Let peft save adapters of any backbone, and drop what is not inherited.

        It takes the attribute ``config`` of a model for a configuration of transformers and asks
        that for ``to_dict()``; the answer is what it assumes of models without one.
        """
        super().__init_subclass__(**options)
        cls.config.to_dict = lambda: {"model_type": "custom"}  # type: ignore[attr-defined]  # of a function
        cls.family, cls.diffusers = cls.__dict__.get("family"), cls.__dict__.get("diffusers")

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain data, enough to rebuild the module without weights.

        They describe the module as it now is: pruning changes the number of blocks.
        """

    @abstractmethod
    def forward(self, *inputs: Any, **options: Any) -> Tensor:
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
            options: ``run_block``, a `BlockRunner`: how to run each block, `run_plain` by default.

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

    def units(self, kind: str = BLOCKS, macs: bool = False) -> tuple[Unit, ...]:
        """List what of the network can stay, go, be replaced or be resized.

        A backbone with units of another kind adds them here.

        Args:
            kind: ``"blocks"``, ``"branches"`` of blocks that name them (`BranchedBlock`),
                ``"intervals"`` of at least two blocks, or ``"channels"``, the groups of the
                `width_plan`.
            macs: count the multiply-accumulates of each, too, in one forward on the meta device;
                channels have none of their own.

        Returns:
            The units in the order in which they run; intervals by their first block.

        Raises:
            InputError: another kind, or one that the network does not have.
        """
        if kind in (BLOCKS, INTERVALS):
            blocks = block_units(self)
            blocks = self._with_macs(blocks) if macs else blocks
            return blocks if kind == BLOCKS else intervals_of(blocks, self.borders)
        if kind == BRANCHES:
            branches = branch_units(self)
            return self._with_macs(branches) if macs else branches
        if kind == CHANNELS:
            return channel_units(self)
        raise InputError(
            f"a {type(self).__name__} has no units of kind {kind!r}; valid: {BLOCKS}, {BRANCHES}, "
            f"{INTERVALS}, {CHANNELS}"
        )

    def _with_macs(self, units: tuple[Unit, ...]) -> tuple[Unit, ...]:
        """The units with what goes with each: of a branch, what its block without it saves."""
        within: dict[int, list[int]] = {}
        for number, unit in enumerate(units):
            assert unit.index is not None
            within.setdefault(unit.index, []).append(number)
        found = [0] * len(units)

        def counted(index: int, block: nn.Module, states: States, condition: Any) -> States:
            before = so_far()
            out = block(states, condition)
            whole = so_far() - before
            for number in within.get(index, ()):
                rest = without(block, units[number].place.part)
                before = so_far()
                if rest is not None:
                    rest(states, condition)
                found[number] = whole - (so_far() - before)
            return out

        with counting_macs() as so_far:
            run_on_meta(self, self.example_inputs(1, "meta"), run_block=counted)
        return tuple(replace(unit, macs=n) for unit, n in zip(units, found, strict=True))

    def own_parameters(self, unit: Unit) -> dict[str, OwnParameter]:
        """Parameters that belong to a unit, by their names in the network.

        A branch has those that go with it; of a parameter that several branches share, such as
        one projection of the condition for all of them, it has the part that goes with it.

        Args:
            unit: a block, a branch or an interval of this network.
        """
        names = [block.name for block in block_units(self)]
        return {
            f"{names[index]}.{name}": own
            for index in unit.blocks
            for name, own in block_parameters(self.blocks[index], unit.place.part)
        }

    def run_units(self, units: str | Sequence[Unit], runner: UnitRunner) -> BlockRunner:
        """A block runner that sends units of any kind through a runner of units.

        Args:
            units: the kind whose units are run, or units that don't overlap. Whatever lies
                outside them runs as it is.
            runner: ``runner(number, unit, states, condition)`` with the number of the unit in the
                list; ``unit(states, condition)`` runs it, and giving back ``states`` leaves it
                out. An interval runs under the condition of its first block.

        Raises:
            InputError: units that overlap or don't run, or that the network does not have.
        """
        listed = self.units(units) if isinstance(units, str) else units
        return through_units(self, listed, runner)

    def condition_rows(self, condition: Any, rows: slice | Tensor) -> Any:
        """The condition of some samples, as blocks take it.

        By default every tensor in it has the batch in front (`rows_of_condition`). A backbone whose
        blocks are told something that all samples share, such as a table of positions, says here
        what of it stays whole.

        Args:
            condition: what this network's forward gives to ``run_block``.
            rows: a slice, or numbers of samples.
        """
        return rows_of_condition(condition, rows)

    @property
    def removed_branches(self) -> tuple[str, ...]:
        """Branches that blocks of these classes can have and the blocks here don't, by name.

        A backbone whose blocks name branches gives this list in its ``config()``, and its
        constructor hands it to `remove_branches`.
        """
        return tuple(
            str(replace(unit.place, part=name))
            for unit, block in zip(block_units(self), self.blocks, strict=True)
            if isinstance(block, BranchedBlock)
            for name in block.branch_names
            if name not in block.branches()
        )

    def remove_branches(self, names: Iterable[str]) -> None:
        """Drop branches of blocks in place; called by :func:`tinyfusion.surgery.prune`.

        Args:
            names: such as ``"blocks.3.attn"``.

        Raises:
            InputError: a branch that the network does not have.
        """
        places = {unit.place: unit.index for unit in block_units(self)}
        for name in names:
            place = Place.parse(name)
            index = places.get(replace(place, part="")) if place.stack else None
            block = None if index is None else self.blocks[index]
            if not isinstance(block, BranchedBlock) or place.part not in block.branches():
                raise InputError(
                    f"a {type(self).__name__} has no branch {name!r}; valid: "
                    f"{', '.join(unit.name for unit in self.units(BRANCHES))}"
                )
            block.remove_branch(place.part)

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Drop every block but ``kept`` in place; called by :func:`tinyfusion.surgery.prune`.

        What else depends on the blocks is made anew, never written to: the tensors are shared
        with the network that is pruned until all has been dropped.
        """
        self.blocks = nn.ModuleList([self.blocks[i] for i in kept])


class Calibration(Protocol):
    """Inputs on which blocks are measured, such as `tinyfusion.metrics.held_out.HeldOutLoss`."""

    def predict(self, net: Backbone, run_block: BlockRunner) -> object:
        """Run ``net`` on all samples in evaluation mode, every block through ``run_block``."""
