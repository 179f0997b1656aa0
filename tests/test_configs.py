"""Every shipped configuration composes, is accepted, and builds what it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tinyfusion.backbones.presets import FAMILIES, PRESETS, build_empty, preset_family
from tinyfusion.errors import InputError
from tinyfusion.settings.check import check
from tinyfusion.settings.commands import COMMANDS, GROUPS, OPTIONAL_GROUPS, PART_OF, WHOLE
from tinyfusion.settings.compose import build
from tinyfusion.settings.overview import choices, conf_folder
from tinyfusion.training.settings import TrainerSettings

# What a choice asks the user for.
REQUIRED = {
    **{
        ("experiment", f"imagenet/{name}"): ["data.root=store"]
        for name in (
            "dit_xl_2",
            "iterative",
            "tinydit_d7",
            "tinydit_d14",
            "tinydit_d19",
            "tinysit_d14",
        )
    },
    ("experiment", "imagenet/tinymar_d16"): ["data.root=store", "autoencoder.path=vae"],
    ("pruner", "indices"): ["pruner.kept=[0,1]"],
    ("data", "imagefolder"): ["data.root=images", "data.size=8"],
    ("data", "latents"): ["data.root=store"],
    ("data", "latent_files"): ["data.root=files"],
    ("autoencoder", "kl"): ["autoencoder.path=vae"],
    ("evaluation", "adm"): ["evaluation.reference=real.npz"],
    # Its default data is a folder of images.
    ("command", "encode"): ["data.root=images", "data.size=8"],
}
# Built from what only a run has.
NOT_BUILT = {
    ("data", "imagefolder"),
    ("data", "latents"),
    ("data", "latent_files"),
    ("autoencoder", "kl"),
}
# What a backbone chooses besides itself: process, sampler and checkpoint.
CHOSEN = {
    "dit": ("ddpm_pixels", "ddpm_20", "digits"),
    "dit_xl_2": ("ddpm_pixels", "ddpm_20", "digits"),
    "dit_digits": ("ddpm_pixels", "ddpm_20", "digits"),
    "sit": ("sit", "sde_euler_250", "digits"),
    "sit_xl_2_d14": ("sit", "sde_euler_250", "digits"),
    "sit_digits": ("sit", "ode_heun_10", "sit_digits"),
    "mar": ("mar", "mar_64", "digits"),
    "mar_large": ("mar", "mar_64", "digits"),
    "mar_digits": ("mar_pixels", "mar_16", "mar_digits"),
}

# Experiments and backbones have tests of their own.
CHOICES = [
    (group, choice)
    for group in GROUPS
    for choice in choices(group)
    if group not in ("backbone", *WHOLE)
]


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def composed(command: str, *overrides: str) -> DictConfig:
    return check(compose(command, [*overrides]))


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_of_a_command(command: str) -> None:
    cfg = composed(command, *REQUIRED.get(("command", command), []))
    assert cfg.command == command
    for group in GROUPS:
        if group in cfg and group not in (*OPTIONAL_GROUPS, "teacher"):
            assert "_target_" in cfg[group], group


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["=".join(pair) for pair in CHOICES])
def test_choice_composes_and_builds(group: str, choice: str) -> None:
    own = PART_OF.get(group, group)
    taking = [c for c in COMMANDS if own in COMMANDS[c].__dataclass_fields__]
    serving = [c for c in taking if ("command", c) not in REQUIRED]
    command = min(serving, key=lambda c: len(COMMANDS[c].__dataclass_fields__))
    cfg = composed(command, f"{group}={choice}", *REQUIRED.get((group, choice), []))
    if group == "callbacks":
        for node in cfg.callbacks.values():
            assert build(node) is not None
    elif group == "teacher":
        assert cfg.teacher.path in ("source", None)
    elif choice == "none" and group in ("evaluation", "autoencoder"):
        assert cfg[group] is None
    elif group in PART_OF:
        assert (build(cfg[own].get(group)) is None) == (choice == "none")
    elif (group, choice) not in NOT_BUILT:
        assert build(cfg[group]) is not None


@pytest.mark.parametrize(
    "command",
    [c if c in ("run", "evaluate") else pytest.param(c, marks=pytest.mark.slow) for c in COMMANDS],
)
@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_composes_for_every_command(name: str, command: str) -> None:
    file = conf_folder() / "experiment" / f"{name}.yaml"
    assert file.read_text().startswith("# @package _global_\n")
    required = REQUIRED.get(("experiment", name), REQUIRED.get(("command", command), []))
    cfg = composed(command, f"experiment={name}", *required)
    # What other commands have is dropped; what this one has is taken.
    assert set(cfg) == set(COMMANDS[command].__dataclass_fields__)
    if "sampler" in cfg and name.startswith("imagenet/"):
        sampler = build(cfg.sampler)
        quick = name == "imagenet/iterative" or "tinymar" in name
        assert sampler.num_steps(build(cfg.process)) == (64 if quick else 250)


def test_what_points_at_a_group_sees_the_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vae").mkdir()
    monkeypatch.chdir(tmp_path)
    cfg = composed("run", "autoencoder=kl", "autoencoder.path=vae", "evaluation.reference=vae")
    assert cfg.autoencoder.path == cfg.evaluation.autoencoder.path == str(tmp_path / "vae")
    assert cfg.evaluation.reference == str(tmp_path / "vae")


def test_a_group_that_is_left_out_is_null_where_others_point_at_it() -> None:
    cfg = composed("run", "callbacks=evaluate")
    assert cfg.autoencoder is None and cfg.evaluation.autoencoder is None
    assert cfg.callbacks.sample_grid.autoencoder is None


def test_scores_stay_out_whatever_an_experiment_sets() -> None:
    assert composed("run", "experiment=demo", "evaluation=none").evaluation is None


def test_keys_of_other_commands_are_refused_on_the_command_line() -> None:
    cfg = compose("evaluate", ["pruner=random"])
    with pytest.raises(InputError, match="unknown key 'pruner' for 'tinyfusion evaluate'"):
        check(cfg, ["pruner=random"])
    with pytest.raises(InputError, match="unknown key 'guidance'"):
        check(compose("run", ["+guidance.scale=2"]), ["+guidance.scale=2"])


def test_backbones_are_the_presets_and_the_families() -> None:
    # A family alone says what a checkpoint is, whatever its size.
    assert set(choices("backbone")) == {*PRESETS, *FAMILIES}


@pytest.mark.parametrize(
    "name",
    [
        # One patch size of each size; the others as well in `make test-slow`.
        pytest.param(name, marks=pytest.mark.slow) if name.endswith(("_4", "_8")) else name
        for name in (*PRESETS, *FAMILIES)
    ],
)
def test_a_backbone_is_its_preset_and_brings_what_it_needs(name: str) -> None:
    cfg = composed("run", f"backbone={name}")
    node = OmegaConf.to_container(cfg.backbone)
    kind = FAMILIES[preset_family(name)]
    assert node.pop("_target_") == f"{kind.__module__}.{kind.__name__}"
    assert node == PRESETS.get(name, {})
    process, sampler = build(cfg.process), build(cfg.sampler)
    assert kind.process_kind == process.kind == sampler.process_kind
    sampler.num_steps(process)
    if name in PRESETS:
        with torch.device("meta"):
            process.check(build_empty(name))


@pytest.mark.parametrize(
    ("name", "command"),
    [(n, c) for n in CHOSEN for c in COMMANDS if c == "run" or n.endswith("_digits")],
)
def test_a_backbone_chooses_process_sampler_and_checkpoint(name: str, command: str) -> None:
    required = REQUIRED.get(("command", command), [])
    whole = compose(command, [f"backbone={name}", *required], return_hydra_config=True)
    chosen, (process, sampler, checkpoint) = whole.hydra.runtime.choices, CHOSEN[name]
    cfg = check(OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"]))
    if not name.startswith("dit"):
        assert (chosen.process, chosen.sampler) == (process, sampler)
    elif command == "run":
        assert (chosen.process, chosen.sampler, chosen.training) == (process, sampler, "digits")
    if command == "pretrain":
        # It starts from random weights.
        assert cfg.checkpoint is None
    elif command != "encode":
        assert cfg.checkpoint == checkpoint


def test_what_is_chosen_by_name_wins_over_a_backbones_choice() -> None:
    given = ("process=ddpm_latents", "sampler=ddim_50", "checkpoint=mine")
    cfg = composed("run", "backbone=mar_digits", *given)
    assert cfg.process._target_.endswith("GaussianDiffusion") and not cfg.process.clip
    assert cfg.sampler._target_.endswith("DDIMSampler") and cfg.checkpoint == "mine"
    cfg = composed("run", "backbone=sit_digits", "experiment=imagenet/tinydit_d14", "data.root=s")
    assert cfg.process._target_.endswith("GaussianDiffusion") and cfg.sampler.steps == 250
    assert cfg.checkpoint is None and cfg.backbone._target_.endswith("SiT")


@pytest.mark.parametrize("name", [name for name in choices("experiment") if "/" not in name])
def test_experiments_of_digits_serve_every_backbone(name: str) -> None:
    cfg = composed("run", f"experiment={name}", "backbone=mar_digits")
    assert cfg.sampler._target_.endswith("AutoregressiveSampler")
    assert cfg.checkpoint == "mar_digits" and cfg.evaluation.sampler == cfg.sampler


def test_paths_that_exist_become_absolute(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "images", "source"):
        (tmp_path / name).mkdir()
    data = ("data=imagefolder", "data.root=images", "data.size=8")
    cfg = composed("run", "checkpoint=model", "decision=missing.json", *data)
    assert cfg.checkpoint == str(tmp_path / "model")
    assert cfg.data.root == str(tmp_path / "images")
    assert cfg.output_root == str(tmp_path / "outputs")
    assert cfg.teacher.path == "source" and cfg.decision == "missing.json"
    assert composed("run").checkpoint == "digits"


@pytest.mark.parametrize("value", ["warm_up=-1", "learning_rate_end=-0.1"])
def test_training_settings_refuse_negative_values(value: str) -> None:
    cfg = composed("run", f"++training.recovery.{value}")
    with pytest.raises(InputError, match=value):
        build(cfg.training)


def test_experiments_win_over_a_commands_own_values_and_backbones() -> None:
    for command in COMMANDS:
        text = (conf_folder() / f"{command}.yaml").read_text()
        assert text.index("- _self_") < text.index("- experiment: null")
        groups = [text.index(f"- {group}: ") for group in GROUPS if f"- {group}: " in text]
        last = [name for name in ("backbone", *WHOLE) if f"- {name}: " in text]
        assert sorted(groups)[-len(last) :] == [text.index(f"- {name}: ") for name in last]


@pytest.mark.parametrize("choice", choices("trainer"))
def test_trainer_settings(choice: str) -> None:
    assert isinstance(build(composed("run", f"trainer={choice}").trainer), TrainerSettings)


def test_evaluation_samples_with_the_chosen_sampler() -> None:
    cfg = composed("run", "sampler=ddim_50", "callbacks=evaluate")
    for node in (cfg.evaluation, cfg.callbacks.evaluate.evaluation, cfg.callbacks.sample_grid):
        assert node.sampler._target_.endswith("DDIMSampler")


def test_every_configuration_file_says_what_it_is() -> None:
    bare = [
        file.relative_to(conf_folder()).as_posix()
        for file in conf_folder().rglob("*.yaml")
        if not file.read_text().startswith("#")
    ]
    assert not bare, f"no comment on the first line: {sorted(bare)}"


def test_a_sit_is_recovered_with_the_smaller_weight_of_hidden_states() -> None:
    weights = {
        f"{backbone} {more}": composed("run", f"backbone={backbone}", *more).recovery.feature_weight
        for backbone in ("sit_digits", "sit_xl_2", "mar_digits", "dit_digits")
        for more in ((), ("recovery=repkd_sit",))
    }
    assert [w for name, w in weights.items() if "sit" in name] == [2e-4] * 6
    assert [w for name, w in weights.items() if "sit" not in name] == [1e-2] * 2


def test_paths_under_any_key_become_absolute(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name in ("runs/one/decision.json", "plain.json", "cpu"):
        (tmp_path / name).touch()
    cfg = composed(
        "run",
        "pruner=random",
        "pruner.candidates=9",
        "pruner.marks={a:runs/one/decision.json,b:plain.json,c:missing/decision.json,d:[0,1]}",
    )
    assert cfg.pruner.marks == {
        "a": str(tmp_path / "runs/one/decision.json"),
        "b": str(tmp_path / "plain.json"),
        "c": "missing/decision.json",
        "d": [0, 1],
    }
    # A word is no path, though there is a file of that name.
    assert cfg.trainer.accelerator == "cpu"
