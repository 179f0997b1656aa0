"""Memory that a training phase takes per device, from shapes alone.

Everything is counted on fake tensors, which have shapes, types and storages but no values: the
phase's own forward runs, so that what is counted is what is trained, however it is configured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tinyfusion.backbones.contract import Backbone, count_parameters, recompute_blocks
from tinyfusion.data.datamodule import Batch
from tinyfusion.metrics.memory import Activations
from tinyfusion.pipeline.batching import Split
from tinyfusion.pipeline.devices import needs_ranks
from tinyfusion.processes.contract import batch_means
from tinyfusion.training.module import DenoiserTraining, OptimizerPartial
from tinyfusion.training.settings import TrainerSettings


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes on one device, and what they are made of.

    Attributes:
        parts: bytes by what they hold, in the order of a report.
        trained: trained parameters of the whole model.
        parameters: parameters of the network with all that was attached to it.
        resume: bytes of the phase's resume checkpoint.
    """

    parts: dict[str, int]
    trained: int
    parameters: int
    resume: int

    @property
    def total(self) -> int:
        """Sum of all parts: what must fit on a device."""
        return sum(self.parts.values())


class _CpuFakes(FakeTensorMode):
    """Fake tensors of the CPU only.

    Those of CUDA need a guard that torch sets for good where there is no GPU, and a process that
    has it can't be forked to train any more.
    """

    avoid_device_init = False


@contextmanager
def fake() -> Iterator[None]:
    """Within this context new tensors are fake; tensors made before may be used beside them."""
    with _CpuFakes(allow_non_fake_inputs=True):
        yield


def make_fake(module: nn.Module) -> None:
    """Replace all tensors of a module, on the meta device or not, by fake ones; inside `fake`.

    Args:
        module: changed in place.
    """

    def as_fake(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device="cpu")

    for owner in module.modules():
        for key, parameter in list(owner._parameters.items()):
            if parameter is not None:
                trained = parameter.requires_grad
                setattr(owner, key, nn.Parameter(as_fake(parameter), requires_grad=trained))
        for key, buffer in list(owner._buffers.items()):
            if buffer is not None:
                owner._buffers[key] = as_fake(buffer)


def teacher_of(module: DenoiserTraining) -> Backbone | None:
    """The network that a module distils from, which is no part of it; ``None`` for none."""
    teacher = getattr(module, "teacher", None)
    return None if teacher is None else teacher.net


def phase_memory(
    module: DenoiserTraining,
    teacher: Backbone | None,
    shape: tuple[int, int, int],
    split: Split,
    trainer: TrainerSettings,
    state_factor: float,
) -> PhaseMemory:
    """Count one step of a phase; the module's tensors must be fake (see `make_fake`).

    Args:
        module: the phase.
        teacher: the network it distils from, whose tensors are fake as well.
        shape: shape of one training input, (C, H, W).
        split: how the global batch is shared out.
        trainer: precision, strategy and what is recomputed.
        state_factor: see `optimizer_state_factor`.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    weights, gradients = _size(module.parameters()), _size(trained)
    state = int(gradients * state_factor)
    averages = sum(_size(ema.shadow.values()) for ema, _ in module.averages.values())
    apart = split.devices if trainer.strategy == "fsdp" and needs_ranks(trainer) else 1
    parts = {
        "weights": weights // apart,
        "gradients": gradients // apart,
        "optimiser state": state // apart,
        "averages": averages // apart,
    }
    if apart > 1:
        # The block at work and the next one are whole, as is what belongs to no block.
        blocks = [_size(block.parameters()) for block in module.trained_net.blocks]
        parts["gathered weights"] = 2 * max(blocks) + weights - sum(blocks)
    elif needs_ranks(trainer):
        parts["gradient buckets"] = gradients
    if teacher is not None:
        parts["teacher"] = _size(teacher.parameters())
    parts["activations"] = kept = _activations(module, teacher, shape, split, trainer.precision)
    if trainer.checkpoint_blocks:
        recompute_blocks(module.trained_net)
        parts["activations"] = _activations(module, teacher, shape, split, trainer.precision)
        recompute_blocks(module.trained_net, False)
        depth = module.trained_net.depth
        parts["one block recomputed"] = (kept - parts["activations"]) // depth
    return PhaseMemory(
        parts,
        trained=sum(p.numel() for p in trained),
        parameters=count_parameters(module),
        resume=gradients + state + averages,
    )


def optimizer_state_factor(optimizer_of: OptimizerPartial) -> float:
    """Bytes of state that an optimiser keeps per byte of a parameter (Adam: 2)."""
    dummy = nn.Parameter(torch.zeros(64, 64))
    optimizer = optimizer_of([{"params": [dummy]}])
    dummy.grad = torch.ones_like(dummy)
    optimizer.step()
    kept = [value for value in optimizer.state[dummy].values() if isinstance(value, Tensor)]
    # Counts of steps are single numbers: nothing beside the parameters of a network.
    return _size(value for value in kept if value.numel() > 1) / _size([dummy])


def _activations(
    module: DenoiserTraining,
    teacher: Backbone | None,
    shape: tuple[int, int, int],
    split: Split,
    precision: str,
) -> int:
    """Bytes that one micro-batch keeps for its backward pass."""
    images = torch.empty(split.images, *shape)
    conditioning = module.trained_net.example_conditioning(split.images)
    batch = Batch(images, conditioning, 0, 0)
    owned = [*module.parameters(), *module.buffers(), images, *conditioning.arguments()]
    owned += [] if teacher is None else list(teacher.parameters())
    module.train()
    mixed = precision != "32-true"
    # CPU kernels stand in for those of other devices; a type of the same size for float16.
    with Activations(owned) as counted, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss = batch_means(module.step_losses(module.prepare(batch)))["total"]
        assert loss.requires_grad
        return counted.bytes


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
