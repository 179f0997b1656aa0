"""What a recovery minimises: task loss, output distillation, hidden states (TinyFusion, 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from torch import Tensor

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError
from tinyfusion.processes.contract import Corrupted, Process
from tinyfusion.recovery.fading import FadeOut
from tinyfusion.recovery.features import MASKS, SCALES, feature_distance
from tinyfusion.recovery.stages import SeamsFirst
from tinyfusion.recovery.updates import InverseImportance
from tinyfusion.states import States

STATE_KEYS = ("hidden_size", "patch_size", "buffer_size")
"""Constructor arguments that give hidden states their shape."""


class Objective:
    """Weighted sum ``task_weight * L_diff + output_weight * L_kd + feature_weight * L_rep``.

    Args:
        task_weight: weight of the process's own loss (alpha_gt).
        output_weight: weight of the distance to the teacher's prediction (alpha_kd).
        feature_weight: weight of the hidden-state distance at the first step (beta).
        feature_weight_end: the same at the last step; linear in between.
        feature_mask: ``none``, ``separate`` or ``intersection`` (see `feature_distance`).
        num_sigmas: where massive activations begin, in standard deviations.
        variance_kl: add the KL of the learned variances to the output distillation.
        feature_scale: ``none`` takes the mean of the pairs' distances; ``teacher`` their sum, each
            weighted by the size of the teacher's states (Laptop-Diff; see `one_scale`).
        calibration_samples: noised training images by which that size is measured, at least 1.
        stages: which weights are trained at first, or which blocks are removed only in training;
            ``None`` trains all that stays from the first step on.
        updates: how large the updates of each block are; ``None`` trains all alike.

    Raises:
        InputError: negative weights, nothing to minimise, or an unknown mask or scale.
    """

    def __init__(
        self,
        task_weight: float = 1.0,
        output_weight: float = 0.0,
        feature_weight: float = 0.0,
        feature_weight_end: float = 0.0,
        feature_mask: str = "none",
        num_sigmas: float = 2.0,
        variance_kl: bool = False,
        feature_scale: str = "none",
        calibration_samples: int = 1024,
        stages: SeamsFirst | FadeOut | None = None,
        updates: InverseImportance | None = None,
    ) -> None:
        weights = {
            "task_weight": task_weight,
            "output_weight": output_weight,
            "feature_weight": feature_weight,
            "feature_weight_end": feature_weight_end,
        }
        for name, value in weights.items():
            if value < 0:
                raise InputError(f"recovery.{name}={value} must not be negative")
        if task_weight + output_weight == 0:
            raise InputError("recovery: task_weight and output_weight are both 0")
        if feature_mask not in MASKS:
            raise InputError(
                f"recovery.feature_mask={feature_mask!r} is not known; valid: {', '.join(MASKS)}"
            )
        if num_sigmas <= 0:
            raise InputError(f"recovery.num_sigmas={num_sigmas} must be positive")
        if feature_scale not in SCALES:
            raise InputError(
                f"recovery.feature_scale={feature_scale!r} is not known; valid: {', '.join(SCALES)}"
            )
        if calibration_samples < 1:
            raise InputError(
                f"recovery.calibration_samples={calibration_samples} must be at least 1"
            )
        self.task_weight, self.output_weight = task_weight, output_weight
        self.feature_weight, self.feature_weight_end = feature_weight, feature_weight_end
        self.feature_mask, self.num_sigmas = feature_mask, num_sigmas
        self.variance_kl = variance_kl
        self.feature_scale, self.calibration_samples = feature_scale, calibration_samples
        self.stages, self.updates = stages, updates

    @property
    def starts_whole(self) -> bool:
        """Whether training begins with the whole network, from which it removes blocks."""
        return isinstance(self.stages, FadeOut)

    @property
    def uses_features(self) -> bool:
        """Whether hidden states are compared."""
        return self.feature_weight > 0 or self.feature_weight_end > 0

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher is needed."""
        return self.output_weight > 0 or self.uses_features

    def check(self, student: Backbone, teacher: Backbone | None, process: Process) -> None:
        """Refuse networks that can't be compared.

        Raises:
            InputError: the teacher is missing, predicts another shape, has another width in
                an objective that compares hidden states, or variances are to be compared that
                no network of this process predicts.
        """
        if self.variance_kl and not process.learns_variance:
            raise InputError(
                "recovery.variance_kl=true compares learned variances, but networks of "
                f"process={type(process).__name__} predict none; give recovery.variance_kl=false"
            )
        if not self.uses_teacher:
            return
        if teacher is None:
            raise InputError("this recovery distils from a teacher but teacher=none was given")
        if self.uses_features:
            check_alike(
                student, teacher, STATE_KEYS, "hidden states can't be compared, use recovery=kd"
            )
        check_alike(student, teacher, ("in_channels", "input_size", "num_classes", "learn_sigma"))

    def distance(self, student: States, teacher: States) -> Tensor:
        """Distance of the hidden states of one aligned pair, shape (B,); see `feature_distance`."""
        return feature_distance(student, teacher, self.feature_mask, self.num_sigmas)

    def __call__(
        self,
        process: Process,
        corrupted: Corrupted,
        student_out: Tensor,
        teacher_out: Tensor | None,
        distances: Sequence[Tensor],
        share: float,
        pair_weights: Sequence[float] | None = None,
    ) -> dict[str, Tensor]:
        """Per-sample terms, each (B,), and their weighted sum ``total``.

        Args:
            process: gives task and output losses.
            corrupted: what both networks saw.
            student_out: the student's prediction.
            teacher_out: the teacher's, if there is one.
            distances: what `distance` gave for each aligned pair.
            share: progress of the run from 0 to 1, for the feature weight.
            pair_weights: weight of each pair's distance in their sum; ``None`` takes the mean.
        """
        # Under autocast predictions are bfloat16, too coarse for the arithmetic of the losses.
        student_out = student_out.to(corrupted.clean.dtype)
        task = process.loss(student_out, corrupted)
        terms = {**task, "total": self.task_weight * task["loss"]}
        terms["task"] = terms.pop("loss")
        if self.output_weight > 0 and teacher_out is not None:
            distilled = process.distillation_loss(
                student_out,
                teacher_out.to(corrupted.clean.dtype),
                corrupted,
                self.variance_kl,
            )
            terms |= distilled
            terms["total"] = terms["total"] + self.output_weight * distilled["kd"]
        if distances:
            if pair_weights is None:
                terms["features"] = reduce(add, distances) / len(distances)
            else:
                weighted = zip(pair_weights, distances, strict=True)
                terms["features"] = reduce(
                    add, (weight * distance for weight, distance in weighted)
                )
            weight = self.feature_weight + share * (self.feature_weight_end - self.feature_weight)
            terms["total"] = terms["total"] + weight * terms["features"]
        return terms


def check_alike(
    student: Backbone, teacher: Backbone, keys: Sequence[str], advice: str | None = None
) -> None:
    """Refuse networks that were built with other arguments.

    Args:
        student: one network.
        teacher: the other.
        keys: constructor arguments to compare; one that neither has does not matter.
        advice: what follows from a difference and what to do, for the message.

    Raises:
        InputError: the networks differ in one of ``keys``.
    """
    mine, theirs = student.config(), teacher.config()
    for key in keys:
        if mine.get(key) != theirs.get(key):
            raise InputError(
                f"student and teacher differ in {key}: {mine.get(key)} and {theirs.get(key)}"
                + (f"; {advice}" if advice else "")
            )
