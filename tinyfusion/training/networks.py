"""What a training phase trains, with its averages: whole, or sharded (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from lightning import LightningModule
from torch import Tensor, nn

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.meta import shape_copy
from tinyfusion.training.ema import Ema
from tinyfusion.training.sharding import FullySharded, full, shard, with_values


class TrainedNetworks(LightningModule):
    """Base of the training phases, which say what they train; steps are in `DenoiserTraining`.

    Networks that the strategy shards are whole again on every rank when training has ended.
    """

    discards_network: ClassVar[bool] = False
    """Whether the network is thrown away after training, so that it is not scored."""

    trained: str
    """Name of the attribute that holds all that is trained: a network, or a module around it."""

    def __init__(self) -> None:
        super().__init__()
        # In a tuple, so that Lightning does not take it for a part of this module.
        self._shapes: tuple[nn.Module, ...] = ()

    @property
    def averages(self) -> Mapping[str, tuple[Ema, nn.Module]]:
        """Moving averages by name, with the module each one follows."""
        return {}

    @property
    def trained_net(self) -> Backbone:
        """The network that this phase trains; another object after sharded training (FSDP2)."""
        return self.net_within(getattr(self, self.trained))

    def net_within(self, trained: nn.Module) -> Backbone:
        """The network itself in the attribute called ``trained``, or in a copy of it."""
        assert isinstance(trained, Backbone)
        return trained

    def configure_model(self) -> None:
        """Shard networks and averages, if the strategy does so."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, FullySharded) or self._shapes:
            return
        root = getattr(self, self.trained)
        self._shapes = (shape_copy(root),)
        shard(root, self.trained_net.blocks, strategy.device_mesh)
        for ema, module in self.averages.values():
            ema.follow(module)

    def on_fit_start(self) -> None:
        """Put the averages where the weights are."""
        if not self._shapes:
            for ema, module in self.averages.values():
                ema.follow(module)

    def on_fit_end(self) -> None:
        """Make sharded networks and averages whole again, on the CPU of every rank."""
        if not self._shapes:
            return
        parameters = getattr(self, self.trained).named_parameters()
        values = {name: full(p.detach()).cpu() for name, p in parameters}
        setattr(self, self.trained, with_values(self._shapes[0], values))
        self._shapes = ()
        for ema, module in self.averages.values():
            ema.follow(module)

    @contextmanager
    def scored_net(
        self, averaged: bool = True, all_ranks: bool = False
    ) -> Iterator[Backbone | None]:
        """The whole trained network, to sample from and to score.

        Must be entered by all ranks together, as a sharded network is gathered here.

        Args:
            averaged: with averaged instead of live weights.
            all_ranks: give it to every rank; else the other ranks hold no copy and get ``None``.
        """
        wanted = all_ranks or self.trainer.is_global_zero
        if self._shapes:
            yield self._gathered(averaged, wanted)
            return
        with ExitStack() as stack:
            for ema, module in self.averages.values() if averaged and wanted else ():
                stack.enter_context(ema.averaged(module))
            yield self.trained_net if wanted else None

    @torch.no_grad()
    def _gathered(self, averaged: bool, wanted: bool) -> Backbone | None:
        """A whole copy of the trained network; ``None`` on ranks that only help to gather it."""
        averages: dict[int, Tensor] = {}
        for ema, module in self.averages.values() if averaged else ():
            live = dict(module.named_parameters())
            averages |= {id(live[name]): value for name, value in ema.shadow.items()}
        values: dict[str, Tensor] = {}
        for name, parameter in getattr(self, self.trained).named_parameters():
            value = full(averages.get(id(parameter), parameter.detach()))
            if wanted:
                values[name] = value
        if not wanted:
            return None
        copied = with_values(self._shapes[0], values).to(self.device)
        return self.net_within(copied)
