"""Experiments of the paper hold its values: table 6, the schemes, and the recipes as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tinyfusion.backbones.presets import FAMILIES, PRESETS, preset_family
from tinyfusion.errors import InputError
from tinyfusion.scheme import parse_scheme
from tinyfusion.settings.check import check
from tinyfusion.settings.compose import build
from tinyfusion.settings.overview import choices, conf_folder
from tinyfusion.training import recipes

PAPER_TABLES = Path(__file__).resolve().parents[3] / "shared" / "paper_tables.yaml"


class Published(NamedTuple):
    """What an experiment reproduces: presets of the pruned network and the student, recipe."""

    source: str
    student: str
    recipe: str = "tinyfusion"


EXPERIMENTS = {
    "tinydit_d14": Published("dit_xl_2", "dit_xl_2_d14"),
    "tinydit_d19": Published("dit_xl_2", "dit_xl_2_d19"),
    "tinydit_d7": Published("dit_xl_2_d14", "dit_xl_2_d7"),
    "tinysit_d14": Published("sit_xl_2", "sit_xl_2_d14", "tinyfusion_sit"),
    "tinymar_d16": Published("mar_large", "mar_large_d16", "tinyfusion_mar"),
}
TEACHERS = {
    "DiT-XL": "dit_xl_2",
    "DiT-D14": "dit_xl_2_d14",
    "SiT-XL": "sit_xl_2",
    "MAR-Large": "mar_large",
}
"""Presets by the name that table 6 has for them."""


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def composed(name: str, *overrides: str) -> DictConfig:
    """What ``tinyfusion run experiment=imagenet/NAME checkpoint=FILE data.root=STORE`` runs."""
    given = ["checkpoint=f", "data.root=s", *overrides]
    if name == "tinymar_d16":
        given.append("autoencoder.path=kl16")
    return check(compose("run", [f"experiment=imagenet/{name}", *given]))


@pytest.fixture(scope="session")
def tables() -> dict[str, Any]:
    """The paper's tables by name."""
    if not PAPER_TABLES.is_file():
        pytest.skip("published numbers (../shared/paper_tables.yaml) are not present")
    return yaml.safe_load(PAPER_TABLES.read_text(encoding="utf-8"))["tables"]


