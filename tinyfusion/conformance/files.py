"""What a model folder asks of a backbone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tinyfusion.checkpoints import load, save_model
from tinyfusion.conformance.subject import Subject, same
from tinyfusion.errors import InputError


def check_folder(subject: Subject) -> None:
    """A model that was saved and loaded computes what it did."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save_model(subject.net, Path(folder) / "model"))
        with torch.no_grad():
            out = loaded(*subject.inputs)
    if not same(out, subject.forward()):
        raise InputError(
            "a network that was saved and loaded computes something else: what it computes with "
            "must be in its state dict or follow from its config (not from start values of "
            "parameters, which loading leaves unset)"
        )
