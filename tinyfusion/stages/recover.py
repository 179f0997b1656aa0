"""`tinyfusion recover`: train a pruned network back to quality."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.callbacks.resume import RESUME_FILE
from tinyfusion.checkpoints import load, save_model
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.ranks import is_first_rank
from tinyfusion.recovery.alignment import alignment
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.settings.compose import build
from tinyfusion.stages.prune import DECISION_FILE, METRICS_FILE, flat, unscored
from tinyfusion.stages.setup import Setup
from tinyfusion.surgery import prune
from tinyfusion.training.recovery import Recovery

log = logging.getLogger(__name__)

RECOVERED, RECOVERED_LIVE = "recovered", "recovered_live"


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``: ``recovered/``, ``recovered_live/`` and ``metrics.json``.

    ``checkpoint=`` is the full model together with ``decision=``, or an already pruned model;
    then ``teacher.path=`` names the model to distil from.
    """
    setup = Setup(cfg, folder)
    net = setup.load(cfg.checkpoint)
    decision = None
    if cfg.decision is not None:
        decision = Decision.load(cfg.decision)
        warn_of_other_weights(setup, decision)
        student = prune(net, decision)
    else:
        student = net
        if net.kept_from is None and setup.cfg.teacher.path == "source":
            raise InputError(
                f"checkpoint={cfg.checkpoint} is not pruned: give decision=PATH as well, or the "
                "pruned model as checkpoint and its source as teacher.path=PATH"
            )
    teacher = load_teacher(setup, None if decision is None else net)
    if decision is not None and is_first_rank():
        decision.save(folder / DECISION_FILE)
    # Pruning copies: the student is trained in place and its teacher and source are not.
    before = setup.summary(student, teacher) if is_first_rank() else {}
    recover(setup, student, teacher, decision)
    if is_first_rank():
        write_metrics(setup, before, teacher, decision)
    setup.tracking.finish()
    log.info("recover: recovered checkpoint in %s", folder / RECOVERED)


def warn_of_other_weights(setup: Setup, decision: Decision) -> None:
    """Say so if a decision was made from other weights than it is applied to."""
    found = setup.source_hash
    if decision.source_sha256 not in (None, found):
        log.warning(
            "decision=%s was made from other weights (SHA-256 %s...) than those of checkpoint=%s "
            "(%s...)",
            setup.cfg.decision,
            decision.source_sha256[:12],
            setup.cfg.checkpoint,
            found[:12],
        )


def write_metrics(
    setup: Setup, before: dict[str, float], teacher: Backbone | None, decision: Decision | None
) -> None:
    """Write ``metrics.json``: size, held-out loss and distance to the teacher, before and after.

    Args:
        setup: the job.
        before: figures of the student before training.
        teacher: the network that was distilled from.
        decision: how the student was cut, if known.
    """
    models = {
        "pruned": before,
        "recovered": setup.summary(load_recovered(setup.folder), teacher),
        "recovered (live weights)": setup.summary(load_recovered(setup.folder, True), teacher),
    }
    record = read_json(setup.folder / RECOVERED / "config.json", "config")["provenance"]
    content = unscored(models, decision) | {"skipped_steps": record["skipped_steps"]}
    write_json(setup.folder / METRICS_FILE, content)
    setup.tracking.scores(flat(models))


def load_teacher(setup: Setup, source: Backbone | None) -> Backbone | None:
    """The network to distil from, or ``None`` if the recovery needs none.

    Args:
        setup: the job.
        source: the unpruned model, if it is at hand.

    Raises:
        InputError: a teacher is needed and none is given.
    """
    objective: Objective = build(setup.cfg.recovery)
    path = setup.cfg.teacher.path
    if not objective.uses_teacher or path is None:
        return None
    if path != "source":
        return setup.load(path, key="teacher.path")
    if source is None:
        raise InputError(
            "teacher.path=source means the unpruned model, which a pruned checkpoint does not "
            "hold: give teacher.path=PATH, or checkpoint=UNPRUNED with decision=PATH"
        )
    return source


def recover(
    setup: Setup, student: Backbone, teacher: Backbone | None, decision: Decision | None
) -> None:
    """Train the student; write ``recovered/`` (averaged weights) and ``recovered_live/``.

    Raises:
        InputError: student and teacher can't be compared.
    """
    folder = setup.folder
    if all((folder / name / "config.json").is_file() for name in (RECOVERED, RECOVERED_LIVE)):
        log.info("recover: taking the model in %s", folder / RECOVERED)
        return
    settings = setup.settings("recovery")
    module = new_module(setup, student, teacher, decision)
    stage_folder = folder / "recover"
    setup.fit(module, "recovery", stage_folder)
    if not is_first_rank():
        return
    provenance = {
        "recovered_from": str(setup.cfg.checkpoint),
        "source_sha256": setup.source_hash,
        "steps": settings.steps,
        "images_seen": settings.steps * settings.batch_size,
        "seed": setup.seed,
        "skipped_steps": module.skipped_steps,
        "alignment": [list(pair) for pair in module.pairs],
    }
    if decision is not None:
        provenance["decision"] = decision.summary()
    # Not the student given above: that one may have been divided among the devices.
    trained = module.trained_net
    save_model(trained, folder / RECOVERED_LIVE, provenance | {"weights": "live"})
    with module.ema.averaged(trained):
        save_model(trained, folder / RECOVERED, provenance | {"weights": "averaged"})
    (stage_folder / RESUME_FILE).unlink(missing_ok=True)


def new_module(
    setup: Setup, student: Backbone, teacher: Backbone | None, decision: Decision | None
) -> Recovery:
    """The training of ``student``, not begun.

    Raises:
        InputError: student and teacher can't be compared.
    """
    objective: Objective = build(setup.cfg.recovery)
    objective.check(student, teacher, setup.process)
    return Recovery(
        student,
        None if teacher is None else FrozenTeacher(teacher),
        objective,
        aligned_pairs(student, teacher, decision) if objective.uses_features else [],
        setup.settings("recovery").ema_decay,
        **setup.shared("recovery", student),
    )


def aligned_pairs(
    student: Backbone, teacher: Backbone, decision: Decision | None
) -> list[tuple[int, int]]:
    """Pairs (student block, teacher block) whose hidden states are compared.

    Args:
        student: the pruned network.
        teacher: the network to distil from.
        decision: how the student was cut from the teacher; without it the records of both
            networks are used.

    Raises:
        InputError: it is not known which of the teacher's blocks the student kept.
    """
    if decision is not None and decision.source_depth == teacher.depth:
        return alignment(decision.kept, teacher.depth, decision.groups, teacher.borders)
    # Both records point into the first model of the chain; the teacher may be pruned itself.
    origin = list(teacher.kept_from or range(teacher.depth))
    kept = student.kept_from
    if kept is None or not set(kept) <= set(origin):
        raise InputError(
            f"a student of {student.depth} blocks can't be aligned with this teacher of "
            f"{teacher.depth}: it is not known which of the teacher's blocks it kept; give "
            "decision=PATH, or a recovery that compares no hidden states (recovery=kd)"
        )
    kept_here = [origin.index(block) for block in kept]
    return alignment(kept_here, teacher.depth, borders=teacher.borders)


def load_recovered(folder: Path, live: bool = False) -> Backbone:
    """The recovered network of a run's folder, with averaged or live weights."""
    return load(str(folder / (RECOVERED_LIVE if live else RECOVERED)))
