"""Blocks made of branches that can go one by one, such as attention and MLP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import nn

from tinyfusion.states import States


def removed_argument(removed: Sequence[str]) -> dict[str, Any]:
    """The constructor argument ``removed_branches``, if there are any."""
    return {"removed_branches": list(removed)} if removed else {}


Branch = Callable[[States, Any], States]
"""``branch(states, condition) -> states``: as a block, with its skip connection inside."""

BranchRunner = Callable[[str, Branch, States, Any], States]
"""``runner(name, branch, states, condition) -> states``."""


def run_branch_plain(name: str, branch: Branch, states: States, condition: Any) -> States:
    """Run one branch as it is."""
    return branch(states, condition)


class BranchedBlock(nn.Module, ABC):
    """A residual block that is the composition of its branches, in order.

    Leaving a branch out means leaving the states as they are, so that what another branch does
    must not depend on it. A backbone of such blocks lists their branches as units of its own
    accord; its ``config()`` has to hold `Backbone.removed_branches`.

    Attributes:
        branch_names: names, without dots, of all branches that blocks of the class can have.
    """

    branch_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def branches(self) -> dict[str, Branch]:
        """The branches that are there, by name, in the order in which they run."""

    @abstractmethod
    def remove_branch(self, name: str) -> None:
        """Drop a branch and all parameters that only it uses, in place.

        Called on a block that shares its tensors with that of another network: parameters of
        which only a part stays are replaced by new ones, never written to.
        """

    def forward(
        self, states: States, condition: Any, run_branch: BranchRunner = run_branch_plain
    ) -> States:
        """Run the branches one after the other.

        Args:
            states: hidden states, see `tinyfusion.states`.
            condition: as for every block.
            run_branch: how to run each branch.
        """
        for name, branch in self.branches().items():
            states = run_branch(name, branch, states, condition)
        return states
