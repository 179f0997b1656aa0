"""Tables and picture of how cost grows, and what follows for large networks, for the documentation.

The published counts of parameters and multiply-accumulates stand beside ours as the check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from tinyfusion.backbones.presets import build_empty
from tinyfusion.figures.growth import Curve, growth
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.studies.cost_model import BYTES, SECONDS, Fit, fit_peak, fit_seconds
from tinyfusion.studies.growth import AXES, BASE, WORK, Point, held_out_sizes
from tinyfusion.studies.large_networks import NETWORKS, Counted
from tinyfusion.studies.large_plans import ASSUMED, Assumptions, plans, works

NAMES = {
    "mask_learning": "mask learning, LoRA",
    "recovery": "recovery, with teacher",
    "sampling": "sampling, one evaluation",
}


class Published(NamedTuple):
    """What papers print of a network.

    Attributes:
        parameters: in millions (TinyFusion, arXiv 2412.01199, tables 1 and 2).
        gmacs: of a forward, which DiT's paper calls Gflops (arXiv 2212.09748, table 4).
        it_per_s: sampling steps per second (TinyFusion, table 1).
    """

    parameters: int
    gmacs: float | None = None
    it_per_s: float | None = None


PUBLISHED = {
    "dit_xl_2": Published(675, 118.64, 6.91),
    "dit_xl_2_d19": Published(459, None, 10.07),
    "dit_xl_2_d14": Published(340, None, 13.54),
    "dit_xl_2_d7": Published(173, None, 26.81),
    "dit_l_2": Published(458, 80.71, 9.73),
    "dit_b_2": Published(130, 23.01, 28.30),
    "sit_xl_2": Published(675),
    "sit_xl_2_d14": Published(340),
    "mar_large": Published(479),
    "mar_base": Published(208),
    "mar_large_d16": Published(277),
}
"""By preset."""


class Models(NamedTuple):
    """The models of one kind of work."""

    seconds: Fit
    peak: Fit


def fit_all(points: Sequence[Point]) -> dict[str, Models]:
    """Models of every kind of work, fitted to the points that are not held out."""
    unseen = set(held_out_sizes())
    fitted = {w: [p for p in points if p.work == w and p.size not in unseen] for w in WORK}
    return {work: Models(fit_seconds(own), fit_peak(own)) for work, own in fitted.items()}


def fit_table(points: Sequence[Point], models: Mapping[str, Models]) -> str:
    """How far the models are off, where they were fitted and where they were not."""
    unseen, rows = set(held_out_sizes()), []
    for work, (seconds, peak) in models.items():
        for what, model, value in (
            ("seconds", seconds, lambda p: p.seconds),
            ("peak memory", peak, lambda p: p.peak),
        ):
            row: dict[str, Any] = {"work": NAMES[work], "what": what}
            for held in (False, True):
                own = [p for p in points if p.work == work and (p.size in unseen) == held]
                errors = model.errors(own, value)
                if errors:
                    row |= {f"median{held}": 100 * median(errors), f"most{held}": 100 * max(errors)}
            rows.append(row)
    columns = {
        "work": Column("work"),
        "what": Column("figure"),
        "medianFalse": Column("fitted sizes: median error, %", ".1f"),
        "mostFalse": Column("largest, %", ".1f"),
        "medianTrue": Column("larger sizes: median error, %", ".1f"),
        "mostTrue": Column("largest, %", ".1f"),
    }
    return markdown_table(rows, columns)


def term_table(models: Mapping[str, Models]) -> str:
    """The coefficients of the models."""
    units = dict(zip(SECONDS, ("ms/GMAC", "ms/GMAC", "ns", "ns", "ms", "ms"), strict=True))
    scale = dict.fromkeys(units, 1e3) | dict.fromkeys([n for n in units if units[n] == "ns"], 1.0)
    rows: list[dict[str, Any]] = []
    for name in SECONDS:
        found = {w: m.seconds.coefficients[name] * scale[name] for w, m in models.items()}
        rows.append({"figure": "seconds", "term": name, "unit": units[name], **found})
    for name in BYTES:
        unit = "MB" if name == "each step" else "float32 numbers"
        found = {w: m.peak.coefficients[name] for w, m in models.items()}
        rows.append({"figure": "peak memory", "term": name, "unit": unit, **found})
    columns = {"figure": Column("figure"), "term": Column("term"), "unit": Column("unit")}
    return markdown_table(rows, columns | {w: Column(NAMES[w], ".3g") for w in models})


def picture(points: Sequence[Point], models: Mapping[str, Models], path: Path) -> Path:
    """Draw the points along the axes and the models through them."""
    unseen = set(held_out_sizes())
    panels: dict[str, dict[str, dict[str, Curve]]] = {"ms per step": {}, "peak memory, MB": {}}
    for axis in AXES:
        others = {name: n for name, n in asdict(BASE).items() if name != axis}
        for work, (seconds, peak) in models.items():
            own = [p for p in points if p.work == work and others.items() <= asdict(p.size).items()]
            own.sort(key=lambda p: p.size)
            x = [asdict(p.size)[axis] for p in own]
            held = [p.size in unseen for p in own]
            for what, made in (
                ("ms per step", [(1e3 * p.seconds, 1e3 * seconds(p)) for p in own]),
                ("peak memory, MB", [(p.peak / 1e6, peak(p) / 1e6) for p in own]),
            ):
                measured, model = zip(*made, strict=True)
                curve = Curve(x, measured, model, held)
                panels[what].setdefault(axis, {})[NAMES[work]] = curve
    return growth(panels, path)


def published_table() -> str:
    """Our counts beside the papers', and speed by multiply-accumulates beside the measured one."""
    rows: list[dict[str, Any]] = []
    first: tuple[int, float] | None = None
    for name, said in PUBLISHED.items():
        with torch.device("meta"):
            net = build_empty(name)
        work = macs(net)
        row: dict[str, Any] = {
            "name": name,
            "ours": parameters(net) / 1e6,
            "paper": said.parameters,
            "gmacs": work / 1e9,
            "paper_gmacs": said.gmacs,
        }
        if said.it_per_s is not None:
            first = first or (work, said.it_per_s)
            row |= {"ratio": first[0] / work, "paper_ratio": said.it_per_s / first[1]}
        rows.append(row)
    columns = {
        "name": Column("preset"),
        "ours": Column("parameters, M", ".2f"),
        "paper": Column("paper"),
        "gmacs": Column("GMACs", ".2f"),
        "paper_gmacs": Column("paper", ".2f"),
        "ratio": Column("speed by MACs", ".2f"),
        "paper_ratio": Column("paper, measured", ".2f"),
    }
    return markdown_table(rows, columns)


