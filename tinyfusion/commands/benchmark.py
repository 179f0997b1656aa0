"""`tinyfusion benchmark`: how fast models sample, side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyfusion.commands.benchmark_models import (
    DEPTH,
    NARROWED,
    WIDTH,
    Subject,
    check_memory,
    planned_subjects,
    ready,
)
from tinyfusion.commands.checks import check_sampling
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.figures.terminal_table import print_table
from tinyfusion.files import write_json, write_text
from tinyfusion.metrics.benchmark import Benchmark, device_name
from tinyfusion.metrics.memory import available_memory
from tinyfusion.metrics.reporting import settings_of
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.settings.objects import Objects, objects_of
from tinyfusion.settings.overview import NOTES
from tinyfusion.text import readable_bytes
from tinyfusion.version import __version__

log = logging.getLogger(__name__)

COLUMNS = {
    "model": Column("model"),
    "weights": Column("weights"),
    "blocks": Column("blocks"),
    "mode": Column("mode"),
    "parameters": Column("parameters", ",d"),
    "preset_parameters": Column("preset's parameters", ",d"),
    "gmacs": Column("GMACs", ".3g"),
    "it_per_s": Column("it/s", ".2f"),
    "range": Column("quartiles"),
    "speed_up": Column("speed-up", ".2f"),
    "images_per_s": Column("images/s", ".2f"),
    "ms_per_step": Column("ms/step at batch 1", ".1f"),
    "ms_per_image": Column("ms/image at batch 1", ",.0f"),
    "memory": Column("peak memory"),
}

SERIES = {DEPTH: "blocks removed (label: blocks left)", WIDTH: "widths cut (label: width left)"}


def main(cfg: DictConfig, folder: Path) -> None:
    """Write ``benchmark.json`` and ``table.md``; of cuts ``speed.json`` and ``speed.png``."""
    objects = objects_of(cfg)
    guidance, sampler, process = objects.guidance, objects.sampler, objects.process
    assert sampler is not None
    narrowed = {key: cfg[key] for key in NARROWED if cfg[key] is not None}
    benchmark = Benchmark(
        process,
        sampler,
        guidance,
        cfg.batch_size,
        cfg.rounds,
        objects.dtype,
        objects.seed,
        lambda what, number: log.info("benchmark: %s, round %d of %d", what, number, cfg.rounds),
    )
    subjects = planned_subjects(objects, cfg.models, narrowed, cfg.depths, cfg.widths)
    for subject in subjects:
        key = f"models: {subject.name}"
        check_sampling(subject.net, process, f"{key}: sampler", sampler)
        check_sampling(subject.net, process, f"{key}: guidance", sampler, guidance)
    objects.check_machine()
    check_memory(subjects, available_memory(objects.device), objects.device)

    backend = objects.trainer.compile_backend if objects.trainer.compile else None
    log.info("benchmark: %d network(s), all in memory, timed in turn", len(subjects))
    nets = ready(subjects, objects.device, objects.seed)
    try:
        rows = benchmark.measure(nets, (None,) if backend is None else (None, backend))
    except torch.cuda.OutOfMemoryError:
        raise InputError(
            f"batch_size={cfg.batch_size}: sampling does not fit into this GPU's memory beside "
            f"{len(subjects)} network(s); give a smaller one, or fewer networks"
        ) from None
    for row in rows:
        row |= _about(next(s for s in subjects if s.name == row["model"]), rows)
    settings = settings_used(objects, benchmark, narrowed)
    write_json(folder / "benchmark.json", {"settings": settings, "rows": rows})
    _figure_4(folder, settings, rows)

    cells = [_for_table(row) for row in rows]
    if backend is not None:
        for row in cells:
            row["mode"] = "compiled" if row["compiled"] else "eager"
    columns = {key: column for key, column in COLUMNS.items() if any(key in row for row in cells)}
    line = settings_line(settings)
    notes = [*NOTES["benchmark"], _memory_note(objects.device)]
    text = f"{line}\n\n{markdown_table(cells, columns)}\n" + "".join(f"{n}\n" for n in notes)
    write_text(folder / "table.md", text)
    print_table(cells, columns, line)
    print("\n".join(notes), flush=True)
    log.info("benchmark: figures in %s", folder)


def settings_used(
    objects: Objects, benchmark: Benchmark, narrowed: dict[str, int]
) -> dict[str, Any]:
    """What decides the figures, as plain data."""
    device = objects.device
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "batch_size": benchmark.batch_size,
        "guidance": benchmark.guidance.scale,
        "guidance_interval": benchmark.guidance.interval and list(benchmark.guidance.interval),
        "sampler": settings_of(benchmark.sampler),
        "precision": objects.trainer.precision,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "compile_backend": objects.trainer.compile_backend if objects.trainer.compile else None,
        "rounds": benchmark.rounds,
        "narrowed": narrowed,
        "seed": objects.seed,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "tinyfusion": __version__,
    }


def settings_line(settings: dict[str, Any]) -> str:
    """The settings on one line, to stand above a table."""
    batch, scale = settings["batch_size"], settings["guidance"]
    seen = "" if scale == 1 else f" (the network sees {2 * batch})"
    threads = "" if settings["threads"] is None else f", {settings['threads']} thread(s)"
    narrowed = ", ".join(f"{key}={value}" for key, value in settings["narrowed"].items())
    return (
        f"{settings['device']}{threads}; batch {batch}, guidance {scale:g}{seen}; "
        f"{settings['sampler']}; precision {settings['precision']}; medians of "
        f"{settings['rounds']} round(s) in turn; torch {settings['torch']}, "
        f"tinyfusion {settings['tinyfusion']}"
        + (f"; presets narrowed: {narrowed}" if narrowed else "")
    )


def _about(subject: Subject, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a row says besides what was measured."""
    own = next(row for row in rows if row["model"] == subject.name)
    about: dict[str, Any] = {
        "weights": "checkpoint" if subject.arguments is None else "random",
        "parameters_removed": 1 - own["parameters"] / rows[0]["parameters"],
    }
    if subject.cut is not None:
        about |= {"cut": subject.cut, "label": subject.label}
        if subject.cut == DEPTH:
            about["weights"] = rows[0]["weights"]
    if subject.preset is not None:
        about |= {
            "preset_parameters": parameters(subject.preset),
            "preset_macs": macs(subject.preset),
        }
    return about


