"""The help of a command, read from the text of its configuration files.

Imports nothing outside the standard library, so that ``tinyfusion run --help`` is quick.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from tinyfusion.settings.commands import COMMANDS, GROUPS, NESTED, PART_OF, SUMMARIES, VALUES, WHOLE

WIDTH = 100

EXAMPLES: dict[str, Sequence[str]] = {
    "encode": (
        "data.root=IMAGES data.size=256 store=LATENTS trainer=gpu",
        "data.root=IMAGES data.size=256 store=LATENTS trainer=gpu workers=8",
        "data.root=IMAGES data.size=256 store=LATENTS part=0 parts=2  (part=1 elsewhere)",
        "autoencoder=kl autoencoder.path=MODEL autoencoder.subfolder=vae ...",
    ),
    "pretrain": ("seed=1", "training.pretrain.steps=5000 logger=tensorboard"),
    "prune": (
        "keep=7                                (the best 7 blocks of all)",
        "budget.macs=0.5 units=branches        (half the MACs, of attention and MLP)",
        "scheme=2:4 delta=full                 (2 of every 4 blocks, as in the paper)",
        "'scheme=[[3,4],[3,4],[2,4],[3,4],[2,4],[3,4],[3,4]]'",
        "pruner=shortgpt keep=14",
        "pruner=indices 'pruner.kept=[0,2,4,6]'",
    ),
    "recover": (
        "checkpoint=MODEL decision=FOLDER/decision.json recovery=kd",
        "checkpoint=FOLDER/pruned teacher.path=MODEL",
    ),
    "sample": (
        "checkpoint=FOLDER/recovered n=20 'labels=[3,7]' guidance.scale=2",
        "checkpoint=FOLDER/recovered n=50000 format=npz trainer=ddp   (all GPUs)",
        "resume=FOLDER                                                (after a kill)",
    ),
    "evaluate": (
        "checkpoint=FOLDER/recovered teacher.path=digits",
        "images=SAMPLES evaluation.reference=REAL   (runs, folders or .npz batches)",
        "images=SAMPLES evaluation=adm evaluation.reference=VIRTUAL_imagenet256.npz",
    ),
    "activations": (
        "checkpoint=digits",
        "checkpoint=FOLDER/recovered teacher.path=digits",
        "process=ddpm_latents data=latents data.root=STORE checkpoint=FILE",
        "backbone=sit_digits 'num_sigmas=[2,3]' samples=512",
    ),
    "benchmark": (
        "'models=[digits,FOLDER/recovered]'",
        "'models=[dit_xl_2,dit_xl_2_d14]' trainer=gpu trainer.compile=true",
        "'models=[dit_xl_2,dit_xl_2_d14]' hidden_size=256 num_heads=8   (for a CPU)",
        "backbone=sit 'models=[sit_xl_2,sit_xl_2_d14]' trainer=gpu",
        "'depths=[21,14,7]' 'widths=[0.25,0.5]'   (cuts of the first model: figure 4)",
        "experiment=figure_4 sampler.steps=4      (the whole figure)",
    ),
    "run": (
        "keep=7 seed=1                         (the best 7 blocks of all)",
        "budget.latency=0.5 units=branches     (half the time, measured here)",
        "-m scheme=1:2,2:4,7:14 delta=lora,full,frozen",
        "backbone=sit_digits                   (another family; mar_digits: a third)",
        "pruner=oracle keep=14 start=fresh backbone=dit_digits recovery=kd",
        "experiment=iterative                  (28 -> 14 -> 7 blocks)",
        "experiment=demo trainer=gpu",
        "experiment=imagenet/tinydit_d14 checkpoint=FILE data.root=STORE",
        "experiment=imagenet/tinydit_d14 dry_run=true       (what that would take)",
        "--config-dir DIR pruner=mine          (your own DIR/pruner/mine.yaml)",
        "resume=outputs/run/FOLDER             (resume a killed run)",
        "--cfg job                             (print the whole configuration)",
    ),
}

NOTES: dict[str, Sequence[str]] = {
    "benchmark": (
        "it/s: sampling steps of one batch per second. A step is one evaluation of the network on",
        "the whole batch, guidance doubling included: images/s = it/s * batch_size / evaluations.",
        "Decoding is left out. trainer.precision=bf16-mixed computes in bfloat16 by autocast;",
        "trainer.compile=true times the blocks as they are, then compiled.",
    ),
}
"""What has to be known to read a command's figures, in lines."""


def conf_folder() -> Path:
    """The shipped configuration, in an installed wheel or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "base.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration folder beside {package}")


def choices(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """Names that a group can be set to.

    Args:
        group: name of the group, such as ``pruner``.
        folders: further configuration folders (``--config-dir``).
    """
    found: set[str] = set()
    for folder in (conf_folder(), *folders):
        for file in (folder / group).rglob("*.yaml"):
            found.add(file.relative_to(folder / group).with_suffix("").as_posix())
    return sorted(found)


def overview(command: str, folders: Sequence[Path] = ()) -> str:
    """Groups with their choices, values with their defaults, and examples.

    Args:
        command: one of ``COMMANDS``.
        folders: further configuration folders (``--config-dir``).
    """
    chosen, values = defaults_of(command)
    lines = [
        f"tinyfusion {command}: {SUMMARIES[command]}",
        "",
        f"usage: tinyfusion {command} [key=value ...] [-m]",
        "",
        "groups (group=choice, then group.key=value; * is the default):",
    ]
    for group, text in GROUPS.items():
        names = choices(group, folders)
        key = PART_OF.get(group, group)
        known = key in COMMANDS[command].__dataclass_fields__ or (key in WHOLE and key in chosen)
        if not names or not known:
            continue
        listed = ", ".join(f"{name}*" if name == chosen.get(group) else name for name in names)
        lines.append(f"  {group:<12}{text}")
        lines += textwrap.wrap(
            listed, WIDTH, initial_indent=" " * 16, subsequent_indent=" " * 16,
            break_on_hyphens=False,
        )  # fmt: skip
    lines += ["", "values (key=value):"]
    for key, text in VALUES.items():
        if key in COMMANDS[command].__dataclass_fields__:
            setting = f"{key}.KEY" if key in NESTED else f"{key}={values.get(key, 'null')}"
            lines.append(f"  {setting:<24}{text}")
    if command in NOTES:
        lines += ["", *NOTES[command]]
    lines += ["", "examples:"]
    lines += [f"  tinyfusion {command} {example}" for example in EXAMPLES[command]]
    return "\n".join(lines) + "\n"


def defaults_of(command: str) -> tuple[dict[str, str], dict[str, str]]:
    """Default choice of every group and default of every plain value, as written."""
    chosen: dict[str, str] = {}
    values: dict[str, str] = {}
    for name in ("base", command):
        for line in (conf_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
            key, _, value = line.split("#")[0].partition(":")
            if line.startswith("  - ") and value:
                chosen[key.removeprefix("  - ")] = value.strip()
            elif key and not key.startswith((" ", "-")) and value.strip():
                values[key] = value.strip().strip('"')
    return chosen, values
