"""Every command from end to end on a tiny model: what it writes and what it says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

import tinyfusion as tf_api
from tinyfusion.commands import run as run_command

TRAINING = tuple(
    f"training.{phase}.{key}"
    for phase in ("mask_learning", "recovery")
    for key in ("steps=2", "batch_size=4")
)


def columns(file: Path) -> list[str]:
    with open(file, newline="") as handle:
        return next(csv.reader(handle))


def test_run_chains_prune_recover_evaluate(tf, root, model, only_run) -> None:
    result = tf("run", "scheme=2:4", "name=first")
    assert result.status == 0, result.err
    assert result.err == ""
    folder = only_run("run")
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {
        "command.txt",
        "config.yaml",
        "decision.json",
        "finished.json",
        "metrics.json",
        "prune/decision.pdf",
        "prune/decision.png",
        "prune/decision.svg",
        "prune/decision_trace.json",
        "prune/log/version_0/metrics.csv",
        "pruned/config.json",
        "pruned/model.safetensors",
        "recover/log/version_0/metrics.csv",
        "recovered/config.json",
        "recovered/model.safetensors",
        "recovered_live/config.json",
        "recovered_live/model.safetensors",
        "run.log",
        "samples.png",
        "table.md",
        "times.json",
    }
    decision = tf_api.Decision.load(folder / "decision.json")
    assert decision.method == "learned" and len(decision.kept) == 2
    assert decision.config["name"] == "first"
    assert (folder / "command.txt").read_text().startswith("tinyfusion run output_root=")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["scheme"] == "2:4" and config["training"]["recovery"]["steps"] == 4
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["models"]) == [
        "source",
        "pruned",
        "recovered",
        "recovered (live weights)",
    ]
    # What the command declares, and a dry run counts.
    assert tuple(metrics["models"]) == run_command.SCORED
    assert {file.parent.name for file in folder.glob("*/model.safetensors")} == {
        *run_command.MODELS
    }
    assert tf_api.load(folder / "recovered").depth == 2
    logged = columns(folder / "prune/log/version_0/metrics.csv")
    assert {"train/loss", "gates/temperature", "gates/margin"} <= set(logged)
    # What is said: phases, progress with loss, the table; nothing of Lightning's.
    assert "mask_learning: 4 of 4 steps (100.0 %), loss " in result.out
    assert "recovery: 4 of 4 steps (100.0 %), loss " in result.out
    assert "speed-up" in result.out
    for noise in ("Epoch 0", "v_num", "GPU available", "Tip", "\r"):
        assert noise not in result.out


def test_lines_without_a_terminal_are_few(tf) -> None:
    result = tf("prune", "training.mask_learning.steps=50")
    lines = [line for line in result.out.splitlines() if " of 50 steps (" in line]
    assert len(lines) == 10


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["pruner=indices", "pruner.kept=[0,3]"], [0, 3]),
        (["pruner=random", "keep=3"], None),
        (["pruner=shortgpt", "pruner.num_samples=16"], None),
        (["pruner=flux_lite", "pruner.num_samples=16", "selector=grouped"], None),
        (["pruner=sensitivity", "pruner.num_samples=16", "selector=greedy", "keep=1"], None),
        (["pruner=laptop_diff", "pruner.num_samples=16"], None),
        (["pruner=oracle"], [0, 3]),
        (["pruner=learned", "scheme=[[1,3],[1,1]]", "delta=full"], None),
        (["pruner=learned", "delta=frozen"], None),
    ],
)
def test_prune(tf, only_run, overrides, kept) -> None:
    result = tf("prune", *overrides)
    assert result.status == 0, result.err
    folder = only_run("prune")
    decision = tf_api.Decision.load(folder / "decision.json")
    assert decision.method == overrides[0].removeprefix("pruner=")
    assert kept is None or list(decision.kept) == kept
    net = tf_api.load(folder / "pruned")
    assert net.depth == len(decision.kept) and net.kept_from == decision.kept
    models = json.loads((folder / "metrics.json").read_text())["models"]
    assert models["source"]["depth"] == 4 and models["pruned"]["depth"] == net.depth
    assert 0 < models["source"]["held_out_loss"] != models["pruned"]["held_out_loss"]
    assert models["pruned"]["parameters"] < models["source"]["parameters"]


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["pruner=first", "selector=greedy"], "selector= changes nothing: the pruner (First)"),
        (["pruner=first", "delta.rank=2"], "delta= changes nothing: the pruner (First)"),
        (["pruner=shortgpt", "selector=greedy"], ""),
        (["pruner=shortgpt", "pruner.selector=${oc.select:selector}", "selector=greedy"], ""),
        (["pruner=first"], ""),
    ],
)
def test_choices_that_the_pruner_does_not_use_are_named(tf, caplog, overrides, warned) -> None:
    result = tf("prune", *overrides, "dry_run=true")
    assert result.status == 0, result.err
    assert ("changes nothing" in caplog.text) == bool(warned) and warned in caplog.text


@pytest.mark.parametrize("recovery", ["finetune", "kd", "repkd", "masked_kd"])
def test_recover_from_the_full_model_and_a_decision(tf, only_run, tmp_path, recovery) -> None:
    decision = tf_api.Decision((0, 3), 4, scheme=[[1, 2], [1, 2]]).save(tmp_path / "d.json")
    result = tf("recover", f"decision={decision}", f"recovery={recovery}")
    assert result.status == 0, result.err
    folder = only_run("recover")
    assert tf_api.load(folder / "recovered").depth == 2
    logged = columns(folder / "recover/log/version_0/metrics.csv")
    assert ("train/features" in logged) == (recovery in ("repkd", "masked_kd"))
    assert ("train/kd" in logged) == (recovery != "finetune")
    assert tf_api.Decision.load(folder / "decision.json").kept == (0, 3)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["skipped_steps"] == 0
    before, after = metrics["models"]["pruned"], metrics["models"]["recovered"]
    assert before["held_out_loss"] != after["held_out_loss"]
    assert ("teacher_distance" in after) == (recovery != "finetune")


def test_recover_an_already_pruned_model(tf, only_run, tmp_path, model) -> None:
    pruned = tmp_path / "pruned"
    tf_api.save_model(tf_api.prune(tf_api.load(model), [1, 2]), pruned, {})
    result = tf("recover", f"checkpoint={pruned}", f"teacher.path={model}")
    assert result.status == 0, result.err
    recovered = json.loads((only_run("recover") / "recovered/config.json").read_text())
    assert recovered["kept_from"] == [1, 2]


def test_recover_needs_to_know_the_teacher(tf, root, tmp_path, model) -> None:
    pruned = tmp_path / "pruned"
    tf_api.save_model(tf_api.prune(tf_api.load(model), [1, 2]), pruned, {})
    result = tf("recover", f"checkpoint={pruned}")
    assert result.status == 2 and "teacher.path=PATH" in result.err
    assert tf("recover").status == 2  # an unpruned model without a decision
    assert not root.exists()


def test_sample(tf, only_run) -> None:
    result = tf("sample", "n=6", "labels=[3,7]", "guidance.scale=2")
    assert result.status == 0, result.err
    folder = only_run("sample")
    assert len(list((folder / "samples").glob("*.png"))) == 6
    assert (folder / "grid.png").is_file()


def test_evaluate(tf, only_run, model) -> None:
    result = tf("evaluate", f"teacher.path={model}")
    assert result.status == 0, result.err
    row = json.loads((only_run("evaluate") / "metrics.json").read_text())["model"]
    assert row["teacher_distance"] == 0 and row["depth"] == 4
    assert {"fid", "precision", "recall", "images_per_s", "macs"} <= set(row)
    assert "ratio" not in row


def test_pretrain(tf, only_run) -> None:
    small = ("backbone.depth=2", "backbone.hidden_size=16", "backbone.num_heads=2")
    result = tf("pretrain", *small)
    assert result.status == 0, result.err
    folder = only_run("pretrain")
    provenance = json.loads((folder / "model/config.json").read_text())["provenance"]
    assert provenance["command"] == (folder / "command.txt").read_text().strip()
    assert "backbone.depth=2" in provenance["command"]
    assert provenance["images_seen"] == 32
    assert tf_api.load(folder / "model").depth == 2


def test_a_decision_made_elsewhere_is_applied(tf, only_run, tmp_path) -> None:
    decision = tf_api.Decision((1, 2), 4).save(tmp_path / "d.json")
    result = tf("run", f"decision={decision}", "recovery=kd")
    assert result.status == 0, result.err
    folder = only_run("run")
    assert not (folder / "prune").exists()
    assert json.loads((folder / "metrics.json").read_text())["decision"]["kept"] == [1, 2]
    assert "pruner, scheme, keep, units and budget are not used" in result.out
    assert "other weights" not in result.out


def test_a_decision_made_from_other_weights_is_pointed_out(tf, tmp_path) -> None:
    decision = tf_api.Decision((1, 2), 4, source_sha256="0" * 64).save(tmp_path / "d.json")
    for command in ("run", "recover"):
        result = tf(command, f"decision={decision}", "recovery=finetune")
        assert result.status == 0, result.err
        assert "was made from other weights (SHA-256 000000000000...)" in result.out


def test_same_seed_same_weights(tf, root) -> None:
    for _ in range(2):
        assert tf("prune", "seed=5").status == 0
    first, second = sorted((root / "prune").iterdir())
    decisions = [tf_api.Decision.load(run / "decision.json") for run in (first, second)]
    assert decisions[0].probabilities == decisions[1].probabilities
    weights = [load_file(run / "pruned/model.safetensors") for run in (first, second)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_bare_state_dict_and_its_heads(tf, root, tmp_path, model) -> None:
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((model / "model.safetensors").read_bytes())
    refused = tf("sample", f"checkpoint={bare}", "n=2")
    assert refused.status == 2 and "num_heads" in refused.err
    assert tf("sample", f"checkpoint={bare}", "n=2", "num_heads=2").status == 0


def test_other_models_than_the_data_are_refused(tf, root, tmp_path) -> None:
    from tinyfusion.backbones.dit import DiT

    tf_api.save_model(DiT(8, 2, 3, 16, 4, 2, num_classes=10), tmp_path / "colour", {})
    result = tf("evaluate", f"checkpoint={tmp_path / 'colour'}")
    assert result.status == 2 and "in_channels" in result.err
    # Sampling needs no data.
    assert tf("sample", f"checkpoint={tmp_path / 'colour'}", "n=2").status == 0


def test_run_on_a_folder_of_images_without_scores(tf, only_run, tmp_path) -> None:
    for index in range(10):
        (tmp_path / "images" / str(index)).mkdir(parents=True)
        Image.new("RGB", (8, 8), (25 * index, 0, 0)).save(tmp_path / f"images/{index}/a.png")
    net = tf_api.DiT(8, 2, 3, 16, 4, 2, num_classes=10)
    tf_api.save_model(net, tmp_path / "colour", {})
    result = tf(
        "run",
        f"checkpoint={tmp_path / 'colour'}",
        "data=imagefolder",
        f"data.root={tmp_path / 'images'}",
        "data.size=8",
        "data.held_out=0",
        "evaluation=none",
        *TRAINING,
        small=False,
    )
    assert result.status == 0, result.err
    folder = only_run("run")
    models = json.loads((folder / "metrics.json").read_text())["models"]
    assert models["recovered"]["depth"] == 2 and set(models["source"]) == {"depth", "parameters"}
    assert tf_api.load(folder / "recovered").in_channels == 3
    assert not (folder / "samples.png").exists()


def test_pretrain_without_scores(tf, only_run) -> None:
    small = ("backbone.depth=2", "backbone.hidden_size=16", "backbone.num_heads=2")
    steps = ("training.pretrain.steps=2", "training.pretrain.batch_size=4")
    result = tf("pretrain", *small, *steps, "evaluation=none", small=False)
    assert result.status == 0, result.err
    row = json.loads((only_run("pretrain") / "metrics.json").read_text())["model"]
    assert set(row) == {"depth", "parameters", "held_out_loss", "held_out_loss_stderr"}


def test_a_scheme_is_read_only_if_it_is_needed(tf, root) -> None:
    given = tf("prune", "pruner=indices", "pruner.kept=[0]", "scheme=1:3")
    assert given.status == 0 and "scheme=1:3: not used" in given.out
    for keep in ("keep=3", "keep=null"):
        refused = tf("prune", "pruner=random", keep, "scheme=1:3")
        assert refused.status == 2 and "4 is not a multiple of 3" in refused.err
