"""Every shipped configuration composes, is accepted, and builds what it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tinyfusion.backbones.presets import FAMILIES, PRESETS, preset_family
from tinyfusion.errors import InputError
from tinyfusion.settings.check import check
from tinyfusion.settings.compose import build
from tinyfusion.settings.overview import choices, conf_folder
from tinyfusion.settings.schema import COMMANDS, GROUPS, OPTIONAL_GROUPS, TrainerSettings

# What a choice asks the user for.
REQUIRED = {
    **{
        ("experiment", f"imagenet/tinydit_{depth}"): ["data.root=store"]
        for depth in ("d7", "d14", "d19")
    },
    ("pruner", "indices"): ["pruner.kept=[0,1]"],
    ("data", "imagefolder"): ["data.root=images", "data.size=8"],
    ("data", "latents"): ["data.root=store"],
    ("data", "latent_files"): ["data.root=files"],
    ("autoencoder", "kl"): ["autoencoder.path=vae"],
    # Its default data is a folder of images.
    ("command", "encode"): ["data.root=images", "data.size=8"],
}
# Built from what only a run has, or too large to build here.
NOT_BUILT = {
    ("data", "imagefolder"),
    ("data", "latents"),
    ("data", "latent_files"),
    ("autoencoder", "kl"),
    ("backbone", "dit"),
    ("backbone", "sit"),
}
LARGE = ("dit_b", "dit_l", "dit_xl", "sit_b", "sit_l", "sit_xl")

CHOICES = [
    (group, choice) for group in GROUPS for choice in choices(group) if group != "experiment"
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


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="=".join)
def test_choice_composes_and_builds(group: str, choice: str) -> None:
    command = next(c for c in ("run", *COMMANDS) if group in COMMANDS[c].__dataclass_fields__)
    cfg = composed(command, f"{group}={choice}", *REQUIRED.get((group, choice), []))
    if group == "callbacks":
        for node in cfg.callbacks.values():
            assert build(node) is not None
    elif group == "teacher":
        assert cfg.teacher.path in ("source", None)
    elif (group, choice) in (("evaluation", "none"), ("autoencoder", "none")):
        assert cfg[group] is None
    elif (group, choice) not in NOT_BUILT and not choice.startswith(LARGE):
        assert build(cfg[group]) is not None


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_composes_for_every_command(name: str, command: str) -> None:
    file = conf_folder() / "experiment" / f"{name}.yaml"
    assert file.read_text().startswith("# @package _global_\n")
    required = REQUIRED.get(("experiment", name), REQUIRED.get(("command", command), []))
    cfg = composed(command, f"experiment={name}", *required)
    # What other commands have is dropped; what this one has is taken.
    assert set(cfg) == set(COMMANDS[command].__dataclass_fields__)
    if "sampler" in cfg:
        assert cfg.sampler.steps == (250 if name.startswith("imagenet/") else 20)


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
    for name, arguments in {**PRESETS, **{family: {} for family in FAMILIES}}.items():
        file = OmegaConf.load(conf_folder() / "backbone" / f"{name}.yaml")
        kind = FAMILIES[preset_family(name)]
        assert file.pop("_target_") == f"{kind.__module__}.{kind.__name__}"
        assert file == arguments, name


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


def test_experiments_win_over_a_commands_own_values(tmp_path: Path) -> None:
    for command in COMMANDS:
        text = (conf_folder() / f"{command}.yaml").read_text()
        assert text.index("- _self_") < text.index("- experiment: null")


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
