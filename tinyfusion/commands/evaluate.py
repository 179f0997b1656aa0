"""`tinyfusion evaluate`: score one checkpoint, and the shared scoring of `run`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.commands.check_scores import check_images
from tinyfusion.commands.loading import check_loaded, flat, load, other_teacher, start_tracking
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.image_sets import ImageSet
from tinyfusion.data.open_images import open_images
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column
from tinyfusion.figures.terminal_table import print_table
from tinyfusion.files import write_json
from tinyfusion.group import Group
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.features import extractor_class
from tinyfusion.metrics.reporting import floor_line, for_table, guidance_words
from tinyfusion.pipeline.devices import joined_ranks
from tinyfusion.pipeline.scoring import first_samples, kept_samples, remembered
from tinyfusion.progress import Progress
from tinyfusion.samplers.generate import Drawing, balanced_labels
from tinyfusion.settings.objects import Objects, objects_of
from tinyfusion.tracking.keys import METRICS_FILE
from tinyfusion.version import __version__, code_digest, modules_of

log = logging.getLogger(__name__)

COLUMNS = {
    "model": Column("model"),
    "depth": Column("depth"),
    "parameters": Column("params", ",d"),
    "speed_up": Column("speed-up", ".2f"),
    "fid": Column("FID", ".3f"),
    "sfid": Column("sFID", ".3f"),
    "inception_score": Column("IS", ".2f"),
    "precision": Column("prec.", ".2f"),
    "recall": Column("recall", ".2f"),
    "held_out_loss": Column("held-out loss", ".4f"),
    "teacher_distance": Column("dist. to teacher", ".4f"),
}


def main(cfg: DictConfig, folder: Path) -> None:
    """Write ``metrics.json`` for ``checkpoint=``, or for ``images=``, and print it."""
    objects = objects_of(cfg)
    evaluation = objects.evaluation
    if evaluation is None:
        raise InputError("evaluation=none leaves nothing to do; choose a protocol to score by")
    group = joined_ranks(objects.trainer, objects.devices)
    if cfg.images is not None:
        _score_images(objects, evaluation, cfg.images, group, folder)
        return
    path = other_teacher(objects)
    net = load(objects, objects.checkpoint)
    teacher = None if path is None else load(objects, path, key="teacher.path")
    check_loaded(objects, net, objects.checkpoint)
    if teacher is not None:
        check_loaded(objects, teacher, path, key="teacher.path")
    objects.check_machine()
    tracking = start_tracking(objects, folder)
    net.to(objects.device)
    bars = objects.bars and group.first

    def keep(drawing: Drawing) -> ImageSet:
        """Samples of one seed as `tinyfusion sample` leaves them, in folders named by it."""
        with Progress("evaluate", len(drawing), bar=bars) as progress:
            return kept_samples(folder / f"seed_{drawing.seed}", drawing, group, progress.reach)

    row = evaluation.score(
        net,
        objects.process,
        objects.source,
        teacher,
        progress=bars,
        dtype=objects.dtype,
        keep=keep if cfg.keep_samples else None,
        group=group,
    )
    floor = cached_floor(objects, evaluation, group)
    if not group.first:
        return
    speed = evaluation.speed({"model": net}, objects.process, objects.dtype).get("model", {})
    # With one model there is nothing for its speed to be a ratio to.
    row |= {key: value for key, value in speed.items() if key != "ratio"}
    write_json(
        folder / METRICS_FILE,
        {"model": row, "protocol": evaluation.protocol(), "floor": floor},
    )
    tracking.image("samples", sample_grid(folder, objects, evaluation, {"model": net}))
    tracking.scores(flat({"model": row}))
    tracking.finish()
    title = protocol_line(evaluation, floor)
    print_table([{"model": Path(str(objects.checkpoint)).name, **for_table(row)}], COLUMNS, title)
    log.info("evaluate: figures in %s", folder / METRICS_FILE)


def _score_images(
    objects: Objects, evaluation: Evaluation, path: str, group: Group, folder: Path
) -> None:
    """Write ``metrics.json`` for images that are there, and print it."""
    if not path:
        raise InputError("images= is empty; give an .npz batch or a folder, or null for a model")
    images = open_images(path, None, "images")
    source = None if evaluation.reference is not None else objects.source
    check_images(evaluation, images, source)
    objects.check_machine()
    tracking = start_tracking(objects, folder)
    log.info("evaluate: %s images in %s", f"{len(images):,}", path)
    row: dict[str, Any] = {"images": len(images)}
    bars = objects.bars and group.first
    row |= evaluation.fidelity(images, source, objects.device, progress=bars, group=group)
    floor = evaluation.floor(source, device=objects.device, group=group)
    if not group.first:
        return
    protocol = evaluation.scoring(len(images))
    write_json(
        folder / METRICS_FILE,
        {
            "images": row,
            "path": str(path),
            "protocol": protocol | {"sha256": evaluation.content(), "version": __version__},
            "floor": floor,
        },
    )
    tracking.scores(flat({"images": row}))
    tracking.finish()
    against = protocol["reference"] or "the data's own images"
    title = "; ".join(
        filter(None, (f"{protocol['extractor']}, against {against}", floor_line(floor)))
    )
    columns = {"name": Column("images"), "images": Column("number", ",d")}
    columns |= {name: column for name, column in COLUMNS.items() if name in row}
    print_table([{"name": Path(path).name, **row}], columns, title)
    log.info("evaluate: figures in %s", folder / METRICS_FILE)


def sample_grid(
    folder: Path, objects: Objects, evaluation: Evaluation, nets: Mapping[str, Backbone]
) -> Path:
    """Draw ``samples.png``: a row of samples per model, a column per class, from the same noise.

    Args:
        folder: the run's folder.
        objects: the command's.
        evaluation: says how to sample.
        nets: the models by name.
    """
    from tinyfusion.figures.grid import comparison_grid  # imports matplotlib

    classes = min(10, objects.source.num_classes)
    labels = ClassLabels(balanced_labels(classes, classes))
    rows = first_samples(evaluation, nets, objects.process, labels, objects.seed + 1, objects.dtype)
    path = comparison_grid(rows, folder / "samples.png")
    return Path(path or folder / "samples.png")


def protocol_line(evaluation: Evaluation, floor: dict[str, float]) -> str:
    """The sampling protocol and the floor of FID in one line, to stand beside a table."""
    p = evaluation.protocol()
    against = "" if p["reference"] is None else f", against {p['reference']}"
    sampling = (
        f"{p['num_samples']} samples x {len(p['sampling_seeds'])} seed(s), {p['sampler']}, "
        f"{guidance_words(p)}{against}"
    )
    return "; ".join(filter(None, (sampling, floor_line(floor))))


def cached_score(
    objects: Objects, evaluation: Evaluation, net: Backbone, group: Group
) -> dict[str, Any]:
    """Score the job's checkpoint, which many runs share (the teacher of a sweep), once."""
    return _cached(
        objects,
        evaluation,
        {"weights": objects.source_sha256, "model": net.config()},
        lambda: evaluation.score(
            net,
            objects.process,
            objects.source,
            progress=objects.bars and group.first,
            dtype=objects.dtype,
            group=group,
        ),
        f"scores of {objects.checkpoint}",
        group,
        net,
    )


