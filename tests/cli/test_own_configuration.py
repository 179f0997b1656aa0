"""A user's own configuration and classes, from outside the package."""

from __future__ import annotations

import pytest

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
    for group in ("pruner", "experiment", "data"):
        (conf / group).mkdir(parents=True)
    (conf / "pruner/mine.yaml").write_text("_target_: my_pruners.FirstBlocks\noffset: 1\n")
    (conf / "experiment/mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /pruner: mine}]\n"
        "seed: 7\nkeep: 2\nrecovery: {task_weight: 0.5}\n"
    )
    return conf


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
        (["pruner=mien"], "valid: indices, learned, mine, random, shortgpt"),
        (["pruner=mine", "+pruner.offfset=2"], "unknown key 'pruner.offfset'; valid for pruner: o"),
        (["pruner=mine", "pruner.offset=two"], "pruner.offset='two' must be a whole number"),
    ],
)
def test_mistakes_with_own_configuration(tf, root, own, overrides, fragment) -> None:
    result = tf("run", "--config-dir", str(own), *overrides)
    assert result.status == 2 and fragment in result.err and not root.exists()
