"""`tinyfusion activations`: massive hidden states, and what masked distillation leaves out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.checkpoints import read_checkpoint
from tinyfusion.checkpoints.lineage import lineage
from tinyfusion.commands.checks import check_data, check_latents
from tinyfusion.commands.loading import flat, load, other_teacher, start_tracking
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column
from tinyfusion.figures.terminal_table import print_table
from tinyfusion.files import write_json
from tinyfusion.metrics.activations import check_request, collect, over_all_blocks
from tinyfusion.metrics.state_summary import StateSummary, by_threshold, symlog_edges
from tinyfusion.progress import Progress
from tinyfusion.recovery.alignment import alignment
from tinyfusion.recovery.objective import STATE_KEYS, check_alike
from tinyfusion.recovery.origins import aligned_pairs
from tinyfusion.settings.objects import Objects, objects_of
from tinyfusion.version import __version__

log = logging.getLogger(__name__)

ACTIVATIONS_FILE, FIGURE_FILE = "activations.json", "activations.png"


def main(cfg: DictConfig, folder: Path) -> None:
    """Write ``activations.json`` and ``activations.png``, and print what they show.

    ``checkpoint=`` alone is described as one model; with ``teacher.path=`` both see the same
    inputs, and the blocks that masked distillation compares are compared.
    """
    objects = objects_of(cfg)
    num_sigmas = sorted(float(k) for k in cfg.num_sigmas)
    check_request(objects.source, cfg.samples, cfg.batch_size, num_sigmas)
    student = _load(objects, cfg.checkpoint, "checkpoint")
    teacher = _load_teacher(objects, student)
    pairs = [] if teacher is None else _pairs(objects, student, teacher)
    objects.check_machine()
    for net in (student, teacher):
        if net is not None:
            net.to(objects.device)
    tracking = start_tracking(objects, folder)
    with Progress("activations", cfg.samples, bar=objects.bars) as progress:
        found = collect(
            student,
            objects.process,
            objects.source,
            cfg.samples,
            num_sigmas,
            teacher,
            pairs,
            cfg.batch_size,
            objects.seed,
            progress,
        )
    models = {}
    if teacher is not None:
        models["teacher"] = _described(teacher, found.teacher, num_sigmas)
    name = "model" if teacher is None else "student"
    models[name] = _described(student, found.student, num_sigmas)
    compared = [pair.as_dict() for pair in found.pairs]
    settings = _settings(objects, num_sigmas)
    write_json(
        folder / ACTIVATIONS_FILE,
        {
            "settings": settings,
            "edges": symlog_edges().tolist(),
            "models": models,
            "pairs": compared,
        },
    )
    title = f"{cfg.samples} noised training images, seed {objects.seed}, float32"
    names = list(by_threshold(num_sigmas, num_sigmas))
    _print_models(models, names, title)
    if compared:
        _print_pairs(compared, names)
    _warn(models)
    tracking.scores(flat({name: _scalars(model["whole"]) for name, model in models.items()}))
    if all(model["whole"]["count"] for model in models.values()):
        from tinyfusion.figures.activations import massive_activations  # imports matplotlib

        figure = massive_activations(models, symlog_edges().tolist(), folder / FIGURE_FILE)
        tracking.image("activations", figure)
    tracking.finish()
    log.info("activations: figures in %s", folder / ACTIVATIONS_FILE)


def _load(objects: Objects, path: str | None, key: str) -> Backbone:
    """A model that fits the data; nothing is sampled, so no sampler has to fit it."""
    net = load(objects, path, key)
    check_latents(objects.source, objects.process)
    check_data(net, objects.source, path or key)
    return net


def _load_teacher(objects: Objects, student: Backbone) -> Backbone | None:
    """The model to compare with, if one is given.

    Raises:
        InputError: one that can't be known, or whose states have another shape.
    """
    path = other_teacher(objects)
    if path is None:
        return None
    teacher = _load(objects, path, "teacher.path")
    advice = "their hidden states can't be compared; look at each alone, with teacher=none"
    check_alike(student, teacher, STATE_KEYS, advice)
    return teacher


def _pairs(objects: Objects, student: Backbone, teacher: Backbone) -> list[tuple[int, int]]:
    """The blocks that recovery compares, by all that the student's file tells of its decision.

    Two models of one depth, neither of them pruned, are compared block by block.

    Raises:
        InputError: it is not known which of the teacher's blocks the student kept.
    """
    if student.kept_from is None and teacher.kept_from is None and student.depth == teacher.depth:
        return alignment(range(student.depth), teacher.depth, None, teacher.borders)
    known = lineage(read_checkpoint(str(objects.checkpoint), objects.weights)).get("decision") or {}
    decision = None
    if "kept" in known:
        keys = ("kept", "source_depth", "scheme")
        decision = Decision(**{key: known[key] for key in keys if key in known})
    try:
        return aligned_pairs(student, teacher, decision)
    except InputError:
        raise InputError(
            f"checkpoint={objects.checkpoint} ({student.depth} blocks) does not record which "
            f"blocks of teacher.path={objects.teacher_path} ({teacher.depth} blocks) it kept; "
            "give the model folder that pruning wrote, the teacher that it was cut from, or "
            "teacher=none for one model alone"
        ) from None


def _described(
    net: Backbone, summaries: Sequence[StateSummary], num_sigmas: Sequence[float]
) -> dict[str, Any]:
    """Plain data about one model."""
    places = net.kept_from or range(net.depth)
    blocks = [
        {"block": index, "place": place, **summary.as_dict(num_sigmas)}
        for index, (place, summary) in enumerate(zip(places, summaries, strict=True))
    ]
    together = over_all_blocks(summaries).as_dict(num_sigmas)
    return {
        "depth": net.depth,
        "kept_from": None if net.kept_from is None else list(net.kept_from),
        "whole": {"blocks": net.depth, **together},
        "blocks": blocks,
    }


def _settings(objects: Objects, num_sigmas: Sequence[float]) -> dict[str, Any]:
    return {
        "checkpoint": objects.checkpoint,
        "teacher": objects.teacher_path,
        "data": type(objects.source).__name__,
        "process": type(objects.process).__name__,
        "samples": objects.config["samples"],
        "batch_size": objects.config["batch_size"],
        "seed": objects.seed,
        "num_sigmas": list(num_sigmas),
        "precision": "float32",
        "device": str(objects.device),
        "version": __version__,
    }


def _print_models(models: dict[str, Any], names: Sequence[str], title: str) -> None:
    """The states after each block of each model, and after all of them."""
    columns = {
        "model": Column("model"),
        "block": Column("block"),
        "place": Column("unpruned"),
        "std": Column("std", ".2f"),
        "min": Column("min", ".2f"),
        "max": Column("max", ".2f"),
        "channel": Column("channel"),
        **{name: Column(f"> {name} sigma", ".3%") for name in names},
    }
    if all(model["kept_from"] is None for model in models.values()):
        del columns["place"]
    rows = []
    for name, model in models.items():
        for found in (*model["blocks"], model["whole"]):
            top = found["top_channels"]
            row = {key: found.get(key) for key in ("block", "place", "std", "min", "max")}
            row |= {"model": name, "channel": top[0]["channel"] if top else None}
            rows.append(row | found["dropped"])
        rows[-1]["model"] = f"{name}, all blocks"
    print_table(rows, columns, f"Hidden states; {title}; channel: that of the largest magnitude")


def _print_pairs(pairs: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """What the loss drops and sees of each pair, and on the mean of all, which it minimises."""
    columns = {"student_block": Column("student"), "teacher_block": Column("teacher")}
    columns |= {f"dropped {name}": Column(f"drops {name}", ".3%") for name in names}
    columns |= {"none": Column("unmasked", ".4g")}
    for mask in ("separate", "intersection"):
        columns |= {f"{mask} {name}": Column(f"{mask} {name}", ".4g") for name in names}
    rows = []
    for pair in pairs:
        row = {key: pair[key] for key in ("student_block", "teacher_block")}
        row["none"] = pair["distance"]["none"]
        for name in names:
            row[f"dropped {name}"] = pair["dropped_by_either"][name]
            for mask in ("separate", "intersection"):
                row[f"{mask} {name}"] = pair["distance"][mask][name]
        rows.append(row)
    numbers = [key for key in columns if not key.endswith("_block")]
    means = {key: sum(row[key] for row in rows) / len(rows) for key in numbers}
    title = (
        "Pairs of blocks that recovery compares: entries beyond k sigma on either side, and the "
        "mean squared distance, unmasked and by both readings of the mask (last row: means)"
    )
    print_table([*rows, means], columns, title)


def _warn(models: dict[str, Any]) -> None:
    for name, model in models.items():
        if model["whole"]["non_finite"]:
            log.warning(
                "activations: %d hidden states of the %s are no finite numbers; all other figures "
                "leave them out",
                model["whole"]["non_finite"],
                name,
            )


def _scalars(whole_model: dict[str, Any]) -> dict[str, float]:
    """What trackers are given of a model."""
    values = {key: whole_model[key] for key in ("min", "max", "std", "non_finite")}
    return values | {f"dropped_{k}_sigma": v for k, v in whole_model["dropped"].items()}
