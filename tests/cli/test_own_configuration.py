"""A user's own configuration and classes, from outside the package."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

import tinyfusion as tf_api


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with configuration files, and a module on the path."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "my_pruners.py").write_text(
        "from tinyfusion.pruners.contract import Choice\n"
        "class FirstBlocks:\n"
        "    def __init__(self, offset: int = 0):\n"
        "        self.offset = offset\n"
        "    def choose(self, context):\n"
        "        return Choice(tuple(range(self.offset, self.offset + context.keep)))\n"
    )
    monkeypatch.syspath_prepend(modules)
    conf = tmp_path / "conf"
    for group in ("pruner", "experiment", "data", "backbone"):
        (conf / group).mkdir(parents=True)
    (conf / "pruner/mine.yaml").write_text("_target_: my_pruners.FirstBlocks\noffset: 1\n")
    (conf / "experiment/mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /pruner: mine}]\n"
        "seed: 7\nkeep: 2\nrecovery: {task_weight: 0.5}\n"
    )
    (conf / "backbone/plain.yaml").write_text("_target_: my_models.Plain\nwidth: 3\n")
    (conf / "backbone/flow.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /process: sit_gvp}, {override /sampler: ode_euler_50}]\n"
        "checkpoint: flow.pt\nbackbone: {_target_: my_models.Flow}\n"
    )
    return conf


def shown(tf, own, *overrides: str) -> DictConfig:
    """The configuration that ``--cfg job`` prints."""
    result = tf("run", "--cfg", "job", "--config-dir", str(own), *overrides, exact=True)
    assert result.status == 0, result.err
    return OmegaConf.create(result.out)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module.Mine", "No module named 'no_such_module'"),
        ("my_pruners.Mine", "'Mine' is importable from module 'my_pruners'?"),
        ("my_mistake.Mine", "(SyntaxError: "),
        ("my_pruners", "_target_='my_pruners' is a module; valid: the dotted name of a class"),
    ],
)
def test_own_class_that_is_not_there_is_refused_in_one_line(
    tf, own, root, caplog, target, reason
) -> None:
    (own.parent / "modules/my_mistake.py").write_text("class Mine(:\n")
    result = tf("prune", f"pruner._target_={target}")
    assert result.status == 2 and result.err.count("\n") == 1, result.err
    assert f"pruner._target_='{target}'" in result.err and reason in result.err
    # What Hydra logs of it would be a second message on the terminal.
    assert "getting object" not in caplog.text and not root.exists()


def test_own_backbone_that_is_a_class_alone(tf, own) -> None:
    cfg = shown(tf, own, "backbone=plain", "backbone.width=4")
    assert cfg.backbone == {"_target_": "my_models.Plain", "width": 4}
    assert cfg.process._target_.endswith("GaussianDiffusion") and cfg.checkpoint == "digits"


def test_own_backbone_that_chooses_its_process_as_ours_do(tf, own) -> None:
    cfg = shown(tf, own, "backbone=flow")
    assert cfg.backbone == {"_target_": "my_models.Flow"} and cfg.checkpoint == "flow.pt"
    assert (cfg.process.path, cfg.sampler.method) == ("gvp", "euler")
    # What the command line or an experiment chooses wins.
    given = ("process=sit_vp", "sampler=ode_dopri5", "checkpoint=other.pt")
    cfg = shown(tf, own, "backbone=flow", *given)
    assert (cfg.process.path, cfg.sampler.method, cfg.checkpoint) == ("vp", "dopri5", "other.pt")
    (own / "experiment/flow.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /sampler: ode_heun_10}, {override /backbone: flow}]\n"
        "checkpoint: third.pt\n"
    )
    cfg = shown(tf, own, "experiment=flow")
    assert (cfg.process.path, cfg.sampler.method, cfg.checkpoint) == ("gvp", "heun2", "third.pt")


def test_own_pruner_and_experiment(tf, only_run, own) -> None:
    result = tf("run", "experiment=mine", "--config-dir", str(own))
    assert result.status == 0, result.err
    decision = tf_api.Decision.load(only_run("run") / "decision.json")
    assert decision.kept == (1, 2) and decision.method == "firstblocks"
    # An experiment's values win over the command's own.
    assert decision.seed == 7 and decision.config["recovery"]["task_weight"] == 0.5


def test_own_pruner_by_its_target_alone(tf, only_run, own) -> None:
    result = tf("prune", "--config-dir", str(own), "pruner=mine", "pruner.offset=0", "keep=1")
    assert result.status == 0, result.err
    assert tf_api.Decision.load(only_run("prune") / "decision.json").kept == (0,)


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["pruner=mien"], " learned, lim, mine, "),
        (["pruner=mine", "+pruner.offfset=2"], "unknown key 'pruner.offfset'; valid for pruner: o"),
        (["backbone=flwo"], "backbone=flwo is not known; valid: dit, "),
        (["pruner=mine", "pruner.offset=two"], "pruner.offset='two' must be a whole number"),
    ],
)
def test_mistakes_with_own_configuration(tf, root, own, overrides, fragment) -> None:
    result = tf("run", "--config-dir", str(own), *overrides)
    assert result.status == 2 and fragment in result.err and not root.exists()
