"""Experiments of the paper hold its values: table 6, the schemes, and the recipes as data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tinyfusion.settings.check import check
from tinyfusion.settings.overview import choices, conf_folder
from tinyfusion.training import recipes

PAPER_TABLES = Path(__file__).resolve().parents[3] / "shared" / "paper_tables.yaml"
EXPERIMENTS = {"tinydit_d14": (28, 14), "tinydit_d19": (28, 19), "tinydit_d7": (14, 7)}
"""Blocks of the network that is pruned, and of the student."""


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def composed(name: str) -> DictConfig:
    """What ``tinyfusion run experiment=imagenet/NAME checkpoint=FILE data.root=STORE`` runs."""
    return check(compose("run", [f"experiment=imagenet/{name}", "checkpoint=f", "data.root=s"]))


@pytest.fixture(scope="session")
def table_6() -> dict[str, dict[str, Any]]:
    """Rows of table 6 by model."""
    if not PAPER_TABLES.is_file():
        pytest.skip("published numbers (../shared/paper_tables.yaml) are not present")
    tables = yaml.safe_load(PAPER_TABLES.read_text(encoding="utf-8"))["tables"]
    return {row["model"]: row for row in tables["table_6"]["rows"]}


def test_all_of_them_are_tested() -> None:
    assert {f"imagenet/{name}" for name in EXPERIMENTS} <= set(choices("experiment"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_table_6(name: str, table_6: dict[str, dict[str, Any]]) -> None:
    cfg, row = composed(name), table_6[f"DiT-{name.rpartition('_')[2].upper()}"]
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
    assert cfg.backbone.depth == {"DiT-XL": 28, "DiT-D14": 14}[row["teacher"]]
    delta, _, pattern = row["pruning_config"].partition("-")
    assert cfg.delta._target_.rpartition(".")[2].lower() == delta.lower()
    # A 1:2 pattern can't keep 19 of 28 blocks.
    assert (cfg.scheme == pattern) == (name != "tinydit_d19")


@pytest.mark.parametrize(("name", "depths"), EXPERIMENTS.items())
def test_constants_of_the_recipes(name: str, depths: tuple[int, int]) -> None:
    cfg = composed(name)
    assert (cfg.backbone.depth, cfg.backbone.hidden_size) == (depths[0], 1152)
    scheme = cfg.scheme if isinstance(cfg.scheme, str) else OmegaConf.to_container(cfg.scheme)
    assert scheme == recipes.SCHEMES[name]
    for key, value in recipes.TINYFUSION_RECOVERY.items():
        assert cfg.recovery[key] == value, key
    gates = recipes.TINYFUSION_GATES
    for key in ("temperature", "scale"):
        assert (cfg.pruner[key].start, cfg.pruner[key].end) == gates[key]
    assert cfg.pruner.gate_rate_factor == gates["gate_rate_factor"]
    assert cfg.pruner.gate_ema_decay == gates["ema_decay"]
    assert (cfg.delta.rank, cfg.delta.alpha) == (gates["lora_rank"], gates["lora_alpha"])
    assert cfg.training.recipe == "tinyfusion"
    for stage, recipe in recipes.RECIPES["tinyfusion"].items():
        section = cfg.training[stage]
        assert (section.steps, section.batch_size) == (recipe.steps[0], recipe.batch_size)
        for key, value in recipe.values.items():
            if key == "weight_decay":
                assert cfg.optimizer.weight_decay == value
            elif section[key] is None:
                assert (key, value) == ("learning_rate_end", section.learning_rate)
            else:
                assert section[key] == value, (stage, key)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_protocol_of_the_paper(name: str) -> None:
    cfg = composed(name)
    assert (cfg.recovery.feature_mask, cfg.recovery.variance_kl) == ("separate", True)
    assert not cfg.process.clip and cfg.process.num_steps == 1000
    assert cfg.sampler._target_.endswith("AncestralSampler") and cfg.sampler.steps == 250
    assert cfg.evaluation.sampler.steps == 250 and cfg.evaluation.num_samples == 50_000
    assert (cfg.evaluation.guidance.scale, cfg.evaluation.guidance.channels) == (1.5, 3)
    assert cfg.evaluation.extractor == "inception-v3-compat"
    assert cfg.evaluation.autoencoder.path == "stabilityai/sd-vae-ft-ema"
    assert (cfg.trainer.accelerator, cfg.trainer.precision) == ("gpu", "bf16-mixed")
    assert cfg.data._target_.endswith(".Latents") and cfg.data.root == "s"
