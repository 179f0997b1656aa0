"""`tinyfusion evaluate`: score one checkpoint, and the shared scoring of `run`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyfusion.backbones.contract import Backbone
from tinyfusion.commands.check_scores import check_images
from tinyfusion.commands.draw import Share, pack
from tinyfusion.commands.setup import Setup
from tinyfusion.data.image_sets import ImageSet
from tinyfusion.data.open_images import SAMPLES, open_images
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column, print_table
from tinyfusion.files import read_json, write_json
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.shown import floor_line, for_table
from tinyfusion.runtime.progress import ImageProgress
from tinyfusion.samplers.generate import Drawing
from tinyfusion.settings.compose import build
from tinyfusion.version import __version__

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
    setup = Setup(cfg, folder)
    if cfg.evaluation is None:
        raise InputError("evaluation=none leaves nothing to do; choose a protocol to score by")
    if setup.world > 1:
        log.warning(
            "evaluate: one of the %d devices is used; draw samples on all of them by 'tinyfusion "
            "sample', then score them by images=",
            setup.world,
        )
    if cfg.images is not None:
        _score_images(setup, cfg.images)
        return
    path = setup.teacher_path()
    net = setup.load(cfg.checkpoint)
    teacher = None if path is None else setup.load(path, key="teacher.path")
    evaluation = setup.evaluation
    assert evaluation is not None
    net.to(setup.device)
    row = evaluation.score(
        net,
        setup.process,
        setup.source,
        teacher,
        progress=setup.bars,
        dtype=setup.dtype,
        keep=(lambda drawing: _kept(setup, drawing)) if cfg.keep_samples else None,
    )
    speed = evaluation.speed({"model": net}, setup.process, setup.dtype).get("model", {})
    # With one model there is nothing for its speed to be a ratio to.
    row |= {key: value for key, value in speed.items() if key != "ratio"}
    floor = cached_floor(setup, evaluation)
    write_json(
        folder / "metrics.json",
        {"model": row, "protocol": evaluation.protocol(), "floor": floor},
    )
    title = protocol_line(evaluation, floor)
    print_table([{"model": Path(cfg.checkpoint).name, **for_table(row)}], COLUMNS, title)
    log.info("evaluate: figures in %s", folder / "metrics.json")


def _kept(setup: Setup, drawing: Drawing) -> ImageSet:
    """Samples of one seed as `tinyfusion sample` leaves them, in folders named by their seed."""
    folder = setup.folder / f"seed_{drawing.seed}"
    store = SampleStore(
        folder / SAMPLES, len(drawing), drawing.shape, drawing.batch_size, len(drawing), "png"
    )
    missing = store.missing()
    store.check_space(missing, packed=True)
    there = len(drawing) - store.images_in(missing)
    with ImageProgress("evaluate", len(drawing), there, bar=setup.bars) as progress:
        share = Share(store, drawing, set(missing), progress)
        share.fill_all(range(store.num_shards))
        share.wait()
    pack(folder, store, drawing.conditioning, drawing.batch_size)
    return store.images()


def _score_images(setup: Setup, path: str) -> None:
    """Write ``metrics.json`` for images that are there, and print it."""
    if not path:
        raise InputError("images= is empty; give an .npz batch or a folder, or null for a model")
    evaluation: Evaluation = build(setup.cfg.evaluation)
    images = open_images(path, None, "images")
    source = None if evaluation.reference is not None else setup.source
    check_images(evaluation, images, source)
    log.info("evaluate: %s images in %s", f"{len(images):,}", path)
    row: dict[str, Any] = {"images": len(images)}
    row |= evaluation.fidelity(images, source, setup.device, progress=setup.bars)
    floor = evaluation.floor(source, device=setup.device)
    protocol = evaluation.scoring(len(images))
    write_json(
        setup.folder / "metrics.json",
        {
            "images": row,
            "path": str(path),
            "protocol": protocol | {"sha256": evaluation.content(), "version": __version__},
            "floor": floor,
        },
    )
    against = protocol["reference"] or "the data's own images"
    title = "; ".join(
        filter(None, (f"{protocol['extractor']}, against {against}", floor_line(floor)))
    )
    columns = {"name": Column("images"), "images": Column("number", ",d")}
    columns |= {name: column for name, column in COLUMNS.items() if name in row}
    print_table([{"name": Path(path).name, **row}], columns, title)
    log.info("evaluate: figures in %s", setup.folder / "metrics.json")


def protocol_line(evaluation: Evaluation, floor: dict[str, float]) -> str:
    """The sampling protocol and the floor of FID in one line, to stand beside a table."""
    p = evaluation.protocol()
    against = "" if p["reference"] is None else f", against {p['reference']}"
    sampling = (
        f"{p['num_samples']} samples x {len(p['sampling_seeds'])} seed(s), {p['sampler']}, "
        f"guidance {p['guidance']}{against}"
    )
    return "; ".join(filter(None, (sampling, floor_line(floor))))


def cached_score(setup: Setup, evaluation: Evaluation, net: Backbone) -> dict[str, Any]:
    """Score the job's checkpoint, which many runs share (the teacher of a sweep), once."""
    return _cached(
        setup,
        evaluation,
        {"weights": setup.source_hash, "model": net.config()},
        lambda: evaluation.score(
            net, setup.process, setup.source, progress=setup.bars, dtype=setup.dtype
        ),
        f"scores of {setup.cfg.checkpoint}",
    )


def cached_floor(setup: Setup, evaluation: Evaluation) -> dict[str, float]:
    """FID between halves of the real data, computed once for all runs that share them."""
    return _cached(
        setup,
        evaluation,
        {"floor": True},
        lambda: evaluation.floor(setup.source, device=setup.device),
        "FID between halves of the real data",
    )


def _cached(
    setup: Setup,
    evaluation: Evaluation,
    key: dict[str, Any],
    compute: Callable[[], dict[str, Any]],
    what: str,
) -> dict[str, Any]:
    """A result kept under ``<output_root>/cache/``.

    It is keyed by ``key``, the data with its number of images, the process, the protocol and
    this package's version.
    """
    nodes = (setup.cfg.evaluation, setup.cfg.process, setup.cfg.data)
    key = key | {
        "config": [OmegaConf.to_container(node, resolve=True) for node in nodes],
        "images": len(setup.source),
        "precision": setup.trainer.precision,
        # Files may be replaced at their paths.
        "content": evaluation.content(),
        "version": __version__,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    file = Path(setup.cfg.output_root) / "cache" / f"{digest}.json"
    if file.is_file():
        log.info("evaluate: %s taken from %s", what, file)
        return read_json(file, "cached result")["result"]
    result = compute()
    write_json(file, {"key": key, "result": result})
    return result
