"""Pruners from outside the package: the examples of the documentation, in every way they go."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tinyfusion import Decision, HeldOutLoss, load, prune, save_model
from tinyfusion.backbones.contract import Backbone, forward_with_states, predict
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.mar import MAR
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.pruners.selectors import TopK

EXAMPLE = Path(__file__).parents[2] / "docs" / "own_pruner"
OWN = ("--config-dir", str(EXAMPLE / "conf"))


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples' folder on the path, as PYTHONPATH puts it there."""
    monkeypatch.syspath_prepend(EXAMPLE)


def randomised(net: Backbone, std: float = 0.1) -> Backbone:
    """The network with random weights everywhere."""
    draws = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std, generator=draws)
    return net


def with_idle(idle: Collection[int], depth: int = 6) -> DiT:
    """A model whose ``idle`` blocks, their gates being closed, leave the states alone."""
    net = randomised(DiT(8, 2, 1, hidden_size=16, depth=depth, num_heads=2, num_classes=10), 0.3)
    for i in idle:
        for parameter in net.blocks[i].adaLN_modulation[1].parameters():
            torch.nn.init.zeros_(parameter)
    return net


@pytest.fixture
def calibration() -> HeldOutLoss:
    """A fixed noised batch."""
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    return HeldOutLoss(GaussianDiffusion(), images, labels, repeats=1)


@pytest.mark.parametrize(("name", "most"), [("window", 42), ("taylor", 30)])
def test_the_examples_are_short(name: str, most: int) -> None:
    lines = (EXAMPLE / f"{name}.py").read_text("utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= most


def test_window_through_the_whole_pipeline(tf, only_run, tmp_path) -> None:
    model = save_model(with_idle([2, 3, 4]), tmp_path / "model")
    few = ("pruner.num_samples=16", "training.recovery.steps=4", "evaluation=none")
    own = (*OWN, "pruner=window", "keep=3", "recovery=kd", f"checkpoint={model}")
    result = tf("run", *own, *few, small=False)
    assert result.status == 0, result.err
    decision = Decision.load(only_run("run") / "decision.json")
    assert (decision.method, decision.kept) == ("window", (0, 1, 5))
    angles = decision.scores["angular_distance"]
    assert list(angles) == ["0", "1", "2", "3"]
    assert angles["2"] < 1e-3 < min(angles[start] for start in "013")
    assert load(only_run("run") / "recovered").kept_from == (0, 1, 5)


def test_window_measures_angles_between_the_ends_of_each_run(tf, only_run, tmp_path) -> None:
    net = with_idle([])
    model = save_model(net, tmp_path / "model")
    small = ("pruner.num_samples=16", "keep=4")
    assert tf("prune", *OWN, "pruner=window", *small, f"checkpoint={model}").status == 0
    scores = Decision.load(only_run("prune") / "decision.json").scores["angular_distance"]

    from tinyfusion.data.digits import Digits
    from tinyfusion.pruners.contract import calibration_batch

    process = GaussianDiffusion()
    batch = calibration_batch(process, Digits(), 16, 0)
    ((_, corrupted),) = batch.parts
    with torch.no_grad():
        seen = corrupted.inputs, batch.conditioning
        _, states = forward_with_states(net.eval(), *seen, range(6))
    for start in range(1, 5):
        cosine = F.cosine_similarity(states[start - 1], states[start + 1], dim=-1)
        wanted = float(torch.arccos(cosine).mean()) / math.pi
        assert scores[str(start)] == pytest.approx(wanted, rel=1e-4)


def test_window_stays_within_a_stack(tf, only_run, tmp_path) -> None:
    net = randomised(
        MAR(8, 16, 3, 2, 2, 2, 1, num_classes=10, buffer_size=2, head_depth=1, head_width=16)
    )
    own = (*OWN, "pruner=window", "pruner.num_samples=16", "backbone=mar", "process.patch_size=2")
    own = (*own, "sampler=mar_16")
    own = (*own, f"checkpoint={save_model(net, tmp_path / 'model')}")
    result = tf("prune", *own, "keep=1", small=False)
    assert result.status == 2 and "no stack has 4 blocks in a row to drop" in result.err
    result = tf("prune", *own, "keep=3", small=False)
    assert result.status == 0, result.err
    scores = Decision.load(only_run("prune") / "decision.json").scores
    assert list(scores["angular_distance"]) == ["0", "1", "3"]


@pytest.mark.parametrize("selector", ["top_k", "greedy", "grouped", "knapsack"])
def test_taylor_goes_with_every_selector(tf, only_run, tmp_path, selector) -> None:
    model = save_model(with_idle([1, 2, 5]), tmp_path / "model")
    few = (f"checkpoint={model}", "pruner.num_samples=16", "scheme=1:2")
    result = tf("prune", *OWN, "pruner=taylor", f"selector={selector}", *few)
    assert result.status == 0, result.err
    decision = Decision.load(only_run("prune") / "decision.json")
    assert (decision.method, decision.kept) == ("taylor", (0, 3, 4))
    assert decision.scores["selector"] == selector
    scores = decision.scores["first_order_change"]
    assert [scores[i] for i in (1, 2, 5)] == [0, 0, 0] and min(scores[0], *scores[3:5]) > 0


def test_taylor_sums_weights_times_gradients(calibration) -> None:
    from taylor import Taylor

    net, pruner = with_idle([], depth=3), Taylor(TopK(), num_samples=16)
    found = pruner.scores(net, calibration, (0, 1, 2))
    assert all(parameter.grad is None for parameter in net.parameters())
    ((_, corrupted),) = calibration.parts
    loss = calibration.process.loss(
        predict(net.eval(), corrupted.inputs, calibration.conditioning), corrupted
    )["loss"].mean()  # fmt: skip
    for i, block in enumerate(net.blocks):
        weights = list(block.parameters())
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        wanted = sum(
            float((w * g).detach().abs().sum()) for w, g in zip(weights, gradients, strict=True)
        )
        assert float(found[i]) == pytest.approx(wanted, rel=1e-4)


def test_taylor_scores_the_model_that_runs_the_kept_blocks_only(calibration) -> None:
    from taylor import Taylor

    net, pruner = with_idle([], depth=4), Taylor(TopK(), num_samples=16)
    cut = prune(net, [0, 3])
    torch.testing.assert_close(
        pruner.scores(net, calibration, (0, 3)), pruner.scores(cut, calibration, (0, 1))
    )


def test_own_pruners_in_a_sweep_and_in_the_help(tf, root, capsys) -> None:
    result = tf("prune", *OWN, "pruner=window,taylor,shortgpt", "keep=2", "-m")
    assert result.status == 0, result.err
    decisions = sorted(Decision.load(file).method for file in root.rglob("decision.json"))
    assert decisions == ["shortgpt", "taylor", "window"]
    result = tf("prune", "--help", *OWN, exact=True)
    assert "window" in result.out and "taylor" in result.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("pruner=window", "pruner.num_samples=0"), "pruner.num_samples=0 must be at least 1"),
        (("pruner=taylor", "pruner.num_samples=0"), "pruner.num_samples=0 must be at least 1"),
        (
            ("pruner=taylor", "selector=grouped", "scheme=1:2", "keep=1"),
            "scheme=1:2 keeps 2 of 4 blocks but keep=1",
        ),
        (("pruner=windwo",), "pruner=windwo is not known; valid: "),
        (("pruner=window", "+pruner.sampels=8"), "unknown key 'pruner.sampels'; valid for pruner"),
    ],
)
def test_mistakes_are_told_in_one_line(tf, overrides, message) -> None:
    result = tf("prune", *OWN, "keep=2", *overrides)
    assert result.status == 2 and message in result.err and result.err.count("\n") == 1


