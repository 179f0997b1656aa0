"""``start=fresh``: the shallow architecture without what its blocks have learned."""

from __future__ import annotations

import logging

import torch

from tinyfusion.backbones.contract import Backbone
from tinyfusion.backbones.presets import build as build_backbone
from tinyfusion.backbones.presets import family_of
from tinyfusion.commands.setup import Setup
from tinyfusion.errors import InputError
from tinyfusion.seeding import seed_of

log = logging.getLogger(__name__)

STARTS = ("kept", "fresh")


def check_start(start: str) -> None:
    """Refuse a start that is not known.

    Raises:
        InputError: so it is.
    """
    if start not in STARTS:
        raise InputError(f"start={start!r} is not known; valid: {', '.join(STARTS)}")


def fresh_student(setup: Setup, student: Backbone) -> Backbone:
    """A network of the student's form with the start values of its class, by the run's seed.

    What a model's file does not record because it matters only for start values (such as
    ``gate_bias_init`` of a DiT) has its default, unless ``backbone=`` says otherwise: for the
    digits ``backbone=dit_digits`` gives the start that their teacher had.

    Args:
        setup: the job.
        student: the pruned network; left as it is.

    Returns:
        A network that still knows which blocks it stands for, so that it can be aligned.
    """
    arguments = {**(setup.backbone() or {}), "backbone": family_of(student), **student.config()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(setup.seed, "fresh_student"))
        fresh = build_backbone(arguments)
    fresh.kept_from, fresh.source_borders = student.kept_from, student.source_borders
    log.info(
        "recover: start=fresh: %s blocks with new start values, nothing of the source's",
        fresh.depth,
    )
    return fresh
