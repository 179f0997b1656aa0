"""Which parameters belong to a unit, or which part of them where units share one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyfusion.backbones.branches import BranchedBlock
from tinyfusion.backbones.meta import shape_copy


@dataclass(frozen=True)
class OwnParameter:
    """A parameter of a unit, or the slices of one that it shares with other units.

    Attributes:
        parameter: the network's own, not a copy.
        dim: dimension along which the unit has a part of it.
        rows: indices along ``dim`` of what is the unit's; ``None`` if all is.
    """

    parameter: nn.Parameter
    dim: int = 0
    rows: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """The unit's values, without gradient; of a whole parameter no copy."""
        whole = self.parameter.detach()
        return whole if self.rows is None else whole.index_select(self.dim, self._rows)

    def write(self, values: Tensor) -> None:
        """Replace the unit's values in place.

        Args:
            values: of the shape of `values`.
        """
        whole = self.parameter.detach()
        if self.rows is None:
            whole.copy_(values)
        else:
            whole.index_copy_(self.dim, self._rows, values)

    @property
    def _rows(self) -> Tensor:
        assert self.rows is not None
        return self.rows.to(self.parameter.device)


def block_parameters(block: nn.Module, branch: str = "") -> Iterator[tuple[str, OwnParameter]]:
    """Parameters of a block or of one of its branches, by their names in the block.

    A branch has what goes with it (`BranchedBlock.remove_branch`); the last one of a block has all
    that is left.

    Args:
        block: a block.
        branch: name of the branch; empty for all of the block.
    """
    if not branch or not isinstance(block, BranchedBlock) or len(block.branches()) == 1:
        yield from ((name, OwnParameter(p)) for name, p in block.named_parameters())
        return
    rest = shape_copy(block)
    rest.remove_branch(branch)
    left = {name: parameter.shape for name, parameter in rest.named_parameters()}
    dims = {
        name: next(dim for dim, size in enumerate(p.shape) if left[name][dim] != size)
        for name, p in block.named_parameters()
        if left.get(name, p.shape) != p.shape
    }
    stay = _rows_that_stay(block, branch, dims) if dims else {}
    for name, parameter in block.named_parameters():
        if name in stay:
            gone = torch.ones(parameter.shape[dims[name]], dtype=torch.bool)
            gone[stay[name]] = False
            yield name, OwnParameter(parameter, dims[name], gone.nonzero().flatten())
        elif name not in left:
            yield name, OwnParameter(parameter)


def _rows_that_stay(
    block: BranchedBlock, branch: str, dims: Mapping[str, int]
) -> dict[str, Tensor]:
    """Indices that are left of parameters of which a branch has a part.

    They are known only by taking the branch away: from a copy in which indices are the values.

    Args:
        block: the block.
        branch: name of the branch.
        dims: dimension along which a part goes, by parameter.
    """
    numbered: dict[int, nn.Parameter] = {}
    for name, parameter in block.named_parameters():
        shape, dim = parameter.shape, dims.get(name, 0)
        shown = [-1 if d == dim else 1 for d in range(len(shape))]
        indices = torch.arange(shape[dim] if shape else 1, dtype=torch.float64)
        values = indices.view(shown).expand(shape)
        numbered[id(parameter)] = nn.Parameter(values, requires_grad=False)
    rest = copy.deepcopy(block, numbered)
    rest.remove_branch(branch)
    left = dict(rest.named_parameters())
    return {
        name: left[name].movedim(dim, 0).reshape(left[name].shape[dim], -1)[:, 0].long()
        for name, dim in dims.items()
    }
