"""Checkpoints: find, read, recognise, build, write, publish.

This package holds the only ``torch.load`` of the project; it never runs code from a file.
"""

from tinyfusion.backbones.dit_files import infer_dit
from tinyfusion.checkpoints.construct import load, to_backbone
from tinyfusion.checkpoints.convention import set_convention, use_published_convention
from tinyfusion.checkpoints.export import save_diffusers, save_public
from tinyfusion.checkpoints.hub import push_to_hub
from tinyfusion.checkpoints.locate import resolve
from tinyfusion.checkpoints.lora import remap_lora
from tinyfusion.checkpoints.read import Checkpoint, read_checkpoint, weights_sha256
from tinyfusion.checkpoints.write import save_model

__all__ = [
    "Checkpoint",
    "infer_dit",
    "load",
    "push_to_hub",
    "read_checkpoint",
    "remap_lora",
    "resolve",
    "save_diffusers",
    "save_model",
    "save_public",
    "set_convention",
    "to_backbone",
    "use_published_convention",
    "weights_sha256",
]
