"""`tinyfusion run`: prune -> recover -> evaluate in one job."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.figures.grid import comparison_grid
from tinyfusion.figures.table import markdown_table, print_table
from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.metrics.evaluation import Evaluation, for_table
from tinyfusion.metrics.speed import parameters
from tinyfusion.ranks import is_first_rank
from tinyfusion.samplers.generate import balanced_labels, generate_images
from tinyfusion.settings.compose import build
from tinyfusion.stages.evaluate import COLUMNS, cached_floor, cached_score, protocol_line
from tinyfusion.stages.prune import (
    DECISION_FILE,
    METRICS_FILE,
    decide,
    flat,
    unscored,
    write_pruned,
)
from tinyfusion.stages.recover import (
    RECOVERED,
    load_recovered,
    load_teacher,
    recover,
    warn_of_other_weights,
)
from tinyfusion.stages.setup import Setup
from tinyfusion.surgery import prune

log = logging.getLogger(__name__)

TIMES_FILE = "times.json"


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``; finished stages are skipped."""
    setup = Setup(cfg, folder)
    # Whatever is wrong with later stages is found before the first one starts.
    source = setup.load(cfg.checkpoint)
    evaluation = setup.evaluation
    teacher = load_teacher(setup, source)
    build(cfg.recovery).check(source, teacher, setup.process)
    setup.settings("recovery")
    with _timed(folder, "prune"):
        decision = _given(setup, source) if cfg.decision is not None else decide(setup, source)
    with _timed(folder, "recover"):
        recover(setup, prune(source, decision), teacher, decision)
    if is_first_rank():
        with _timed(folder, "evaluate"):
            if evaluation is None:
                write_sizes(setup, source, decision)
            else:
                score(setup, evaluation, source, decision)
    setup.tracking.finish()


def _given(setup: Setup, source: Backbone) -> Decision:
    log.info("run: applying %s; scheme, keep and pruner are not used", setup.cfg.decision)
    decision = Decision.load(setup.cfg.decision)
    warn_of_other_weights(setup, decision)
    write_pruned(setup, source, decision)
    if is_first_rank():
        decision.save(setup.folder / DECISION_FILE)
    return decision


def write_sizes(setup: Setup, source: Backbone, decision: Decision) -> None:
    """Write ``metrics.json`` of a run without scores: depths and parameters only."""
    nets = {"source": source, "recovered": load_recovered(setup.folder)}
    models = {
        name: {"depth": net.depth, "parameters": parameters(net)} for name, net in nets.items()
    }
    write_json(setup.folder / METRICS_FILE, unscored(models, decision))
    setup.tracking.scores(flat(models))
    log.info("run: recovered model in %s", setup.folder / RECOVERED)


def score(setup: Setup, evaluation: Evaluation, source: Backbone, decision: Decision) -> None:
    """Score source and students; write ``metrics.json``, ``table.md`` and ``samples.png``."""
    folder = setup.folder
    if (folder / METRICS_FILE).is_file():
        return
    floor = cached_floor(setup, evaluation)
    nets = {
        "source": source,
        "pruned": prune(source, decision),
        "recovered": load_recovered(folder),
        "recovered (live weights)": load_recovered(folder, live=True),
    }
    for net in nets.values():
        net.to(setup.device)
    rows: dict[str, dict[str, Any]] = {}
    for name, net in nets.items():
        if name == "source":
            rows[name] = cached_score(setup, evaluation, net)
        else:
            rows[name] = evaluation.score(
                net, setup.process, setup.source, source, progress=setup.bars
            )
    speeds = evaluation.speed({name: nets[name] for name in ("source", "recovered")}, setup.process)
    for name, speed in speeds.items():
        rows[name] |= {
            "images_per_s": speed["images_per_s"],
            "images_per_s_min": speed["images_per_s_min"],
            "images_per_s_max": speed["images_per_s_max"],
            "speed_up": speed["ratio"],
        }
    listed = [{"model": name, **for_table(row)} for name, row in rows.items()]
    title = f"{decision.method}: {protocol_line(evaluation, floor)}"
    _grid(setup, evaluation, nets)
    write_text(folder / "table.md", f"{title}\n\n{markdown_table(listed, COLUMNS)}\n")
    write_json(
        folder / METRICS_FILE,
        {
            "models": rows,
            "protocol": evaluation.protocol(),
            "floor": floor,
            "decision": decision.summary(),
        },
    )
    setup.tracking.scores(flat(rows))
    print_table(listed, COLUMNS, title)
    log.info("run: figures and table in %s", folder)


def _grid(setup: Setup, evaluation: Evaluation, nets: dict[str, Backbone]) -> None:
    """One row of samples per model, one column per class, from the same noise."""
    shown = [name for name in nets if not name.endswith("(live weights)")]
    classes = min(10, setup.source.num_classes)
    labels = balanced_labels(classes, classes)
    rows = {
        name: generate_images(
            nets[name],
            setup.process,
            evaluation.sampler,
            labels,
            setup.seed + 1,
            autoencoder=evaluation.autoencoder,
        )
        for name in shown
    }
    path = comparison_grid(rows, setup.folder / "samples.png")
    setup.tracking.image("samples", Path(path or setup.folder / "samples.png"))


@contextmanager
def _timed(folder: Path, stage: str) -> Iterator[None]:
    """Add the seconds spent in a stage to ``times.json`` (over interruptions, too)."""
    began = time.perf_counter()
    refused = False
    try:
        yield
    except InputError:
        refused = True
        raise
    finally:
        if not refused and is_first_rank():
            _add_time(folder, stage, time.perf_counter() - began)


def _add_time(folder: Path, stage: str, seconds: float) -> None:
    file = folder / TIMES_FILE
    times = read_json(file, "times") if file.is_file() else {}
    times[stage] = round(times.get(stage, 0.0) + seconds, 2)
    if torch.cuda.is_available():
        times["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    write_json(file, times)