def row_of(table: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """The row of a student such as ``tinydit_d14``."""
    family, _, depth = name.removeprefix("tiny").partition("_")
    wanted = f"{family}-{depth}"
    (row,) = [r for r in table["rows"] if r[key].lower().removeprefix("tiny") == wanted]
    return row


def test_all_of_them_are_tested() -> None:
    shipped = {name for name in choices("experiment") if name.startswith("imagenet/")}
    # Of the iterative one only the protocol differs from that of its students (table 7); the base
    # of all of them holds what they share.
    assert {f"imagenet/{name}" for name in (*EXPERIMENTS, "iterative", "dit_xl_2")} == shipped


def test_table_7_on_its_quick_protocol(tables: dict[str, Any]) -> None:
    cfg, rows = composed("iterative"), tables["table_7"]["rows"]
    assert list(cfg.iterative.depths) == [14, 7] and len(rows) == 4
    assert cfg.training.recovery.steps == 10_000 and cfg.evaluation.num_samples == 10_000
    assert build(cfg.sampler).num_steps(build(cfg.process)) == 64
    assert (cfg.scheme, cfg.keep) == ("even", None)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_table_6(name: str, tables: dict[str, Any]) -> None:
    cfg, row = composed(name), row_of(tables["table_6"], "model", name)
    recovery = cfg.training.recovery
    assert cfg.optimizer._target_.rpartition(".")[2] == row["optimizer"]
    assert cfg.optimizer.weight_decay == row["weight_decay"]
    assert recovery.learning_rate == row["lr"]
    assert recovery.learning_rate_end == row["cosine_eta_min"]
    assert recovery.clip_norm == row["grad_clip"]
    assert cfg.recovery.output_weight == row["alpha_kd"]
    assert cfg.recovery.task_weight == row["alpha_gt"]
    assert cfg.recovery.feature_weight == row["beta_start"]
    assert cfg.recovery.feature_weight_end == row["beta_end"]
    # The teacher is the network that is pruned: DiT-XL/2, or D14 for D7.
    assert cfg.teacher.path == "source"
    assert TEACHERS[row["teacher"]] == EXPERIMENTS[name].source
    delta, _, pattern = row["pruning_config"].partition("-")
    assert cfg.delta._target_.rpartition(".")[2].lower() == delta.lower()
    # A 1:2 pattern can't keep 19 of 28 blocks.
    assert (cfg.scheme == pattern) == (name != "tinydit_d19")


@pytest.mark.parametrize("name", ["tinysit_d14", "tinymar_d16"])
def test_table_2(name: str, tables: dict[str, Any]) -> None:
    recovery, row = composed(name).training.recovery, row_of(tables["table_2"], "method", name)
    epochs = recovery.steps * recovery.batch_size / recipes.IMAGENET_IMAGES
    assert epochs == pytest.approx(row["epochs"], rel=0.01)
    assert blocks(EXPERIMENTS[name].source) == row["depth_from"]
    assert blocks(EXPERIMENTS[name].student) == row["depth_to"]


def blocks(preset: str) -> int:
    """Number of blocks of a preset, over all its stacks."""
    return sum(
        value
        for key, value in PRESETS[preset].items()
        if key.endswith("depth") and key != "head_depth"
    )


@pytest.mark.parametrize(("name", "published"), EXPERIMENTS.items())
def test_constants_of_the_recipes(name: str, published: Published) -> None:
    cfg = composed(name)
    node = OmegaConf.to_container(cfg.backbone)
    kind = FAMILIES[preset_family(published.source)]
    assert node.pop("_target_") == f"{kind.__module__}.{kind.__name__}"
    assert node == PRESETS[published.source]
    scheme = cfg.scheme if isinstance(cfg.scheme, str) else OmegaConf.to_container(cfg.scheme)
    recipe = recipes.STUDENTS[name]
    assert (recipe.source, recipe.student) == (published.source, published.student)
    assert scheme == plain(recipe.scheme)
    borders = [PRESETS[published.source].get("encoder_depth", 0)]
    laid = parse_scheme(scheme, blocks(published.source), [b for b in borders if b])
    assert laid.keep == blocks(published.student)
    for group, part in {
        "recovery": recipe.objective,
        "delta": recipe.lora,
        "optimizer": recipe.optimizer,
        "pruner": recipe.gates,
        "evaluation.guidance": recipe.guidance,
        "training.mask_learning": recipe.mask_learning,
        "training.recovery": recipe.recovery,
    }.items():
        node = OmegaConf.select(cfg, group)
        # A phase is not told of an average that it does not have, or of pre-training's scores.
        untold = {"held_out_every"}
        if group.endswith("mask_learning"):
            untold |= {"ema_decay", "ema_warm_up"}
        for key, value in asdict(part).items():
            if isinstance(value, dict):
                assert {name: node[key][name] for name in value} == value, (group, key)
            elif key not in untold:
                assert node[key] == plain(value), (group, key)
    assert {"_target_": cfg.sampler._target_, **asdict(recipe.sampler)} == cfg.sampler
    assert cfg.evaluation.num_samples == recipe.num_samples
    assert cfg.training.recipe == published.recipe
    shared = recipes.RECIPES[published.recipe]
    for phase in ("mask_learning", "recovery"):
        assert getattr(shared, phase) == getattr(recipe, phase)


def test_values_of_the_official_code() -> None:
    recipe = recipes.tinydit_d14
    assert asdict(recipe.lora) == {"rank": 8, "alpha": 16.0, "dropout": 0.0}
    assert asdict(recipe.gates) == {
        "temperature": {"start": 4.0, "end": 0.1},
        "scale": {"start": 100.0, "end": 100.0},
        "gate_rate_factor": 10.0,
        "gate_ema_decay": 0.999,
    }
    assert recipe.objective.num_sigmas == 2.0
    # One epoch of ImageNet.
    assert recipe.mask_learning.steps == recipes.IMAGENET_IMAGES // recipe.mask_learning.batch_size
    assert recipes.tinydit_d19.scheme == ((3, 4), (3, 4), (2, 4), (3, 4), (2, 4), (3, 4), (3, 4))


@pytest.mark.parametrize(
    "name", ["tinydit_d15.scheme", "tinydit_d14", "tinydit_d14.recovery", "tinydit_d14.lora.x"]
)
def test_what_no_recipe_has_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"recipe:{name}}} is no published value; .*tinydit_d14"):
        check(compose("run", [f"training.recovery.steps=${{tinyfusion.recipe:{name}}}"]))


def plain(value: Any) -> Any:
    """As a configuration file has it."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_single_keys_of_a_recipe_can_be_overridden(name: str) -> None:
    given = ["training.recovery.steps=7", "recovery.feature_weight=3", "pruner.scale.end=5"]
    cfg, whole = composed(name, *given), composed(name)
    changed = OmegaConf.to_container(whole)
    changed["training"]["recovery"]["steps"] = 7
    changed["recovery"]["feature_weight"], changed["pruner"]["scale"]["end"] = 3, 5
    assert OmegaConf.to_container(cfg) == changed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_protocol_of_the_paper(name: str) -> None:
    cfg = composed(name)
    family = preset_family(EXPERIMENTS[name].source)
    process, sampler = build(cfg.process), build(cfg.sampler)
    assert process.kind == sampler.process_kind == FAMILIES[family].process_kind
    # A SiT's learned rows are discarded, so there are no variances to compare.
    assert (cfg.recovery.feature_mask, cfg.recovery.variance_kl) == ("separate", family != "sit")
    assert not getattr(process, "clip", False)
    assert sampler.num_steps(process) == {"dit": 250, "sit": 250, "mar": 64}[family]
    assert cfg.evaluation.sampler == cfg.sampler and cfg.evaluation.num_samples == 50_000
    guidance = (cfg.evaluation.guidance.scale, cfg.evaluation.guidance.channels)
    assert guidance == {"dit": (1.5, 3), "sit": (1.5, 3), "mar": (3.0, None)}[family]
    assert cfg.evaluation.extractor == "tinyfusion-inception"
    decoder = "kl16" if family == "mar" else "stabilityai/sd-vae-ft-ema"
    assert cfg.evaluation.autoencoder.path == decoder
    assert (cfg.trainer.accelerator, cfg.trainer.precision) == ("gpu", "bf16-mixed")
    assert cfg.data._target_.endswith(".Latents") and cfg.data.root == "s"
