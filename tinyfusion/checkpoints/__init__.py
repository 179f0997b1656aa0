"""Checkpoints: find, read, recognise, build, write, publish.

This package holds the only ``torch.load`` of the project; it never runs code from a file.
"""

from tinyfusion.checkpoints.construct import load, to_backbone
from tinyfusion.checkpoints.hub import push_to_hub
from tinyfusion.checkpoints.infer import infer_dit
from tinyfusion.checkpoints.locate import resolve
from tinyfusion.checkpoints.read import Checkpoint, read_checkpoint
from tinyfusion.checkpoints.write import save_model

__all__ = [
    "Checkpoint",
    "infer_dit",
    "load",
    "push_to_hub",
    "read_checkpoint",
    "resolve",
    "save_model",
    "to_backbone",
]
