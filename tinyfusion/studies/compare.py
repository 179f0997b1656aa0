"""Runs that differ in their pruner, side by side: one table and one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.checkpoints import load
from tinyfusion.figures.grid import comparison_grid
from tinyfusion.figures.table import Column, markdown_table
from tinyfusion.figures.terminal_table import print_table
from tinyfusion.files import write_text
from tinyfusion.metrics.reporting import floor_line, for_table, guidance_words
from tinyfusion.processes.contract import Process
from tinyfusion.report.runs import Run
from tinyfusion.samplers.generate import balanced_labels, generate_images
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.settings.compose import build

COLUMNS = {
    "model": Column("model"),
    "depth": Column("depth"),
    "parameters": Column("parameters", ",d"),
    "speed_up": Column("speed-up", ".2f"),
    "fid": Column("FID", ".3f"),
    "held_out_loss": Column("loss", ".4f"),
    "teacher_distance": Column("to teacher", ".4f"),
}

LOOKING_GUIDANCE = 1.5
"""Guidance of the pictures: these samples are for looking, scored ones are unguided."""


def compare(runs: Mapping[str, Run], folder: Path, detail: str = "learned") -> list[dict[str, Any]]:
    """Print and write the table; draw one row of samples per model.

    Args:
        runs: finished runs of the same source and protocol, by the name to show.
        folder: where ``comparison.md`` and ``comparison.png`` go.
        detail: name of the run whose student is also shown before recovery.

    Returns:
        The table's rows.
    """
    first = next(iter(runs.values()))
    rows: list[dict[str, Any]] = [{"model": "teacher", **first.models["source"]}]
    process: Process = build(first.config["process"])
    nets: dict[str, Backbone] = {"teacher": load(first.config["checkpoint"])}
    for name, run in runs.items():
        if name == detail:
            rows.append({"model": f"{name}, only cut", **run.models["pruned"]})
            nets[f"{name}, only cut"] = load(run.folder / "pruned")
        rows.append({"model": f"{name}, recovered", **run.models["recovered"]})
        nets[f"{name}, recovered"] = load(run.folder / "recovered")
    classes = min(10, next(iter(nets.values())).num_classes)
    pictures = {
        name: generate_images(
            net,
            process,
            build(first.config["sampler"]),
            balanced_labels(classes, classes),
            seed=1,
            guidance=Guidance(LOOKING_GUIDANCE),
            autoencoder=build(first.config.get("autoencoder")),
        )
        for name, net in nets.items()
    }
    comparison_grid(pictures, folder / "comparison.png")
    rows = [for_table(row) for row in rows]
    write_text(folder / "comparison.md", f"{protocol(first)}\n\n{markdown_table(rows, COLUMNS)}\n")
    print_table(rows, COLUMNS, protocol(first))
    return rows


def protocol(run: Run) -> str:
    """Lengths and sampling protocol, the same for every row, in one line."""
    sampling, training = run.protocol, run.config["training"]
    return (
        f"mask learning {training['mask_learning']['steps']} steps, recovery "
        f"{training['recovery']['steps']} steps at batch {training['recovery']['batch_size']}; "
        f"{sampling['num_samples']} samples, {sampling['sampler']}, "
        f"{guidance_words(dict(sampling))}; {floor_line(run.floor)}"
    )
