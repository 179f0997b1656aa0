"""A pruner and a recovery from outside the package that train in several phases each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyfusion import Decision, load
from tinyfusion.cli import main

MODULE = '''
from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.pruners.contract import Choice
from tinyfusion.recovery.objective import Objective
from tinyfusion.recovery.teacher import FrozenTeacher
from tinyfusion.training.phases import Phase
from tinyfusion.training.pretrain import Pretraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.settings import TrainingSettings


def length(steps):
    return TrainingSettings(steps, batch_size=8, learning_rate=1e-2)


class Drift:
    """Keeps the two blocks of the largest weights after two trainings."""

    uses_keep = False  # how many stay, its last phase says

    def phases(self, context):
        def phase(name, steps, leaves=None):
            def module():
                shared = context.shared(name, length(steps))
                return Pretraining(context.net, 0.9, None, 500, **shared)

            return Phase(name, module, length(steps), leaves)

        leaves = Decision((0, 1), context.net.depth, "drift")
        return [phase("coarse", 15), phase("fine", 20, leaves)]

    def choose(self, context):
        net = context.trained["fine"].trained_net
        sizes = [sum(float(p.detach().norm()) for p in block.parameters()) for block in net.blocks]
        largest = sorted(range(net.depth), key=lambda i: -sizes[i])[:2]
        return Choice(tuple(sorted(largest)), scores={"sizes": sizes})


class Twice:
    """The teacher's outputs first, the process's own loss afterwards."""

    uses_teacher = True

    def check(self, student, teacher, process):
        if teacher is None:
            raise InputError("recovery: Twice needs a teacher")

    def phases(self, context):
        def phase(name, steps, objective, teacher):
            def module():
                shared = context.runner.shared(name, context.student, length(steps))
                return Recovery(context.student, teacher, objective, [], 0.9, **shared)

            return Phase(name, module, length(steps))

        guide = FrozenTeacher(context.teacher)
        return [
            phase("outputs", 15, Objective(0.0, 1.0), guide),
            phase("task", 20, Objective(), None),
        ]
'''
OVERRIDES = ("pruner=drift", "recovery=twice")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Arguments that let the command line find `MODULE` and its configurations."""
    folder = tmp_path / "own"
    for group, name in (("pruner", "Drift"), ("recovery", "Twice")):
        (folder / "conf" / group).mkdir(parents=True)
        file = folder / "conf" / group / f"{name.lower()}.yaml"
        file.write_text(f"_target_: my_phases.{name}\n")
        # Builds, but is none of the kind.
        (file.parent / "wrong.yaml").write_text("_target_: tinyfusion.gating.deltas.Frozen\n")
    (folder / "my_phases.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(__import__("sys").modules, "my_phases", raising=False)
    return ("--config-dir", str(folder / "conf"))


def test_a_dry_run_counts_phases_that_the_package_does_not_know(tf, own) -> None:
    result = tf("run", *own, *OVERRIDES, "dry_run=true", "dry_run_probe=false")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    names = ["coarse", "fine", "outputs", "task"]
    assert [line for line in lines if line in names] == names
    assert [line.split()[0] for line in lines if "steps x global batch 8" in line] == [
        *("15", "20"),
        *("15", "20"),
    ]
    # What the pruner's last phase says that it leaves.
    assert any(line.startswith("pruned") and "2 blocks" in line for line in lines)


def test_phases_are_executed_in_order_and_resumed(
    tf, own, root: Path, killed_when: Callable[..., None], assert_same_files: Callable[..., None]
) -> None:
    fixed = (*own, *OVERRIDES, "trainer.resume_every=5")
    whole, broken = root / "whole", root / "broken"
    assert tf("run", *fixed, f"hydra.run.dir={whole}").status == 0
    decision = Decision.load(whole / "decision.json")
    assert decision.method == "drift" and len(decision.scores["sizes"]) == 4
    assert load(whole / "recovered").depth == 2
    config = json.loads((whole / "recovered/config.json").read_text())
    facts = json.dumps(config)
    assert '"steps": 35' in facts and '"images_seen": 280' in facts
    logs = {file.parents[2].name for file in whole.rglob("metrics.csv")}
    assert logs == {"coarse", "fine", "outputs", "task"}

    arguments = (whole / "command.txt").read_text().split()[1:]
    start = [*arguments[:1], *own, *arguments[1:], f"hydra.run.dir={broken}"]
    killed_when((broken / "prune/fine/resume.ckpt").is_file, start)
    assert not (broken / "decision.json").exists()
    killed_when((broken / "recover/task/resume.ckpt").is_file, ["run", f"resume={broken}"])
    assert not (broken / "recovered").exists()
    assert main(["run", f"resume={broken}"]) == 0
    assert_same_files(
        whole, broken, "decision.json", "pruned/model.safetensors", "recovered/model.safetensors"
    )
    # The first phases were restored, not trained again; nothing of them is left.
    for name in ("prune/coarse", "recover/outputs"):
        assert len(list((broken / name).rglob("metrics.csv"))) == 1
    assert not list(broken.rglob("resume.ckpt")) and not list(whole.rglob("resume.ckpt"))


def test_what_an_own_recovery_refuses_is_refused_before_work(tf, own, root: Path) -> None:
    result = tf("run", *own, *OVERRIDES, "teacher=none")
    assert result.status == 2 and "Twice needs a teacher" in result.err
    assert not list(root.rglob("decision.json"))


@pytest.mark.parametrize(
    ("key", "needs"), [("pruner", "choose"), ("recovery", "uses_teacher, check, phases")]
)
def test_a_class_that_lacks_a_method_is_named(tf, own, root: Path, key: str, needs: str) -> None:
    result = tf("run", *own, "pruner=drift", f"{key}=wrong")
    assert result.status == 2 and f"a class for {key}= needs {needs}" in result.err
    assert result.err.count("\n") == 1 and not root.exists()
