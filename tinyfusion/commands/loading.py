"""Models of a command: loaded, or made anew, and validated against all that will use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import FAMILIES, PRESETS, build_empty, preset_family
from tinyfusion.backbones.presets import build as build_backbone
from tinyfusion.backbones.rebuild import check_own
from tinyfusion.checkpoints import read_checkpoint
from tinyfusion.checkpoints.construct import to_backbone
from tinyfusion.checkpoints.expected import expected_teacher
from tinyfusion.commands.check_scores import check_extractor, check_files, check_held_out
from tinyfusion.commands.checks import check_data, check_decoder, check_latents, check_sampling
from tinyfusion.errors import InputError
from tinyfusion.group import Group
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.speed import parameters
from tinyfusion.notices import notice
from tinyfusion.pipeline.devices import joined_ranks
from tinyfusion.pipeline.machine import check_gpu
from tinyfusion.pipeline.pruning import foreseen
from tinyfusion.pipeline.runner import PhaseRunner
from tinyfusion.pipeline.threads import choose_threads
from tinyfusion.ranks import is_first_rank, local_rank
from tinyfusion.samplers.guidance import NO_GUIDANCE
from tinyfusion.settings.brought import TRAINED_WITH, process_notes
from tinyfusion.settings.objects import SOURCE, Objects
from tinyfusion.tracking.trackers import Trackers


def load(objects: Objects, path: str | None, key: str = "checkpoint") -> Backbone:
    """Load a checkpoint; needs no data.

    Args:
        objects: the command's.
        path: the checkpoint.
        key: what the user calls it.

    Raises:
        InputError: no GPU where one is asked for, no path, or a file that is unusable or not what
            ``backbone=`` says, or a class of the user's own that could not be saved after pruning.
    """
    check_gpu(objects.trainer)
    if not path:
        raise InputError(f"{key}= must be given: a checkpoint file or a model folder")
    teacher = key == "teacher.path"
    try:
        checkpoint = read_checkpoint(path, objects.teacher_weights if teacher else objects.weights)
    except InputError as error:
        if not teacher:
            raise
        raise InputError(str(error).replace("weights=", "teacher.weights=")) from None
    expected = objects.expected
    if key != "checkpoint":
        expected = expected_teacher(checkpoint, expected)
    net = to_backbone(checkpoint, expected, objects.num_heads, release=True)
    objects.process.check(net, path)
    if key != "models":  # which are timed only
        for note in process_notes(checkpoint, objects.config["process"]):
            notice(f"{path} {note}")
    check_own(net)
    if key == "checkpoint":
        choose_threads(net, objects.trainer, objects.device, _images_at_a_time(objects))
    return net


def _images_at_a_time(objects: Objects) -> int:
    """Samples in the smallest batch that the command runs its network on."""
    sizes: list[int] = []
    if (training := objects.training) is not None:
        phases = (training.pretrain, training.mask_learning, training.recovery)
        sizes = [phase.batch_size for phase in phases if phase is not None]
        sizes += [objects.trainer.micro_batch] if objects.trainer.micro_batch else []
    elif objects.evaluation is not None:
        sizes = [objects.evaluation.batch_size]
    return min(sizes, default=objects.config.get("batch_size") or 64)


def check_budget(objects: Objects, net: Backbone) -> None:
    """Refuse a budget that the model can't meet; needs no data.

    A given decision needs none, and rounds have their own, see `Rounds.check_budgets`.

    Raises:
        InputError: see `tinyfusion.pipeline.pruning.foreseen`.
    """
    if objects.pruner is not None and objects.decision_path is None and objects.rounds is None:
        foreseen(objects.pruner, net, objects.wanted)


def check_loaded(
    objects: Objects, net: Backbone, path: str | None, key: str = "checkpoint"
) -> None:
    """Validate a model against the data and, the command's own, against all that it is scored by.

    Reads the data, which may take long: all files that are named should have been read before.

    Args:
        objects: the command's.
        net: the model.
        path: its file.
        key: what the user calls it.

    Raises:
        InputError: a model for other images than the data's; or see `check_scoring`.
    """
    check_latents(objects.source, objects.process)
    check_data(net, objects.source, path or key)
    if key == "checkpoint":
        check_scoring(objects, net)


def trained_with(objects: Objects) -> dict[str, Any]:
    """What a model records of its training, so that its folder can be used by itself."""
    groups = ("process", "sampler")
    return {TRAINED_WITH: {g: objects.config[g] for g in groups if objects.config.get(g)}}


def other_teacher(objects: Objects) -> str | None:
    """The checkpoint to compare with; ``None`` for none.

    Raises:
        InputError: ``teacher.path=source``, which only commands that prune know.
    """
    if objects.teacher_path == SOURCE:
        raise InputError(
            "teacher.path=source: a checkpoint does not hold the model it was cut from; give "
            "teacher.path=PATH, or teacher=none"
        )
    return objects.teacher_path


def new_backbone(objects: Objects) -> Backbone:
    """The configured backbone with its start values, drawn from the global generator.

    Raises:
        InputError: no backbone, a family without sizes, or one that does not fit data or process.
    """
    arguments = objects.expected
    if arguments is None:
        raise InputError(
            f"backbone= must be given to {objects.command}, for example backbone=dit_digits"
        )
    family = arguments["backbone"]
    # A class of the user's own has sizes of its own.
    if set(arguments) == {"backbone"} and family in FAMILIES:
        raise InputError(
            f"backbone={family} says what a checkpoint is, not how large a new model is to be; "
            f"choose one of {', '.join(n for n in PRESETS if preset_family(n) == family)}"
        )
    check_latents(objects.source, objects.process)
    if family in FAMILIES:
        # Ahead of start values, which take long for large models.
        with torch.random.fork_rng(devices=[]):
            net = build_empty(arguments)
        objects.process.check(net, "backbone")
        check_data(net, objects.source, "backbone")
    net = build_backbone(arguments)
    objects.process.check(net, "backbone")
    check_own(net)
    choose_threads(net, objects.trainer, objects.device, _images_at_a_time(objects))
    return net


def check_scoring(objects: Objects, net: Backbone) -> None:
    """Validate all by which a command samples and scores, but for its callbacks, against a model.

    Raises:
        InputError: see `check_sampling`, `check_decoder` and `check_evaluation`.
    """
    process, source = objects.process, objects.source
    if objects.sampler is not None:
        check_sampling(net, process, "sampler", objects.sampler)
    if objects.evaluation is not None:
        check_evaluation(objects, objects.evaluation, "evaluation")
        evaluation = objects.evaluation
        check_sampling(net, process, "evaluation", evaluation.sampler, evaluation.guidance)
        check_decoder(net, process, evaluation.autoencoder, source)


def check_training(objects: Objects, net: Backbone) -> None:
    """Validate the machine, and the callbacks against a model.

    Imports Lightning, and therefore comes after all that is checked without it.

    Raises:
        InputError: see `Objects.check_machine`, `check_targets`, `check_sampling`,
            `check_decoder` and `check_evaluation`.
    """
    objects.check_machine()
    process, source = objects.process, objects.source
    for name, callback in objects.make_callbacks().items():
        key, drawn = f"callbacks.{name}", cast(Any, callback)
        protocol = getattr(callback, "evaluation", None)
        if isinstance(protocol, Evaluation):
            key, drawn = f"{key}.evaluation", protocol
            check_evaluation(objects, protocol, key)
        if hasattr(drawn, "sampler"):
            guidance = getattr(drawn, "guidance", NO_GUIDANCE)
            check_sampling(net, process, key, drawn.sampler, guidance)
            check_decoder(net, process, getattr(drawn, "autoencoder", None), source)


def check_evaluation(objects: Objects, evaluation: Evaluation, key: str) -> None:
    """Refuse a protocol that can't score this data.

    Args:
        objects: the command's.
        evaluation: the protocol.
        key: where it is configured.

    Raises:
        InputError: an unknown extractor, images that it does not take, files that are not there,
            or no held-out images.
    """
    check_extractor(evaluation, objects.source, key)
    check_held_out(objects.held_out)
    if local_rank() == 0:  # the other ranks of this machine find what it fetches
        check_files(evaluation, objects.source, key)


def summary(objects: Objects, net: Backbone, teacher: Backbone | None = None) -> dict[str, float]:
    """Size and held-out figures of a model, without sampling.

    Args:
        objects: the command's.
        net: the model; it is moved to the command's device.
        teacher: if given, ``teacher_distance`` is added.
    """
    row: dict[str, float] = {"depth": net.depth, "parameters": parameters(net)}
    held_out = objects.held_out_loss
    if held_out is not None:
        out = held_out.predict(net.to(objects.device))
        losses = held_out.of(out)
        row |= {
            "held_out_loss": losses["loss"],
            "held_out_loss_stderr": losses["loss_stderr"],
        }
        if teacher is not None:
            wanted = held_out.predict(teacher.to(objects.device))
            row["teacher_distance"] = held_out.distance(out, wanted)
    return row


def start_tracking(objects: Objects, folder: Path) -> Trackers:
    """Where the command logs, begun; further ranks train along but log nothing.

    Raises:
        InputError: one of the loggers can't be built or does not begin.
    """
    tracking = objects.make_tracking(folder) if is_first_rank() else Trackers()
    tracking.start(folder, objects.name or folder.name, objects.config)
    return tracking


def runner_of(objects: Objects, tracking: Trackers | None) -> PhaseRunner:
    """What executes the command's phases.

    Args:
        objects: the command's.
        tracking: where phases log.
    """
    assert objects.training is not None and objects.optimizer is not None
    return PhaseRunner(
        objects.process,
        objects.source,
        objects.training,
        objects.trainer,
        objects.optimizer,
        objects.seed,
        objects.devices,
        tracking,
        lambda: list(objects.make_callbacks().values()),
    )


def ranks_of(objects: Objects) -> Group:
    """The ranks that share the command, this process among them."""
    return joined_ranks(objects.trainer, objects.devices)


def flat(models: dict[str, Any]) -> dict[str, Any]:
    """Figures of several models for a tracker: ``model/figure`` to number."""
    return {f"{name}/{key}": value for name, row in models.items() for key, value in row.items()}
