"""Which entries of which tensors belong to a channel: widths are cut along these.

The library Torch-Pruning (its `DependencyGraph`) follows one forward through autograd and finds
what is coupled: the residual stream through every block, q, k and v of a head, and the chunks of
an adaLN projection, which have to be cut in the same places.

Shape suffixes: U units of a group, K entries of a unit along one axis of a tensor.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone, evaluating
from tinyfusion.backbones.presets import build_empty, family_of
from tinyfusion.backbones.rebuild import plain_config
from tinyfusion.backbones.width_plan import WidthGroup, WidthPlan
from tinyfusion.errors import InputError

if TYPE_CHECKING:
    from torch_pruning.dependency import Group


class Part(NamedTuple):
    """A place in a tensor through which a group's channels run.

    Attributes:
        tensor: name of the parameter.
        axis: its axis.
        entries_UK: indices along that axis by unit.
    """

    tensor: str
    axis: int
    entries_UK: Tensor


@dataclass(frozen=True)
class Coupling:
    """All places that the groups of a plan run through.

    Attributes:
        plan: the plan.
        parts: places by the name of the group.
        shapes: shape of every parameter.
    """

    plan: WidthPlan
    parts: Mapping[str, Sequence[Part]]
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def units(self) -> dict[str, int]:
        """Number of units of every group."""
        return {name: len(parts[0].entries_UK) for name, parts in self.parts.items()}

    @cached_property
    def widths(self) -> dict[str, int]:
        """Units per group by constructor argument.

        Raises:
            InputError: groups of one argument have different numbers of units.
        """
        found: dict[str, int] = {}
        for group in self.plan.groups:
            units = self.units[group.name]
            if found.setdefault(group.argument, units) != units:
                raise InputError(
                    f"width plan: group {group.name!r} has {units} units, another one of "
                    f"{group.argument} has {found[group.argument]}"
                )
        return found

    def count(self, widths: Mapping[str, float]) -> float:
        """Number of parameters of a network of other widths.

        Args:
            widths: units per group by constructor argument.
        """
        return sum(
            number * size * math.prod(widths[argument] * entries for argument, entries in cut)
            for (size, cut), number in self._sizes.items()
        )

    @cached_property
    def _sizes(self) -> Counter[tuple[int, tuple[tuple[str, int], ...]]]:
        """Tensors alike: what stays of their size, and what is cut (argument, entries per unit)."""
        cut: dict[str, dict[int, tuple[str, int]]] = {name: {} for name in self.shapes}
        for group in self.plan.groups:
            for part in self.parts[group.name]:
                cut[part.tensor][part.axis] = (group.argument, part.entries_UK.shape[1])
        return Counter(
            (
                math.prod(size for axis, size in enumerate(shape) if axis not in cut[name]),
                tuple(sorted(cut[name].values())),
            )
            for name, shape in self.shapes.items()
        )

    def slices(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[tuple[int, Tensor]]]:
        """What is left of each cut tensor: per axis, the indices that stay, in their old order.

        Args:
            kept: units that stay, by group.
        """
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for name, parts in self.parts.items():
            units = torch.tensor(kept[name])
            for part in parts:
                stays = part.entries_UK[units].flatten().sort().values
                found.setdefault(part.tensor, []).append((part.axis, stays))
        return found


def coupling(net: Backbone) -> Coupling:
    """Follow the channels of ``net``'s width plan through a network of its shapes.

    Runs on the meta device: nothing is computed, and ``net`` is left as it is.

    Raises:
        InputError: the class has no width plan, or one that does not fit its forward.
    """
    net.width_plan()  # refused here if the class has none
    return _coupling(family_of(net), json.dumps(plain_config(net)))


@lru_cache(maxsize=8)
def _coupling(family: str, config: str) -> Coupling:
    """`coupling` by family and config as JSON, kept because a command asks several times."""
    with torch.device("meta"):
        twin = build_empty({"backbone": family, **json.loads(config)})
    plan = twin.width_plan()
    groups = coupled_groups(twin)
    names = {id(value): name for name, value in twin.named_parameters()}
    parts = {group.name: list(_parts(group, groups[group.name], names)) for group in plan.groups}
    return Coupling(
        plan, parts, {name: tuple(value.shape) for name, value in twin.named_parameters()}
    )


def coupled_groups(net: Backbone) -> dict[str, Group]:
    """Torch-Pruning's groups of ``net`` that begin where its width plan says.

    Args:
        net: the network, on any device; one forward of one example is traced.

    Returns:
        Groups of all channels, by the names of the plan.

    Raises:
        InputError: the class has no width plan, or one that does not fit its forward.
    """
    # Slow to import, and of no use to who prunes blocks.
    import torch_pruning as tp

    plan = net.width_plan()
    wanted = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    device = next(net.parameters()).device
    graph = tp.DependencyGraph()
    try:
        net.requires_grad_(True)  # fixed tables are cut, too; the graph is autograd's
        with torch.enable_grad(), evaluating(net):
            graph.build_dependency(
                net,
                net.example_inputs(1, device),
                unwrapped_parameters=[
                    (net.get_parameter(name), axis) for name, axis in plan.tables.items()
                ],
                verbose=False,
            )
        groups = {}
        for group in plan.groups:
            module = net.get_submodule(group.module)
            pruner = graph.get_pruner_of_module(module)
            count = graph.get_in_channels if group.inputs else graph.get_out_channels
            cut = pruner.prune_in_channels if group.inputs else pruner.prune_out_channels
            groups[group.name] = graph.get_pruning_group(module, cut, list(range(count(module))))
        return groups
    except (AttributeError, KeyError, ValueError) as error:
        raise InputError(
            f"the width plan of {type(net).__name__} does not fit it: {error}"
        ) from None
    finally:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(wanted[name])


def cut_tensors(group: Group) -> Iterator[tuple[Tensor, int, list[int], list[int]]]:
    """Parameters that the channels of one of Torch-Pruning's groups run through.

    Yields:
        The parameter, the axis, indices along it, and for each the channel of the group.

    Raises:
        InputError: a module of a type whose tensors are not known here.
    """
    graph = group._DG
    for item in group:
        module, is_output = (
            item.dep.target.module,
            graph.is_out_channel_pruning_fn(item.dep.handler),
        )
        tensors: list[tuple[Tensor | None, int]]
        if isinstance(module, nn.Parameter):
            tensors = [(module, item.dep.target.pruning_dim)]
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            tensors = [(module.weight, 0), (module.bias, 0)] if is_output else [(module.weight, 1)]
        elif isinstance(module, nn.LayerNorm):
            tensors = [(module.weight, 0), (module.bias, 0)]
        elif isinstance(module, nn.Embedding):
            tensors = [(module.weight, 1)]
        elif next(module.parameters(), None) is None:
            continue
        else:
            raise InputError(
                f"width plan: channels run through a {type(module).__name__}, which can't be cut; "
                "valid: linear layers, convolutions, layer norms, embeddings and tables"
            )
        for tensor, axis in tensors:
            if tensor is not None:
                yield tensor, axis, item.idxs, item.root_idxs


def _parts(group: WidthGroup, found: Group, names: Mapping[int, str]) -> Iterator[Part]:
    """Places of a group by unit, checked to be as regular as slicing needs."""
    for tensor, axis, indices, channels in cut_tensors(found):
        units_E = torch.tensor(channels) // group.unit
        indices_E = torch.tensor(indices)
        name = names[id(tensor)]
        counts_U = units_E.bincount(minlength=len(found[0].idxs) // group.unit)
        if counts_U.min() != counts_U.max():
            raise InputError(f"width plan: group {group.name!r} does not run evenly through {name}")
        order = indices_E.argsort()
        order = order[units_E[order].argsort(stable=True)]
        entries_UK = indices_E[order].view(len(counts_U), -1)
        yield Part(name, axis, entries_UK)