def operations_table(net: Counted, assumed: Assumptions = ASSUMED) -> str:
    """Operations of a sample by way of training, and samples per second if nothing waits."""
    rows: list[dict[str, Any]] = []
    for work in works():
        operations = 2 * net.macs * work.forwards
        rows.append(
            {
                "work": work.name,
                "forwards": work.forwards,
                "tflop": operations / 1e12,
                "step": operations * assumed.batch / 1e15,
                **{
                    str(gpus): gpus * assumed.peak * assumed.utilisation / operations
                    for gpus in (8, 64)
                },
            }
        )
    columns = {
        "work": Column("work"),
        "forwards": Column("forwards", ".3f"),
        "tflop": Column("TFLOP/sample", ".0f"),
        "step": Column(f"PFLOP/step of {assumed.batch}", ".1f"),
        "8": Column("samples/s, 8 GPUs", ".1f"),
        "64": Column("samples/s, 64 GPUs", ".0f"),
    }
    return markdown_table(rows, columns)


def memory_table(net: Counted, assumed: Assumptions = ASSUMED) -> str:
    """Memory of a GPU and samples per second, by way of training and number of GPUs.

    Sampling gate gradients saves operations, no memory: it has no rows of its own.
    """
    rows: list[dict[str, Any]] = []
    for work in works(sampled=1.0):
        for gpus, shards, found in plans(net, work, assumed=assumed):
            fits = found.micro_batch > 0
            notes = "recomputed" if found.recomputes else "kept"
            rows.append(
                {
                    "work": work.name,
                    "gpus": gpus,
                    "frozen": {True: "sharded", False: "whole", None: "-"}[shards],
                    "state": found.state / 1e9,
                    "read": found.frozen / 1e9,
                    "activations": found.activations / 1e9,
                    "total": found.total / 1e9,
                    "micro": f"{found.micro_batch}, {notes}" if fits else "does not fit",
                    "rate": found.per_second if fits else None,
                    "bound": "exchange" if found.waits else "operations",
                }
            )
    columns = {
        "work": Column("work"),
        "gpus": Column("GPUs"),
        "frozen": Column("frozen weights"),
        "state": Column("trained, GB", ".1f"),
        "read": Column("frozen, GB", ".1f"),
        "activations": Column("activations, GB", ".1f"),
        "total": Column("together, GB", ".1f"),
        "micro": Column("micro-batch, activations"),
        "rate": Column("samples/s", ".1f"),
        "bound": Column("bound by"),
    }
    return markdown_table(rows, columns)


def network_parts(assumed: Assumptions = ASSUMED) -> Iterator[str]:
    """What large networks would take, as paragraphs of Markdown."""
    for network in NETWORKS:
        net = network.counted
        yield f"#### {network.name}\n"
        yield (
            f"{net.parameters / 1e9:.2f}B parameters, {net.macs / 1e12:.1f} TMACs in a forward of "
            f"one sample; a sample keeps {net.activations / 1e9:.1f} GB for the backward pass, "
            f"{net.recomputed / 1e9:.2f} GB with blocks recomputed (and {net.block / 1e9:.2f} GB "
            f"of the block at work); low-rank updates have {net.low_rank / 1e6:.0f} M parameters.\n"
        )
        yield operations_table(net, assumed)
        yield memory_table(net, assumed)
