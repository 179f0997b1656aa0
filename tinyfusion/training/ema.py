"""Exponential moving average of trained parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tinyfusion.training.sharding import full, laid_out_as, local


class Ema:
    """Average of the trainable parameters of a module, sharded as they are.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates, so that a short
    run does not end with an average that is mostly its starting point.

    Args:
        module: whose trainable parameters are averaged.
        decay: decay per optimiser step, 0 <= decay < 1.
        warm_up: let the decay grow as above; without it the decay is constant.
    """

    def __init__(self, module: nn.Module, decay: float, warm_up: bool = True) -> None:
        assert 0 <= decay < 1
        self.decay, self.warm_up, self.num_updates = decay, warm_up, 0
        self.shadow: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in _trained(module)
        }

    def decay_at(self, update: int) -> float:
        """Decay of the update that follows ``update`` others."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warm_up else self.decay

    def start_share(self, updates: int) -> float:
        """Share of the starting values that is left in the average after so many updates."""
        return math.prod(self.decay_at(update) for update in range(updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the parameters' present values."""
        decay = self.decay_at(self.num_updates)
        live = dict(_trained(module))
        names = list(self.shadow)
        torch._foreach_lerp_(
            [local(self.shadow[name]) for name in names],
            [local(live[name].detach()) for name in names],
            1.0 - decay,
        )
        self.num_updates += 1

    @contextmanager
    @torch.no_grad()
    def averaged(self, module: nn.Module) -> Iterator[None]:
        """Within this context ``module`` holds the averaged weights."""
        live = dict(_trained(module))
        backup = {name: live[name].detach().clone() for name in self.shadow}
        try:
            self.copy_to(module)
            yield
        finally:
            for name, value in backup.items():
                live[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the live weights of ``module`` with the averaged ones."""
        live = dict(_trained(module))
        for name, value in self.shadow.items():
            live[name].copy_(value)

    def follow(self, module: nn.Module) -> None:
        """Lay the average out as the parameters now are: on their device, whole or sharded.

        Called on all ranks if either is sharded.
        """
        live = dict(_trained(module))
        self.shadow = {
            name: laid_out_as(full(value), live[name].detach())
            for name, value in self.shadow.items()
        }

    def state_dict(self) -> dict[str, object]:
        """Plain state for a resume checkpoint, whole; called on all ranks if it is sharded."""
        shadow = {name: full(value) for name, value in self.shadow.items()}
        return {"shadow": shadow, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict) -> None:
        """Restore the state of a resume checkpoint."""
        assert set(state["shadow"]) == set(self.shadow)
        for name, value in state["shadow"].items():
            own = self.shadow[name]
            local(own).copy_(local(laid_out_as(value, own)))
        self.num_updates = state["num_updates"]


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
