"""What large networks would take: counts of real structures, and the arithmetic on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tinyfusion.metrics.memory import Activations
from tinyfusion.metrics.speed import macs
from tinyfusion.metrics.step_work import mask_learning_forwards, recovery_forwards
from tinyfusion.studies import growth_report
from tinyfusion.studies.large_networks import Counted, LargeNetwork
from tinyfusion.studies.large_plans import Assumptions, Work, plan, plans, works

NET = Counted(1000, 10, 500, 4000, 100, block=300, gathered=200)
MACHINE = Assumptions(
    peak=100.0, utilisation=0.5, memory=20_000.0, usable=1.0, within=1e9, between=10.0, batch=16
)
FULL = Work("full", 3.0, 1.0, trained=1.0)
FROZEN = Work("low rank", 2.0, 1.0, frozen_passes=2)


@pytest.mark.parametrize("kept", [0.25, 0.5, 1.0])
def test_forwards_are_the_published_bounds(kept: float) -> None:
    sparse = mask_learning_forwards(False, kept)
    assert mask_learning_forwards() / sparse == pytest.approx(2 / (1 + kept))
    assert mask_learning_forwards(True) / mask_learning_forwards(True, kept) == pytest.approx(
        3 / (1 + 2 * kept)
    )
    p = 0.25
    sampled = [mask_learning_forwards(full, kept, p) for full in (False, True)]
    assert 2 / sampled[0] == pytest.approx(2 / (2 * kept + (1 - kept) * p))
    assert 3 / sampled[1] == pytest.approx(3 / (3 * kept + (1 - kept) * p))
    assert recovery_forwards(kept) == 1 + 3 * kept and recovery_forwards(kept, 0) == 3 * kept


def test_memory_of_trained_weights_is_sharded() -> None:
    one, two = (plan(NET, FULL, gpus, True, MACHINE) for gpus in (1, 2))
    # Value, gradient and two moments in float32; what is gathered in bfloat16.
    assert one.state == 16 * 1000 + 2 * 200 and two.state == 16 * 1000 / 2 + 2 * 200
    averaged = plan(NET, replace(FULL, averaged=True, trained=0.5), 2, True, MACHINE)
    assert averaged.state == 20 * 500 / 2 + 2 * 200 and averaged.frozen == 0


def test_frozen_weights_are_whole_or_sharded() -> None:
    whole, sharded = (plan(NET, FROZEN, 4, shards, MACHINE) for shards in (False, True))
    assert whole.frozen == 2 * 1000 and sharded.frozen == 2 * 1000 / 4 + 2 * 200
    assert whole.state == sharded.state == 16 * 10 / 4


def test_blocks_are_recomputed_only_where_it_pays() -> None:
    roomy = plan(NET, FULL, 2, True, MACHINE)
    assert not roomy.recomputes and roomy.activations == 4000 * roomy.micro_batch
    tight = plan(NET, FULL, 2, True, replace(MACHINE, memory=9_500.0))
    assert tight.recomputes and tight.total <= 9_500
    assert tight.activations == tight.micro_batch * (100 + 300)
    # One more forward of what is trained.
    assert roomy.per_second / tight.per_second == pytest.approx(4 / 3)
    none = plan(NET, FULL, 2, True, replace(MACHINE, memory=8_000.0))
    assert none.micro_batch == 0 and none.per_second == 0 and none.total > 8_000


def test_speed_is_bound_by_operations_or_by_the_exchange() -> None:
    within = plan(NET, FULL, 8, True, MACHINE)
    assert not within.waits
    assert within.per_second == pytest.approx(8 * 100 * 0.5 / (3 * 2 * 500))
    between = plan(NET, FULL, 16, True, MACHINE)
    assert between.waits and between.micro_batch == 1
    assert between.per_second == pytest.approx(16 * 10 / (8 * 1000))
    # Frozen weights that every GPU has are not exchanged.
    assert not plan(NET, FROZEN, 16, False, MACHINE).waits
    assert plan(NET, FROZEN, 16, True, MACHINE).waits


def test_every_way_is_planned_on_all_numbers_of_gpus() -> None:
    recovery = works()[-1]
    assert recovery.forwards == 2.5 and len(works()) == 7
    found = [(gpus, shards) for gpus, shards, _ in plans(NET, recovery)]
    assert found == [(8, False), (8, True), (64, False), (64, True)]
    assert [shards for _, shards, _ in plans(NET, FULL)] == [None, None]
    text = growth_report.memory_table(NET, replace(MACHINE, memory=10.0))
    assert "does not fit" in text
    sampled = "mask learning, LoRA, sparse, 25% of the gate gradients"
    operations = growth_report.operations_table(NET)
    assert "| recovery, with teacher" in text and "| recovery, with teacher" in operations
    assert sampled in operations and sampled not in text


def inputs(samples: int) -> dict[str, object]:
    return {
        "hidden_states": torch.zeros(samples, 16, 4),
        "encoder_hidden_states": torch.zeros(samples, 5, 12),
        "pooled_projections": torch.zeros(samples, 6),
        "timestep": torch.zeros(samples),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }


TINY = LargeNetwork(
    "tiny",
    "FluxTransformer2DModel",
    {
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 6,
        "axes_dims_rope": (2, 2, 4),
    },
    inputs,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_counts_are_what_a_real_forward_takes() -> None:
    found = TINY.counted
    import diffusers

    net = diffusers.FluxTransformer2DModel(**TINY.arguments).train()
    assert found.parameters == sum(p.numel() for p in net.parameters())

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, *tensors: Tensor) -> Tensor:
            given = dict(zip(inputs(1), tensors, strict=False))
            return self.net(**given, return_dict=False)[0]

    assert found.macs == macs(Positional(), tuple(inputs(1).values())[:-1])

    def kept(samples: int) -> int:
        given = inputs(samples)
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        owned = [*net.parameters(), *net.buffers(), *tensors]
        with Activations(owned) as counted, torch.autocast("cpu", torch.bfloat16):
            out = net(**given)
            assert out[0].requires_grad
            return counted.bytes

    assert found.activations == kept(2) - kept(1)
    assert 0 < found.recomputed < found.activations
    single = sum(p.numel() for p in net.single_transformer_blocks[0].parameters())
    double = sum(p.numel() for p in net.transformer_blocks[0].parameters())
    assert found.gathered == found.parameters - 2 * single - double + 2 * double
