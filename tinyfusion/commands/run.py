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
from tinyfusion.checkpoints import load as load_model
from tinyfusion.commands import prune as prune_command
from tinyfusion.commands import recover as recover_command
from tinyfusion.commands.evaluate import (
    COLUMNS,
    cached_floor,
    cached_score,
    protocol_line,
    sample_grid,
)
from tinyfusion.commands.iterative import LastRound, check_rounds, earlier_rounds
from tinyfusion.commands.loading import (
    check_budget,
    check_loaded,
    check_training,
    flat,
    load,
    runner_of,
    start_tracking,
)
from tinyfusion.commands.prune import decide, unscored, write_pruned
from tinyfusion.commands.recover import (
    RECOVERED,
    check_teacher,
    first_student,
    given_decision,
    load_recovered,
    load_teacher,
    recover_into,
)
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.figures.table import markdown_table
from tinyfusion.figures.terminal_table import print_table
from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.reporting import for_table
from tinyfusion.metrics.speed import parameters
from tinyfusion.pipeline.devices import joined_ranks
from tinyfusion.pipeline.recovery_checks import expected, with_scores
from tinyfusion.ranks import is_first_rank
from tinyfusion.settings.objects import Objects, objects_of
from tinyfusion.surgery import prune
from tinyfusion.tracking.keys import METRICS_FILE
from tinyfusion.tracking.trackers import Trackers

log = logging.getLogger(__name__)

TIMES_FILE = "times.json"
MODELS = (*prune_command.MODELS, *recover_command.MODELS)
"""Model folders that the command writes."""

