"""Figures of a benchmark against formulas by hand, with a clock that the networks' blocks move."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.backbones.sit import SiT
from tinyfusion.errors import InputError
from tinyfusion.metrics import benchmark, speed
from tinyfusion.metrics.benchmark import Benchmark, counted_evaluations, peak_memory
from tinyfusion.metrics.memory import bytes_of
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.processes.interpolant import Interpolant
from tinyfusion.processes.masked import MaskedDiffusion
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.autoregressive import AutoregressiveSampler
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.samplers.ode import ODESampler


def dit(depth: int = 4, width: int = 8) -> DiT:
    return DiT(4, 2, 1, hidden_size=width, depth=depth, num_heads=2, num_classes=3)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return now


def slow(net: DiT, clock: list[float], seconds: list[float]) -> DiT:
    """Let every block take so many seconds per sample, another number in each run of the net."""

    def advance(_module: object, inputs: tuple[torch.Tensor, ...], _out: object) -> None:
        clock[0] += seconds[0] * len(inputs[0])

    for block in net.blocks:
        block.register_forward_hook(advance)
    return net


def test_every_figure_follows_from_the_seconds(clock) -> None:
    per_sample = [1.0]
    nets = {"deep": slow(dit(4), clock, per_sample), "shallow": slow(dit(2), clock, per_sample)}
    told: list[tuple[str, int]] = []

    def next_round(what: str, number: int) -> None:
        told.append((what, number))
        per_sample[0] *= 2  # the load doubles from round to round, for all networks

    measured = Benchmark(
        GaussianDiffusion(),
        AncestralSampler(3),
        Guidance(2.0),
        batch_size=5,
        rounds=3,
        on_round=next_round,
    ).measure(nets)
    deep, shallow = measured
    assert told == [("batch 5", 1), ("batch 5", 2), ("batch 5", 3)] + [
        ("batch 1", number) for number in (1, 2, 3)
    ]
    # A step is one evaluation of ten samples, as guidance doubles them: 4 blocks take 40 s at
    # first, 80 s and 160 s later.
    assert deep["evaluations"] == 3
    assert [deep[key] for key in ("it_per_s", "it_per_s_min", "it_per_s_max")] == pytest.approx(
        [1 / 80, 1 / 160, 1 / 40]
    )
    assert [deep["it_per_s_q1"], deep["it_per_s_q3"]] == pytest.approx(
        [(1 / 80 + 1 / 160) / 2, (1 / 80 + 1 / 40) / 2]
    )
    assert deep["images_per_s"] == pytest.approx(5 / (3 * 80))
    assert deep["images_per_s"] == pytest.approx(deep["it_per_s"] * 5 / deep["evaluations"])
    assert shallow["it_per_s"] == pytest.approx(1 / 40)
    # Ratios are taken within rounds, so that the load is not seen in them.
    assert [shallow[f"speed_up{end}"] for end in ("", "_min", "_max")] == pytest.approx([2.0] * 3)
    assert deep["speed_up"] == 1.0
    # Alone, a sample is two under guidance; the load was 8, 16, 32 by then.
    assert deep["latency_s_per_step"] == pytest.approx(16 * 2 * 4)
    assert deep["latency_s_per_image_max"] == pytest.approx(32 * 2 * 4 * 3)
    for row, net in zip(measured, nets.values(), strict=True):
        assert (row["depth"], row["parameters"]) == (net.depth, parameters(net))
        assert row["macs"] == macs(net) and row["compiled"] is False
        assert row["peak_memory_bytes"] > bytes_of(net)


def test_one_at_a_time_is_measured_once(clock) -> None:
    told = []
    way = Benchmark(
        GaussianDiffusion(),
        AncestralSampler(2),
        batch_size=1,
        rounds=1,
        on_round=lambda what, _: told.append(what),
    )
    (row,) = way.measure({"a": slow(dit(3), clock, [1.0])})
    assert told == ["batch 1"]
    assert row["latency_s_per_step"] == 1 / row["it_per_s"] == 3.0


@pytest.mark.parametrize(
    ("net", "process", "sampler", "evaluations"),
    [
        (
            SiT(4, 2, 1, hidden_size=8, depth=2, num_heads=2, num_classes=3),
            Interpolant(),
            ODESampler("heun2", steps=3),
            6,
        ),
        (
            MAR(4, 8, 2, 2, 2, patch_size=2, in_channels=1, buffer_size=2, head_depth=1,
                head_width=8, num_classes=3),
            MaskedDiffusion(patch_size=2),
            AutoregressiveSampler(iterations=3, head_steps=2),
            3,
        ),
    ],
    ids=["sit", "mar"],
)  # fmt: skip
def test_a_step_is_an_evaluation_of_the_network(net, process, sampler, evaluations) -> None:
    guidance = Guidance(2.0)
    (row,) = Benchmark(process, sampler, guidance, batch_size=2, rounds=1).measure({"a": net})
    assert row["evaluations"] == evaluations
    assert row["images_per_s"] == pytest.approx(row["it_per_s"] * 2 / evaluations)


class AsManyStepsAsSamples:
    """A sampler whose evaluations are known only when it has run, as those of adaptive ones."""

    process_kind = "diffusion"

    def num_steps(self, process: GaussianDiffusion) -> int:
        return 1

    def __call__(self, net, process, noise, conditioning, guidance, on_step=None) -> torch.Tensor:
        x = noise()
        for _ in range(len(conditioning)):
            guidance.predict(net, x, torch.zeros(len(x)), conditioning)
        return x


def test_evaluations_are_counted_for_each_batch_size(clock) -> None:
    way = Benchmark(GaussianDiffusion(), AsManyStepsAsSamples(), batch_size=4, rounds=1)
    (row,) = way.measure({"a": slow(dit(3), clock, [1.0])})
    assert row["evaluations"] == 4
    assert row["it_per_s"] == pytest.approx(1 / (4 * 3))
    assert row["latency_s_per_step"] == row["latency_s_per_image"] == 3.0


def test_counting_leaves_no_trace() -> None:
    net = dit()
    with counted_evaluations(net) as count:
        net(*net.example_inputs())
        net(*net.example_inputs(3))
    assert count == [2]
    net(*net.example_inputs())
    assert count == [2] and not net.blocks[0]._forward_pre_hooks


class Growing(DiT):
    """Says that its states change their shape from step to step."""

    fixed_shapes = False


def test_a_network_says_whether_its_shapes_are_fixed(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        benchmark, "compile_blocks", lambda net, backend, dynamic: asked.append(dynamic)
    )
    sizes = {"input_size": 4, "in_channels": 1, "hidden_size": 8, "depth": 1, "num_heads": 2}
    nets = {"fixed": DiT(**sizes, num_classes=3), "growing": Growing(**sizes, num_classes=3)}
    Benchmark(GaussianDiffusion(), AncestralSampler(2), batch_size=1, rounds=1).measure(
        nets, ["eager"]
    )
    assert asked == [False, None] and not MAR.fixed_shapes


def test_blocks_are_compiled_once_per_shape_however_many_shapes() -> None:
    torch.compiler.reset()
    graphs: list[int] = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        graphs.append(1)
        return module

    # Five widths at two batch sizes: more than torch compiles of one function by default.
    nets = {f"{width}": dit(2, width) for width in (4, 8, 12, 16, 20)}
    way = Benchmark(GaussianDiffusion(), AncestralSampler(1), batch_size=3, rounds=1)
    rows = way.measure(nets, (None, backend))
    assert len(graphs) == 10
    assert [row["compiled"] for row in rows] == [False] * 5 + [True] * 5
    assert [row["model"] for row in rows] == [*nets, *nets]
    assert rows[5]["speed_up"] == 1.0 and rows[5]["evaluations"] == 1
    assert rows[5]["peak_memory_bytes"] is None, "compiled code on a CPU is not seen"
    torch.compiler.reset()


def test_peak_memory_on_a_cpu_is_weights_and_live_tensors() -> None:
    net = dit()

    def run() -> None:
        a = torch.ones(1000)
        b = a + 1
        del a
        torch.ones(200)
        del b
        torch.ones(1500)

    assert peak_memory(net, run) == bytes_of(net) + 8000


def test_peak_memory_on_a_gpu_leaves_other_networks_out(monkeypatch) -> None:
    net, calls = dit(), []
    monkeypatch.setattr(benchmark, "_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 7000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: calls.append("read") or 9500)
    assert peak_memory(net, lambda: calls.append("run")) == bytes_of(net) + 2500
    assert calls == ["reset", "run", "read"]


@pytest.mark.parametrize("key", ["batch_size", "rounds"])
def test_counts_below_one_are_refused(key) -> None:
    with pytest.raises(InputError, match=f"{key}=0 must be at least 1"):
        Benchmark(GaussianDiffusion(), AncestralSampler(2), **{key: 0})
