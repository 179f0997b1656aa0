"""Width pruning goes through the same pipeline as depth pruning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyfusion.checkpoints import load
from tinyfusion.cli import main
from tinyfusion.decision import Decision

WIDTHS = ("pruner=diff_pruning", "pruner.num_samples=8", "pruner.stride=250", "pruner.round_to=4")


def test_a_decision_is_taken_up_and_applied_by_itself(
    tf, only_run: Callable[[str], Path], tmp_path: Path
) -> None:
    assert tf("prune", *WIDTHS).status == 0
    folder = only_run("prune")
    (folder / "finished.json").unlink()
    (folder / "pruned/config.json").unlink()
    done = tf("prune", f"resume={folder}", exact=True)
    assert done.status == 0, done.err
    assert f"taking the decision in {folder / 'decision.json'}" in done.out
    pruned = load(folder / "pruned")
    own = tmp_path / "given"
    given = (f"decision={folder / 'decision.json'}", f"hydra.run.dir={own}")
    done = tf("recover", *given, "recovery=kd", "start=fresh")
    assert done.status == 0, done.err
    assert Decision.load(own / "decision.json") == Decision.load(folder / "decision.json")
    assert load(own / "recovered").config() == pruned.config()
    own = tmp_path / "run"
    given = (f"decision={folder / 'decision.json'}", f"hydra.run.dir={own}", "evaluation=none")
    short = ("training.recovery.steps=2", "training.recovery.batch_size=8")
    done = tf("run", *given, *short, "recovery=finetune", small=False)
    assert done.status == 0, done.err
    assert (own / "decision.json").is_file()
    done = tf("recover", f"checkpoint={folder / 'pruned'}", "recovery=finetune")
    assert done.status == 2
    assert "records no removed blocks: give decision=PATH" in done.err


def test_the_decision_of_a_run_of_version_0_1_is_taken_up(tf, tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "data" / "version_0_1"
    shutil.copytree(old / "widths", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/pruned")
    given = (f"checkpoint={old / 'source'}", f"hydra.run.dir={tmp_path / 'run'}")
    done = tf("prune", *WIDTHS, *given)
    assert done.status == 0, done.err
    assert f"taking the decision in {tmp_path / 'run/widths.json'}" in done.out
    weights = "pruned/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (old / "widths" / weights).read_bytes()


def test_a_number_of_blocks_is_said_to_be_of_no_use(tf) -> None:
    done = tf("prune", *WIDTHS, "keep=2")
    assert done.status == 0, done.err
    assert "keep=2: not used, as pruner=diff_pruning says itself what stays" in done.out + done.err


@pytest.mark.slow
def test_run_recover_and_resume(tf, only_run: Callable[[str], Path], root: Path) -> None:
    done = tf("run", *WIDTHS, "recovery=kd")
    assert done.status == 0, done.err
    folder = only_run("run")
    decision = Decision.load(folder / "decision.json")
    assert decision.budget == {"ratio": 0.5}
    assert abs(decision.resized.reached - 0.5) < 0.02
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["decision"] == json.loads(json.dumps(decision.summary()))
    assert metrics["decision"]["method"] == "diff_pruning"
    assert metrics["models"]["recovered"]["parameters"] == decision.resized.parameters
    assert metrics["models"]["recovered"]["depth"] == metrics["models"]["source"]["depth"] == 4
    assert "diff_pruning:" in (folder / "table.md").read_text()
    recovered = load(folder / "recovered")
    assert recovered.config()["hidden_size"] == decision.resized.widths["hidden_size"]
    assert recovered.kept_from is None

    # Finished phases are not repeated, and a deleted one is made again from the decision.
    (folder / "metrics.json").unlink()
    (folder / "finished.json").unlink(missing_ok=True)
    before = (folder / "decision.json").read_bytes()
    assert tf("run", f"resume={folder}", exact=True).status == 0
    assert (folder / "decision.json").read_bytes() == before
    assert (folder / "metrics.json").is_file()

    # The decision alone applies to the source, in recover as in run.
    given = f"decision={folder / 'decision.json'}"
    done = tf("recover", given, "recovery=kd")
    assert done.status == 0, done.err
    again = load(only_run("recover") / "recovered")
    assert again.config() == recovered.config()
    assert Decision.load(only_run("recover") / "decision.json") == decision
    # What was pruned in width is recovered from its own file, too, and pruned in depth.
    done = tf("recover", f"checkpoint={folder / 'pruned'}", "recovery=finetune", "teacher=none")
    assert done.status == 0, done.err
    done = tf("prune", f"checkpoint={folder / 'recovered'}", "pruner=indices", "pruner.kept=[0,3]")
    assert done.status == 0, done.err


def test_hidden_states_are_refused_before_anything_is_done(tf, root: Path) -> None:
    done = tf("run", *WIDTHS)
    assert done.status != 0
    assert "give recovery=kd or recovery=finetune" in done.err
    assert not root.exists() or not any((root / "run").iterdir())
    done = tf("run", *WIDTHS, "recovery=kd", "stages=seams_first")
    assert done.status != 0
    assert "removes none; give stages=none" in done.err


def test_inspect_says_what_a_width_decision_and_its_model_are(
    tf, only_run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tf("prune", *WIDTHS).status == 0
    folder = only_run("prune")
    capsys.readouterr()
    assert main(["inspect", str(folder / "decision.json")]) == 0
    out = capsys.readouterr().out
    for text in ("which channels of a model stay", "hidden_size", "% removed", "diff_pruning"):
        assert text in out
    assert main(["inspect", str(folder / "pruned")]) == 0
    out = capsys.readouterr().out
    assert "won't load" not in out
    assert main(["convert", str(folder / "pruned"), str(folder / "net.pt"), "--to", "public"]) == 0
    assert load(folder / "net.pt").config() == load(folder / "pruned").config()
    card = (folder / "net.pt.md").read_text()
    resized = Decision.load(folder / "decision.json").resized
    for text in (
        "- pruned\n- width-pruning\n",
        ", pruned in width by diff_pruning.",
        f"**Widths**: hidden_size 16 to {resized.widths['hidden_size']}, ",
        f"**Parameters removed**: {100 * resized.reached:.1f} %",
    ):
        assert text in card
    assert main(["convert", str(folder / "pruned"), str(folder / "d"), "--to", "diffusers"]) != 0


def test_a_dry_run_counts_what_a_run_would_make(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ("backbone=dit_digits", "backbone.depth=4")
    assert main(["run", "dry_run=true", *tiny, *WIDTHS, "pruner.ratio=0.75", "recovery=kd"]) == 0
    out = capsys.readouterr().out
    assert "4 blocks (hidden_size 16, num_heads 2, mlp_width" in out
    assert list(tmp_path.iterdir()) == []
    assert main(["run", "dry_run=true", *tiny, *WIDTHS]) != 0
    assert "give recovery=kd" in capsys.readouterr().err
