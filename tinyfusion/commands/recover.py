"""`tinyfusion recover`: train a pruned network back to quality."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.callbacks.resume import RESUME_FILE
from tinyfusion.checkpoints import load, save_model
from tinyfusion.commands.fresh import check_start, fresh_student
from tinyfusion.commands.prune import METRICS_FILE, cuts_width, flat, unscored
from tinyfusion.commands.setup import Setup
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.pipeline.origins import aligned_pairs, seams_of
from tinyfusion.ranks import is_first_rank
from tinyfusion.recovery.features import one_scale
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.stages import FirstStage
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.settings.compose import build
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
                f"checkpoint={cfg.checkpoint} records no removed blocks: give decision=PATH as "
                "well; or, if it was pruned in width, its source as teacher.path=PATH "
                "(teacher=none for recovery=finetune)"
            )
    teacher = load_teacher(setup, None if decision is None else net)
    check_recovery(setup, student, teacher)
    if decision is not None and is_first_rank():
        decision.save(folder / decision.file_name)
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
    if setup.cfg.start == "fresh":
        student = fresh_student(setup, student)
    module = new_module(setup, student, teacher, decision)
    stage_folder = folder / "recover"
    setup.fit(module, "recovery", stage_folder)
    setup.log_figures(stage_folder)
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
        "start": setup.cfg.start,
    }
    if module.pair_weights is not None:
        provenance["feature_weights"] = module.pair_weights
    if module.first is not None:
        provenance["first_stage_steps"] = module.first.steps
    if decision is not None:
        provenance["decision"] = decision.summary()
    # Not the student given above: that one may have been divided among the devices.
    trained = module.trained_net
    save_model(trained, folder / RECOVERED_LIVE, provenance | {"weights": "live"})
    with module.ema.averaged(trained):
        save_model(trained, folder / RECOVERED, provenance | {"weights": "averaged"})
    (stage_folder / RESUME_FILE).unlink(missing_ok=True)


def new_module(
    setup: Setup,
    student: Backbone,
    teacher: Backbone | None,
    decision: Decision | None,
    at: Sequence[int] | None = None,
) -> Recovery:
    """The training of ``student``, not begun.

    Args:
        setup: the job.
        student: the pruned network; trained in place.
        teacher: the network to distil from, if the recovery needs one.
        decision: how the student was cut, if known.
        at: the student's blocks next to a removal; ``None`` finds them by `seams_of`.

    Raises:
        InputError: student and teacher can't be compared.
    """
    objective = check_recovery(setup, student, teacher)
    settings = setup.settings("recovery")
    pairs = aligned_pairs(student, teacher, decision) if objective.uses_features else []
    weights = None
    if objective.feature_scale == "teacher" and pairs:
        blocks = [block for _, block in pairs]
        sizes = setup.state_sizes(teacher, blocks, objective.calibration_samples)
        weights = one_scale(sizes, blocks)
    first: FirstStage | None = None
    if objective.stages is not None:
        at = seams_of(student, teacher, decision) if at is None else at
        first = objective.stages.first_stage(student, at, settings.steps)
    return Recovery(
        student,
        None if teacher is None else FrozenTeacher(teacher),
        objective,
        pairs,
        settings.ema_decay,
        weights,
        first,
        **setup.shared("recovery", student),
    )


def check_recovery(setup: Setup, net: Backbone, teacher: Backbone | None) -> Objective:
    """The recovery's objective, held against the networks and the length of training.

    Args:
        setup: the job.
        net: the student, or the model that it is to be cut from.
        teacher: the network to distil from.

    Raises:
        InputError: networks that can't be compared, an unknown start, or stages that can't be.
    """
    check_start(setup.cfg.start)
    objective: Objective = build(setup.cfg.recovery)
    if objective.uses_features and cuts_width(setup.cfg):
        raise InputError(
            "this recovery compares hidden states, whose width the student won't share with its "
            "teacher: widths are cut here, not blocks; give recovery=kd or recovery=finetune"
        )
    objective.check(net, teacher, setup.process)
    steps = setup.settings("recovery").steps
    if objective.stages is not None:
        if setup.cfg.start == "fresh":
            raise InputError(
                "start=fresh: all weights are new, so there is nothing that stages= could "
                "train first; give stages=none, or start=kept"
            )
        if cuts_width(setup.cfg):
            raise InputError(
                "stages=seams_first trains the blocks next to a removal first, but a pruner of "
                "widths removes none; give stages=none"
            )
        objective.stages.check(net, steps)
    return objective


def load_recovered(folder: Path, live: bool = False) -> Backbone:
    """The recovered network of a run's folder, with averaged or live weights."""
    return load(str(folder / (RECOVERED_LIVE if live else RECOVERED)))