def _for_table(row: dict[str, Any]) -> dict[str, Any]:
    peak = row["peak_memory_bytes"]
    return {
        **row,
        "blocks": row["depth"],
        "gmacs": row["macs"] / 1e9,
        "range": f"{row['it_per_s_q1']:.2f}..{row['it_per_s_q3']:.2f}",
        "ms_per_step": 1000 * row["latency_s_per_step"],
        "ms_per_image": 1000 * row["latency_s_per_image"],
        "memory": None if peak is None else readable_bytes(peak),
    }


def _memory_note(device: torch.device) -> str:
    if device.type == "cuda":
        return "peak memory: of a model's weights and the most that sampling allocated besides"
    return (
        "peak memory: of a model's weights and the most bytes of tensors while it samples a batch, "
        "without what kernels take for themselves; not known of compiled code"
    )


def _figure_4(folder: Path, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write the cuts of the first network as figure 4 has them, if there are any."""
    series: dict[str, list[dict[str, Any]]] = {}
    drawn: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "cut" in row:
            suffix = ", compiled" if row["compiled"] else ""
            point = {**row, "ratio": row["parameters_removed"]}
            series.setdefault(row["cut"] + suffix, []).append(point)
            drawn.setdefault(SERIES[row["cut"]] + suffix, []).append(point)
    if not series:
        return
    from tinyfusion.figures.speed import speed_by_ratio  # imports matplotlib

    depths = [row for row in rows if row["model"] == rows[0]["model"]]
    write_json(folder / "speed.json", {"settings": settings, "whole": depths, "series": series})
    speed_by_ratio(drawn, folder / "speed.png")