SOURCE, CUT, AVERAGED = "source", "pruned", "recovered"
LIVE, CHOSEN = "recovered (live weights)", "recovered (best in training)"
SCORED = (SOURCE, CUT, AVERAGED, LIVE)
"""Models that are scored in every run, by their names in tables; earlier rounds' come besides."""


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``; finished phases are skipped."""
    objects = objects_of(cfg)
    # Whatever is wrong with later phases is found before the first one starts.
    source = load(objects, objects.checkpoint)
    check_budget(objects, source)
    teacher = load_teacher(objects, source)
    given = None
    if objects.decision_path is not None and objects.rounds is None:
        given = given_decision(objects)
    previous = check_rounds(objects, source) if objects.rounds is not None else None
    check_loaded(objects, source, objects.checkpoint)
    check_teacher(objects, teacher)
    check(objects, source, teacher, given)
    check_training(objects, source)
    last = LastRound(objects, source, teacher, {})
    if objects.rounds is not None:
        with _timed(folder, "earlier_rounds"):
            last = earlier_rounds(objects, source, teacher, previous, folder)
    tracking = start_tracking(last.objects, folder)
    runner = runner_of(last.objects, tracking)
    with _timed(folder, "prune"):
        if given is None:
            decision = decide(last.objects, last.net, runner, folder)
        else:
            log.info(
                "run: applying %s; pruner, scheme, keep, units and budget are not used",
                objects.decision_path,
            )
            decision = given
            write_pruned(objects, source, decision, folder)
            if is_first_rank():
                decision.save(folder / decision.file_name)
    with _timed(folder, "recover"):
        student = first_student(last.objects, last.net, decision)
        recover_into(folder, last.objects, runner, student, last.teacher, decision)
    with _timed(folder, "evaluate"):
        nets = {SOURCE: source, **last.earlier}
        if objects.evaluation is not None:
            nets[CUT] = prune(last.net, decision)
            score(folder, objects, objects.evaluation, nets, decision, tracking)
        elif is_first_rank():
            write_sizes(folder, nets, decision, tracking)
    tracking.finish()


def check(
    objects: Objects, source: Backbone, teacher: Backbone | None, given: Decision | None
) -> None:
    """Refuse a recovery that can't be, before anything is chosen.

    Args:
        objects: the command's.
        source: the first model.
        teacher: the network to distil from.
        given: the decision, if it is not to be made.

    Raises:
        InputError: see `recover_command.check`, or a budget that the model can't meet.
    """
    runner, pruner, recovery = runner_of(objects, None), objects.pruner, objects.recovery
    recover_command.check(objects, runner, source, teacher, given)
    if given is None:
        assert pruner is not None and recovery is not None
        if objects.rounds is None:
            planned = expected(pruner, source, objects.wanted, recovery)
        else:  # whose budgets were validated; the last one leaves least
            kept = tuple(range(min(objects.rounds.depths)))
            planned = with_scores(Decision(kept, source.depth), pruner, recovery)
        if planned is not None:
            recover_command.check(objects, runner, source, teacher, planned)


def write_sizes(
    folder: Path,
    nets: dict[str, Backbone],
    decision: Decision,
    tracking: Trackers,
) -> None:
    """Write ``metrics.json`` of a run without scores: depths and parameters only."""
    nets = nets | {AVERAGED: load_recovered(folder)}
    models = {
        name: {"depth": net.depth, "parameters": parameters(net)} for name, net in nets.items()
    }
    write_json(folder / METRICS_FILE, unscored(models, decision))
    tracking.scores(flat(models))
    log.info("run: recovered model in %s", folder / RECOVERED)


def score(
    folder: Path,
    objects: Objects,
    evaluation: Evaluation,
    nets: dict[str, Backbone],
    decision: Decision,
    tracking: Trackers,
) -> None:
    """Score source and students; write ``metrics.json``, ``table.md`` and ``samples.png``.

    All ranks share the work; the first one writes.

    Args:
        folder: the run's folder.
        objects: the command's, whose checkpoint is the source.
        evaluation: the protocol.
        nets: the source, models of earlier rounds and the pruned one; the recovered one is added.
        decision: how the (last) student was cut.
        tracking: where scores and samples are logged.
    """
    from tinyfusion.callbacks.evaluate import BEST  # imports Lightning

    source = nets[SOURCE]
    metrics = folder / METRICS_FILE
    group = joined_ranks(objects.trainer, objects.devices)
    # Told when the first rank has written what all load below.
    if group.from_first(metrics.is_file):
        if group.first:  # it may have been killed before they were logged
            tracking.scores(flat(read_json(metrics, "metrics")["models"]))
        return
    floor = cached_floor(objects, evaluation, group)
    timed = [*(name for name in nets if name != CUT), AVERAGED]
    nets = nets | {AVERAGED: load_recovered(folder), LIVE: load_recovered(folder, live=True)}
    best = folder / "recover" / BEST
    if (best / "config.json").is_file():
        nets[CHOSEN] = load_model(str(best))
    for net in nets.values():
        net.to(objects.device)
    rows: dict[str, dict[str, Any]] = {}
    for name, net in nets.items():
        if name == SOURCE:
            rows[name] = cached_score(objects, evaluation, net, group)
        else:
            rows[name] = evaluation.score(
                net,
                objects.process,
                objects.source,
                source,
                progress=objects.bars and group.first,
                dtype=objects.dtype,
                group=group,
            )
    if not group.first:
        return
    speeds = evaluation.speed({name: nets[name] for name in timed}, objects.process, objects.dtype)
    for name, speed in speeds.items():
        rows[name] |= {
            "images_per_s": speed["images_per_s"],
            "images_per_s_min": speed["images_per_s_min"],
            "images_per_s_max": speed["images_per_s_max"],
            "speed_up": speed["ratio"],
        }
    listed = [{"model": name, **for_table(row)} for name, row in rows.items()]
    title = f"{decision.method}: {protocol_line(evaluation, floor)}"
    drawn = {name: net for name, net in nets.items() if not name.startswith(f"{AVERAGED} (")}
    tracking.image("samples", sample_grid(folder, objects, evaluation, drawn))
    write_text(folder / "table.md", f"{title}\n\n{markdown_table(listed, COLUMNS)}\n")
    write_json(
        metrics,
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


@contextmanager
def _timed(folder: Path, phase: str) -> Iterator[None]:
    """Add the seconds spent in a phase to ``times.json`` (over interruptions, too)."""
    began = time.perf_counter()
    refused = False
    try:
        yield
    except InputError:
        refused = True
        raise
    finally:
        if not refused and is_first_rank():
            _add_time(folder, phase, time.perf_counter() - began)


def _add_time(folder: Path, phase: str, seconds: float) -> None:
    file = folder / TIMES_FILE
    times = read_json(file, "times") if file.is_file() else {}
    times[phase] = round(times.get(phase, 0.0) + seconds, 2)
    if torch.cuda.is_available():
        times["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    write_json(file, times)
