"""FSDP2: weights, gradients, optimiser state and averages sharded over the devices.

A run on sharded networks equals, step for step, the run on whole ones, and its files are the same:
resume checkpoints hold whole tensors, so that a run can be resumed with another number of devices
or another strategy. Gathering needs all ranks at once: whatever reads a sharded tensor here must
be called on every rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from tinyfusion.group import PATIENCE


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; called on all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def laid_out_as(value: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, on the device of ``pattern`` and sharded like it."""
    value = value.to(local(pattern).device)
    if not isinstance(pattern, DTensor):
        return value
    return distribute_tensor(value, pattern.device_mesh, pattern.placements)


def shard(root: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard a network in place: each block is gathered alone, the rest together with the root.

    Parameters stay float32, gathered as such: autocast rounds where it does on one device.
    """
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)


def with_values(shapes: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module without values, with parameters that have them.

    Args:
        shapes: a module without values, see `tinyfusion.backbones.meta.shape_copy`.
        values: a whole tensor for every parameter, by name; taken, not copied.
    """
    real = {
        id(p): nn.Parameter(values[name], requires_grad=p.requires_grad)
        for name, p in shapes.named_parameters()
    }
    return copy.deepcopy(shapes, real)


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all devices; its checkpoints are those of a run on one device.

    Args:
        world: devices of all nodes.
    """

    def __init__(self, world: int) -> None:
        super().__init__(
            data_parallel_size=world,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=PATIENCE,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands over what `optimizer_state` gave."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole trained tensors on the CPU; on further ranks, which write nothing, no values."""
        assert self.lightning_module is not None
        named = self.lightning_module.named_parameters()
        return {name: self._on_first_rank(p.detach()) for name, p in named if p.requires_grad}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's own state dict with whole tensors."""
        state = optimizer.state_dict()
        gathered = {
            index: {key: self._on_first_rank(value) for key, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": gathered}

    def _on_first_rank(self, value: Any) -> Any:
        """A whole tensor on the CPU of the first rank, an empty one on the others."""
        if not isinstance(value, Tensor):
            return value
        tensor = full(value)
        return tensor.cpu() if self.is_global_zero else tensor.new_empty(0, device="cpu")

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file as on one device; what it holds is sharded when it is put in place."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put the trained tensors of a checkpoint in place."""
        assert self.lightning_module is not None
        live = dict(self.lightning_module.named_parameters())
        for name, value in checkpoint["state_dict"].items():
            local(live[name]).copy_(local(laid_out_as(value, live[name])))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard the optimisers' states of a checkpoint and take them."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                index: {
                    # Adam's count of steps is one number for the whole tensor.
                    key: laid_out_as(value, parameters[index])
                    if isinstance(value, Tensor) and value.shape == parameters[index].shape
                    else value
                    for key, value in values.items()
                }
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})
