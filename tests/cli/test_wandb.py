"""What commands log to W&B: decisions, artifacts and their lineage, read from offline runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyfusion.checkpoints import weights_sha256
from tinyfusion.files import read_json, sha256_of


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def model_name(path: Path) -> str:
    return f"model-{weights_sha256(path)[:16]}"


def test_lineage_over_commands_that_are_runs_of_their_own(
    tf, tmp_path, model, offline_run, monkeypatch
) -> None:
    """teacher -> decision, pruned -> recovered -> samples, by names that follow from content."""

    def job(command: str, *overrides: str) -> tuple[Path, object]:
        folder = tmp_path / command
        result = tf(command, "logger=wandb", f"hydra.run.dir={folder}", *overrides)
        assert result.status == 0, result.err
        return folder, offline_run(folder)

    pruned, prune = job("prune", "keep=2")
    decision = f"decision-{sha256_of(pruned / 'decision.json')[:16]}"
    kept = read_json(pruned / "decision.json", "decision")["kept"]
    assert prune.used() == [model_name(model)]
    assert [a.name for a in prune.made("decision")] == [decision]
    (cut,) = prune.made("model")
    assert cut.name == model_name(pruned / "pruned") and set(cut.aliases) == {"latest", "pruned"}
    assert [entry.path for entry in cut.manifest.contents] == ["content.json"]  # no weights
    facts = {
        "decided/kept": kept,
        "decided/method": "learned",
        "decided/budget": {"keep": 2},
        "decided/source_sha256": weights_sha256(model),
    }
    assert facts.items() <= prune.summary.items()
    assert prune.config["decided"]["kept"] == kept
    assert prune.summary["pruned/depth"] == 2
    assert len([row for row in prune.history if "prune/decision.path" in row]) == 1

    recovered, recover = job("recover", f"decision={pruned / 'decision.json'}")
    assert recover.used() == [model_name(model), decision]
    made = {a.name: set(a.aliases) for a in recover.made("model")}
    assert made[model_name(recovered / "recovered")] == {"latest", "recovered"}
    assert made[model_name(recovered / "recovered_live")] == {"latest", "recovered_live"}
    assert not recover.made("decision") and recover.summary["decided/kept"] == kept

    scored, evaluate = job("evaluate", f"checkpoint={recovered / 'recovered'}")
    assert evaluate.used() == [model_name(recovered / "recovered")]
    assert evaluate.run.job_type == "evaluate"
    assert not evaluate.made("model") and evaluate.summary["decided/method"] == "learned"
    (samples,) = evaluate.made("samples")
    assert samples.name == f"samples-{sha256_of(scored / 'samples.png')[:16]}"
    assert evaluate.summary["samples.path"]
    fid = read_json(scored / "metrics.json", "metrics")["model"]["fid"]
    assert evaluate.summary["model/fid"] == fid
    # The digest of alike content is alike, so that the server takes it for the same version.
    (again,) = [a for a in evaluate.artifacts if a.use_after_commit]
    (before,) = [a for a in recover.made("model") if a.name == again.name]
    assert again.digest == before.digest


def test_a_run_logs_curves_table_and_the_best_model(tf, only_run, model, offline_run) -> None:
    result = tf("run", "keep=2", "logger=wandb", "logger.wandb.upload_models=true")
    assert result.status == 0, result.err
    folder = only_run("run")
    run = offline_run(folder)
    keys = {key for row in run.history for key in row}
    for phase in ("prune", "recover"):
        for name in ("loss", "learning_rate", "images_per_s"):
            assert f"{phase}/train/{name}" in keys
    assert "recover/held_out/loss" in keys and "prune/held_out/loss" not in keys
    assert "prune/inclusion.nrows" in keys  # one table of all units
    assert not [key for key in keys if key.startswith("prune/gates/") and key[-1].isdigit()]
    scores = read_json(folder / "metrics.json", "metrics")["models"]
    fids = {name: scores[name]["fid"] for name in ("recovered", "recovered (live weights)")}
    assert run.summary["recovered_live/fid"] == fids["recovered (live weights)"]
    best = "recovered" if min(fids, key=fids.get) == "recovered" else "recovered_live"
    (chosen,) = [a for a in run.made("model") if "best" in a.aliases]
    assert set(chosen.aliases) == {"latest", "best", best}
    assert "model.safetensors" in [entry.path for entry in chosen.manifest.contents]
    (samples,) = run.made("samples")
    assert {"samples.png", "metrics.json"} <= {entry.path for entry in samples.manifest.contents}


def test_a_sweep_is_a_group(tf, root, offline_run) -> None:
    result = tf("prune", "-m", "pruner=first,last", "keep=2", "seed=3", "logger=wandb")
    assert result.status == 0, result.err
    (sweep,) = (root / "prune").iterdir()
    # Named by what it runs over; what all share is left out.
    names = {folder.parent.name for folder in sweep.glob("*/finished.json")}
    assert names == {"pruner=first", "pruner=last"}
    for name in names:
        assert offline_run(sweep / name).run.run_group == sweep.name


def test_curves_change_no_weights(tf, tmp_path) -> None:
    """Learning rate and throughput are read, the held-out loss draws from its own generators."""
    found = []
    for index, every in enumerate(("null", "1", "0")):
        folder = tmp_path / str(index)
        options = (f"callbacks.curves.held_out_every={every}", "trainer.log_every=1")
        result = tf("run", "keep=2", "evaluation=none", f"hydra.run.dir={folder}", *options)
        assert result.status == 0, result.err
        found.append([weights_sha256(folder / n) for n in ("recovered", "recovered_live")])
        header = (folder / "recover/log/version_0/metrics.csv").read_text().splitlines()[0]
        assert ("held_out/loss" in header.split(",")) == (every != "0")
    assert found[0] == found[1] == found[2]


def test_learning_rate_that_is_logged_is_the_steps_own(tf, only_run) -> None:
    rates = ("learning_rate=1e-3", "learning_rate_end=1e-3", "warm_up=3")
    options = [f"++training.recovery.{text}" for text in rates]
    result = tf("run", "keep=2", "evaluation=none", "trainer.log_every=1", *options)
    assert result.status == 0, result.err
    lines = (only_run("run") / "recover/log/version_0/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/learning_rate")
    found = [float(line.split(",")[column]) for line in lines[1:]]
    assert found == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
