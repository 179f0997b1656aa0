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
from tinyfusion.errors import InputError
from tinyfusion.figures.table import Column, print_table
from tinyfusion.files import read_json, write_json
from tinyfusion.metrics.evaluation import Evaluation, for_table
from tinyfusion.stages.setup import Setup
from tinyfusion.version import __version__

log = logging.getLogger(__name__)

COLUMNS = {
    "model": Column("model"),
    "depth": Column("depth"),
    "parameters": Column("params", ",d"),
    "speed_up": Column("speed-up", ".2f"),
    "fid": Column("FID", ".3f"),
    "inception_score": Column("IS", ".2f"),
    "precision": Column("prec.", ".2f"),
    "recall": Column("recall", ".2f"),
    "held_out_loss": Column("held-out loss", ".4f"),
    "teacher_distance": Column("dist. to teacher", ".4f"),
}


def main(cfg: DictConfig, folder: Path) -> None:
    """Write ``metrics.json`` for ``checkpoint=`` and print it."""
    setup = Setup(cfg, folder)
    if cfg.evaluation is None:
        raise InputError("evaluation=none leaves nothing to do; choose a protocol to score by")
    path = cfg.teacher.path
    if path == "source":
        raise InputError(
            "teacher.path=source: a checkpoint does not hold the model it was cut from; give "
            "teacher.path=PATH, or teacher=none"
        )
    net = setup.load(cfg.checkpoint)
    teacher = None if path is None else setup.load(path, key="teacher.path")
    evaluation = setup.evaluation
    assert evaluation is not None
    net.to(setup.device)
    row = evaluation.score(net, setup.process, setup.source, teacher, progress=setup.bars)
    speed = evaluation.speed({"model": net}, setup.process).get("model", {})
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


def protocol_line(evaluation: Evaluation, floor: dict[str, float]) -> str:
    """The sampling protocol and the floor of FID in one line, to stand beside a table."""
    p = evaluation.protocol()
    against = "" if p["reference"] is None else f", against {p['reference']}"
    return (
        f"{p['num_samples']} samples x {len(p['sampling_seeds'])} seed(s), {p['sampler']}, "
        f"guidance {p['guidance']}{against}; FID between halves of the "
        f"real data {floor['fid_real_halves']:.2f} +- {floor['fid_real_halves_std']:.2f}"
    )


def cached_score(setup: Setup, evaluation: Evaluation, net: Backbone) -> dict[str, Any]:
    """Score the job's checkpoint, which many runs share (the teacher of a sweep), once."""
    return _cached(
        setup,
        {"weights": setup.source_hash, "model": net.config()},
        lambda: evaluation.score(net, setup.process, setup.source, progress=setup.bars),
        f"scores of {setup.cfg.checkpoint}",
    )


def cached_floor(setup: Setup, evaluation: Evaluation) -> dict[str, float]:
    """FID between halves of the real data, computed once for all runs that share them."""
    return _cached(
        setup,
        {"floor": True},
        lambda: evaluation.floor(setup.source, device=setup.device),
        "FID between halves of the real data",
    )


def _cached(
    setup: Setup, key: dict[str, Any], compute: Callable[[], dict[str, Any]], what: str
) -> dict[str, Any]:
    """A result kept under ``<output_root>/cache/``.

    It is keyed by ``key``, the data with its number of images, the process, the protocol and
    this package's version.
    """
    nodes = (setup.cfg.evaluation, setup.cfg.process, setup.cfg.data)
    key = key | {
        "config": [OmegaConf.to_container(node, resolve=True) for node in nodes],
        "images": len(setup.source),
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
