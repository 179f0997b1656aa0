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
from tinyfusion.callbacks.evaluate import BEST
from tinyfusion.checkpoints import load
from tinyfusion.commands.evaluate import COLUMNS, cached_floor, cached_score, protocol_line
from tinyfusion.commands.iterative import LastRound, check_rounds, earlier_rounds
from tinyfusion.commands.prune import (
    METRICS_FILE,
    decide,
    flat,
    unscored,
    write_pruned,
)
from tinyfusion.commands.recover import (
    RECOVERED,
    check_recovery,
    load_recovered,
    load_teacher,
    recover,
    warn_of_other_weights,
)
from tinyfusion.commands.setup import Setup
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.figures.grid import comparison_grid
from tinyfusion.figures.table import markdown_table, print_table
from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.shown import for_table
from tinyfusion.metrics.speed import parameters
from tinyfusion.pipeline.devices import joined_ranks
from tinyfusion.pipeline.scoring import first_samples
from tinyfusion.ranks import is_first_rank
from tinyfusion.samplers.generate import balanced_labels
from tinyfusion.surgery import prune
from tinyfusion.tracking import Tracking
from tinyfusion.widths import WidthDecision, read_decision

log = logging.getLogger(__name__)

TIMES_FILE = "times.json"


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``; finished stages are skipped."""
    setup = Setup(cfg, folder)
    # Whatever is wrong with later stages is found before the first one starts.
    source = setup.load(cfg.checkpoint)
    evaluation = setup.evaluation
    teacher = load_teacher(setup, source)
    check_recovery(setup, source, teacher)
    last = LastRound(setup, source, teacher, {})
    if cfg.iterative is not None:
        previous = check_rounds(setup, source, teacher)
        with _timed(folder, "earlier_rounds"):
            last = earlier_rounds(setup, source, teacher, previous)
    with _timed(folder, "prune"):
        given = cfg.decision is not None
        decision = _given(setup, source) if given else decide(last.setup, last.net)
    with _timed(folder, "recover"):
        recover(last.setup, prune(last.net, decision), last.teacher, decision)
    with _timed(folder, "evaluate"):
        nets = {"source": source, **last.earlier}
        if evaluation is not None:
            nets["pruned"] = prune(last.net, decision)
            score(setup, evaluation, nets, decision, last.setup.tracking)
        elif is_first_rank():
            write_sizes(last.setup, nets, decision)
    last.setup.tracking.finish()


def _given(setup: Setup, source: Backbone) -> Decision | WidthDecision:
    log.info("run: applying %s; scheme, keep and pruner are not used", setup.cfg.decision)
    decision = read_decision(setup.cfg.decision)
    warn_of_other_weights(setup, decision)
    write_pruned(setup, source, decision)
    if is_first_rank():
        decision.save(setup.folder / decision.file_name)
    return decision


def write_sizes(
    setup: Setup, nets: dict[str, Backbone], decision: Decision | WidthDecision
) -> None:
    """Write ``metrics.json`` of a run without scores: depths and parameters only."""
    nets = nets | {"recovered": load_recovered(setup.folder)}
    models = {
        name: {"depth": net.depth, "parameters": parameters(net)} for name, net in nets.items()
    }
    write_json(setup.folder / METRICS_FILE, unscored(models, decision))
    setup.tracking.scores(flat(models))
    log.info("run: recovered model in %s", setup.folder / RECOVERED)


def score(
    setup: Setup,
    evaluation: Evaluation,
    nets: dict[str, Backbone],
    decision: Decision | WidthDecision,
    tracking: Tracking,
) -> None:
    """Score source and students; write ``metrics.json``, ``table.md`` and ``samples.png``.

    All ranks share the work; the first one writes.

    Args:
        setup: the job, whose checkpoint is the source.
        evaluation: the protocol.
        nets: ``source``, models of earlier rounds and ``pruned``; the recovered one is added.
        decision: how the (last) student was cut.
        tracking: where scores and samples are logged.
    """
    folder, source = setup.folder, nets["source"]
    group = joined_ranks(setup.trainer, setup.world)
    if group is None:
        return
    # Told when the first rank has written what all load below.
    if group.from_first((folder / METRICS_FILE).is_file):
        if group.first:  # it may have been killed before they were logged
            tracking.scores(flat(read_json(folder / METRICS_FILE, "metrics")["models"]))
        return
    floor = cached_floor(setup, evaluation, group)
    timed = [*(name for name in nets if name != "pruned"), "recovered"]
    nets = nets | {
        "recovered": load_recovered(folder),
        "recovered (live weights)": load_recovered(folder, live=True),
    }
    best = folder / "recover" / BEST
    if (best / "config.json").is_file():
        nets["recovered (best in training)"] = load(str(best))
    for net in nets.values():
        net.to(setup.device)
    rows: dict[str, dict[str, Any]] = {}
    for name, net in nets.items():
        if name == "source":
            rows[name] = cached_score(setup, evaluation, net, group)
        else:
            rows[name] = evaluation.score(
                net,
                setup.process,
                setup.source,
                source,
                progress=setup.bars and group.first,
                dtype=setup.dtype,
                group=group,
            )
    if not group.first:
        return
    speeds = evaluation.speed({name: nets[name] for name in timed}, setup.process, setup.dtype)
    for name, speed in speeds.items():
        rows[name] |= {
            "images_per_s": speed["images_per_s"],
            "images_per_s_min": speed["images_per_s_min"],
            "images_per_s_max": speed["images_per_s_max"],
            "speed_up": speed["ratio"],
        }
    listed = [{"model": name, **for_table(row)} for name, row in rows.items()]
    title = f"{decision.method}: {protocol_line(evaluation, floor)}"
    tracking.image("samples", _grid(setup, evaluation, nets))
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
    tracking.scores(flat(rows))
    print_table(listed, COLUMNS, title)
    log.info("run: figures and table in %s", folder)


def _grid(setup: Setup, evaluation: Evaluation, nets: dict[str, Backbone]) -> Path:
    """One row of samples per model, one column per class, from the same noise."""
    shown = [name for name in nets if not name.startswith("recovered (")]
    classes = min(10, setup.source.num_classes)
    labels = balanced_labels(classes, classes)
    rows = first_samples(
        evaluation,
        {name: nets[name] for name in shown},
        setup.process,
        labels,
        setup.seed + 1,
        setup.dtype,
    )
    path = comparison_grid(rows, setup.folder / "samples.png")
    return Path(path or setup.folder / "samples.png")


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
