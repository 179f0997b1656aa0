"""The packaged teachers of digits, each with the process and sampler that its backbone selects."""

from __future__ import annotations

from tinyfusion.processes.contract import Process
from tinyfusion.samplers.contract import Sampler
from tinyfusion.settings.compose import build
from tinyfusion.settings.overview import conf_folder

TEACHERS = {"dit_digits": "digits", "sit_digits": "sit_digits", "mar_digits": "mar_digits"}
"""Name of the packaged model by the backbone of its configuration."""


def process_and_sampler(backbone: str) -> tuple[Process, Sampler]:
    """What ``tinyfusion sample backbone=NAME`` builds.

    Args:
        backbone: a name in ``conf/backbone``.
    """
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("sample", [f"backbone={backbone}"])
    return build(cfg.process), build(cfg.sampler)