def test_a_dry_run_takes_an_own_pruner(tf) -> None:
    result = tf("run", *OWN, "pruner=window", "keep=2", "dry_run=true", "dry_run_probe=false")
    assert result.status == 0, result.err


def test_an_own_selector_goes_with_every_criterion(tf, own_conf, only_run) -> None:
    (own_conf.parent / "my_selector.py").write_text(
        "from tinyfusion.pruners.selectors import Selection\n"
        "class Ends:\n"
        "    name, uses_scheme = 'ends', False\n"
        "    def select(self, score, budget):\n"
        "        kept = (*range(budget.keep - 1), budget.count - 1)\n"
        "        return Selection(kept, score(range(budget.count)), {'why': 'both ends'})\n"
    )
    (own_conf / "selector/ends.yaml").write_text("_target_: my_selector.Ends\n")
    own = ("--config-dir", str(own_conf), "selector=ends", "pruner=flux_lite", "keep=3")
    result = tf("prune", *own, "pruner.num_samples=16")
    assert result.status == 0, result.err
    decision = Decision.load(only_run("prune") / "decision.json")
    assert decision.kept == (0, 1, 3) and decision.scores["why"] == "both ends"
    assert decision.scores["selector"] == "ends"


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for configurations of one's own, beside which modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path / "own")
    (tmp_path / "own/conf/selector").mkdir(parents=True)
    return tmp_path / "own/conf"


def test_the_python_of_the_documentation(capsys) -> None:
    text = (EXAMPLE.parent / "own_pruner.md").read_text("utf-8")
    snippet = text.partition("## Trying it in Python")[2].partition("```python")[2]
    exec(snippet.partition("```")[0].replace("num_samples=64", "num_samples=4"), {})
    assert "tensor([" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_of_the_documentation(tf, root) -> None:
    text = (EXAMPLE.parent / "own_pruner.md").read_text("utf-8")
    shown = text.partition("```bash")[2].partition("```")[0]
    lines = [line.split() for line in shown.splitlines() if line.startswith("tinyfusion")]
    assert [words[1] for words in lines] == ["run", "run", "run", "prune"]
    for _, command, own, *overrides in lines:
        assert own == "$own"
        few = ["checkpoint=digits", f"output_root={root}", "trainer.threads=1"]
        if command == "run":
            few += ["training.recovery.steps=2", "evaluation=none"]
        few += [] if "pruner.num_samples=256" in overrides else ["pruner.num_samples=16"]
        result = tf(command, *OWN, *overrides, *few, exact=True)
        assert result.status == 0, result.err
    depths = sorted(len(Decision.load(file).kept) for file in root.rglob("decision.json"))
    assert depths == [14, 14, 14, 20]
