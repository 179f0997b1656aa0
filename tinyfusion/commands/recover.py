"""`tinyfusion recover`: train a pruned network back to quality."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from tinyfusion.backbones.contract import Backbone
from tinyfusion.checkpoints import load as load_model
from tinyfusion.checkpoints import save_model
from tinyfusion.commands.loading import (
    check_loaded,
    check_training,
    flat,
    load,
    ranks_of,
    runner_of,
    start_tracking,
    summary,
    trained_with,
)
from tinyfusion.commands.prune import unscored
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json
from tinyfusion.pipeline.pruning import cuts_width
from tinyfusion.pipeline.recovering import fresh_student, recover, student_of
from tinyfusion.pipeline.recovery_checks import AVERAGED, check_recovery, starts_whole
from tinyfusion.pipeline.runner import PhaseRunner, forget
from tinyfusion.ranks import is_first_rank
from tinyfusion.recovery.fading import NO_DECISION
from tinyfusion.settings.objects import SOURCE, Objects, objects_of
from tinyfusion.surgery import prune
from tinyfusion.tracking.keys import METRICS_FILE

log = logging.getLogger(__name__)

RECOVERED, RECOVERED_LIVE = "recovered", "recovered_live"
MODELS = (RECOVERED, RECOVERED_LIVE)
"""Model folders that the command writes: averaged and live weights."""


def main(cfg: DictConfig, folder: Path) -> None:
    """Run the command in ``folder``: ``recovered/``, ``recovered_live/`` and ``metrics.json``.

    ``checkpoint=`` is the full model together with ``decision=``, or an already pruned model;
    then ``teacher.path=`` names the model to distil from.
    """
    objects = objects_of(cfg)
    net = load(objects, objects.checkpoint)
    decision = None if objects.decision_path is None else given_decision(objects)
    student = first_student(objects, net, decision)
    if decision is None and net.kept_from is None and objects.teacher_path == SOURCE:
        raise InputError(
            f"checkpoint={objects.checkpoint} records no removed blocks: give decision=PATH as "
            "well; or, if it was pruned in width, its source as teacher.path=PATH "
            "(teacher=none for recovery=finetune)"
        )
    teacher = load_teacher(objects, None if decision is None else net)
    check_loaded(objects, net, objects.checkpoint)
    check_teacher(objects, teacher)
    check(objects, runner_of(objects, None), student, teacher, decision)
    check_training(objects, student)
    tracking = start_tracking(objects, folder)
    runner = runner_of(objects, tracking)
    if decision is not None and is_first_rank():
        decision.save(folder / decision.file_name)
    # Pruning copies: the student is trained in place and its teacher and source are not.
    before = {}
    if is_first_rank():
        assert objects.recovery is not None
        whole = decision is not None and starts_whole(objects.recovery)
        cut = prune(net, decision) if decision is not None and whole else student
        before = summary(objects, cut, teacher)
    recover_into(folder, objects, runner, student, teacher, decision)
    if is_first_rank():
        models = {
            "pruned": before,
            "recovered": summary(objects, load_recovered(folder), teacher),
            "recovered (live weights)": summary(objects, load_recovered(folder, True), teacher),
        }
        record = read_json(folder / RECOVERED / "config.json", "config")["provenance"]
        content = unscored(models, decision) | {"skipped_steps": record["skipped_steps"]}
        write_json(folder / METRICS_FILE, content)
        tracking.scores(flat(models))
    tracking.finish()
    log.info("recover: recovered checkpoint in %s", folder / RECOVERED)


def given_decision(objects: Objects) -> Decision:
    """The decision that ``decision=`` names; says so if it was made from other weights.

    Raises:
        InputError: the file can't be read, or is no decision.
    """
    assert objects.decision_path is not None
    decision = Decision.load(objects.decision_path)
    found = objects.source_sha256
    if decision.source_sha256 not in (None, found):
        log.warning(
            "decision=%s was made from other weights (SHA-256 %s...) than those of checkpoint=%s "
            "(%s...)",
            objects.decision_path,
            decision.source_sha256[:12],
            objects.checkpoint,
            found[:12],
        )
    return decision


def load_teacher(objects: Objects, source: Backbone | None) -> Backbone | None:
    """The network to distil from, or ``None`` if the recovery needs none.

    Args:
        objects: the command's.
        source: the unpruned model, if it is at hand.

    Raises:
        InputError: a teacher is needed and none is given.
    """
    assert objects.recovery is not None
    path = objects.teacher_path
    if not objects.recovery.uses_teacher or path is None:
        return None
    if path != SOURCE:
        return load(objects, path, key="teacher.path")
    if source is None:
        raise InputError(
            "teacher.path=source means the unpruned model, which a pruned checkpoint does not "
            "hold: give teacher.path=PATH, or checkpoint=UNPRUNED with decision=PATH"
        )
    return source


def check_teacher(objects: Objects, teacher: Backbone | None) -> None:
    """Validate a teacher of a file of its own against the data.

    Raises:
        InputError: see `check_loaded`.
    """
    if teacher is not None and objects.teacher_path != SOURCE:
        check_loaded(objects, teacher, objects.teacher_path, key="teacher.path")


def check(
    objects: Objects,
    runner: PhaseRunner,
    net: Backbone,
    teacher: Backbone | None,
    decision: Decision | None,
) -> None:
    """Refuse a recovery that can't be, before any work; see `check_recovery`.

    Args:
        objects: the command's.
        runner: settings of phases.
        net: the student, or the model that it is to be cut from.
        teacher: the network to distil from.
        decision: how the student is cut, if that is known.
    """
    assert objects.recovery is not None
    check_recovery(
        objects.recovery,
        net,
        teacher,
        runner,
        objects.start,
        cuts_width(objects.pruner, decision),
        decision,
    )


def first_student(objects: Objects, net: Backbone, decision: Decision | None) -> Backbone:
    """The network that recovery begins with: a copy of ``net``, or itself without a decision.

    Args:
        objects: the command's.
        net: the source model; a pruned one if there is no decision.
        decision: what of it stays.

    Raises:
        InputError: means of removed blocks, or their removal in training, are asked for and it is
            not known which are removed.
    """
    assert objects.recovery is not None
    if decision is not None:
        return student_of(objects.recovery, net, decision, objects.start)
    if objects.start == AVERAGED:
        raise InputError(
            "start=averaged takes means over removed blocks: give the whole model as checkpoint= "
            "with decision=PATH, or start=kept"
        )
    if starts_whole(objects.recovery):
        raise InputError(NO_DECISION)
    return net


def recover_into(
    folder: Path,
    objects: Objects,
    runner: PhaseRunner,
    student: Backbone,
    teacher: Backbone | None,
    decision: Decision | None,
) -> None:
    """Train the student; write ``recovered/`` (averaged weights) and ``recovered_live/``.

    Args:
        folder: the run's folder; a finished recovery in it is not repeated.
        objects: the command's.
        runner: executes the recovery's phases.
        student: what `first_student` gave; trained in place.
        teacher: the network to distil from.
        decision: how the student was cut, or is to be, if known.

    Raises:
        InputError: student and teacher can't be compared.
    """
    files = [folder / name / "config.json" for name in MODELS]
    # Asked for once: the first rank writes them while others may still have to look.
    if ranks_of(objects).from_first(lambda: all(file.is_file() for file in files)):
        log.info("recover: taking the model in %s", folder / RECOVERED)
        return
    if objects.start == "fresh":
        student = fresh_student(student, objects.expected, objects.seed)
    assert objects.recovery is not None
    own = folder / "recover"
    outcome = recover(
        objects.recovery, student, teacher, decision, runner, folder=own, device=objects.device
    )
    if not is_first_rank():
        return
    from tinyfusion.training.recovery import Recovery  # imports Lightning

    module = outcome.module
    provenance = {
        "recovered_from": str(objects.checkpoint),
        "source_sha256": objects.source_sha256,
        "steps": outcome.steps,
        "images_seen": outcome.images,
        "seed": objects.seed,
        "skipped_steps": module.skipped_steps,
        **trained_with(objects),
    }
    if isinstance(module, Recovery):
        provenance |= module.record()
    provenance["start"] = objects.start
    if decision is not None:
        provenance["decision"] = decision.summary()
    save_model(outcome.net, folder / RECOVERED_LIVE, provenance | {"weights": "live"})
    with outcome.averaged() as net:
        save_model(net, folder / RECOVERED, provenance | {"weights": "averaged"})
    forget(own)


def load_recovered(folder: Path, live: bool = False) -> Backbone:
    """The recovered network of a run's folder, with averaged or live weights."""
    return load_model(str(folder / (RECOVERED_LIVE if live else RECOVERED)))