def cached_floor(objects: Objects, evaluation: Evaluation, group: Group) -> dict[str, float]:
    """FID between halves of the real data, computed once for all runs that share them."""
    return _cached(
        objects,
        evaluation,
        {"floor": True},
        lambda: evaluation.floor(objects.source, device=objects.device, group=group),
        "FID between halves of the real data",
        group,
    )


def _cached(
    objects: Objects,
    evaluation: Evaluation,
    key: dict[str, Any],
    compute: Callable[[], dict[str, Any]],
    what: str,
    group: Group,
    *also: object,
) -> dict[str, Any]:
    """A result kept under ``<output_root>/cache/``.

    It is keyed by ``key``, the data with its number of images, the process, the protocol and the
    code that computes it.
    """
    extractor = extractor_class(evaluation.extractor)
    parts = (evaluation, evaluation.sampler, evaluation.autoencoder, extractor, objects.process)

    def key_of_all() -> dict[str, Any]:
        return key | {
            "config": [objects.config[key] for key in ("evaluation", "process", "data")],
            "images": len(objects.source),
            "precision": objects.trainer.precision,
            # Files may be replaced at their paths.
            "content": evaluation.content(),
            "code": code_digest(*modules_of(*parts, objects.source, *also)),
        }

    return remembered(objects.output_root / "cache", key_of_all, compute, what, group)
