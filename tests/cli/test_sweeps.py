"""Sweeps: readable folders, list schemes, failures that hide nothing."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

import tinyfusion as tf_api
from tinyfusion.settings.compose import MAX_NAME, run_name
from tinyfusion.settings.overrides import shared

FIRST_STEP = (
    "training.pretrain.steps=1",
    "training.pretrain.batch_size=4",
    "evaluation=none",
)
D19 = "[[3,4],[3,4],[2,4],[3,4],[2,4],[3,4],[3,4]]"


def sweep_folder(root):
    (folder,) = (root / "prune").iterdir()
    return folder


@pytest.fixture
def prune(tf, tmp_path, model, monkeypatch):
    """A sweep whose folder names hold only what varies: the rest is in an experiment file."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/small.yaml").write_text(
        "# @package _global_\n"
        f"checkpoint: {model}\n"
        "training: {mask_learning: {steps: 3, batch_size: 8}}\n"
    )

    def run(*overrides: str):
        fixed = ["experiment=small", "--config-dir", str(tmp_path)]
        return tf(
            "prune", "-m", f"output_root={tmp_path / 'outputs'}", *overrides, *fixed, exact=True
        )

    return run


def test_grid_of_schemes_and_deltas(prune, root) -> None:
    result = prune("scheme=1:2,2:4", "delta=full,frozen")
    assert result.status == 0, result.err
    folder = sweep_folder(root)
    assert {f.parent.name for f in folder.glob("*/finished.json")} == {
        f"scheme={scheme},delta={delta}"
        for scheme in ("1of2", "2of4")
        for delta in ("full", "frozen")
    }
    config = OmegaConf.load(folder / "scheme=2of4,delta=full/config.yaml")
    assert config.scheme == "2:4" and config.pruner.delta._target_.endswith("Full")
    # What was swept, beside the main figures, is printed when all is done.
    table = result.out[result.out.index(f"{folder.name}: 4 runs") :]
    assert "scheme" in table and "delta" in table and "held-out loss ↓" in table
    assert all(table.count(name) == 2 for name in ("1:2", "2:4", "Full", "Frozen"))
    assert f"tinyfusion report {folder}" in table


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["scheme=1:2", "delta=lora", "seed=0"], "scheme=1of2,delta=lora,seed=0"),
        ([r"scheme=1\:2"], "scheme=1of2"),
        (["training.recovery.steps=5"], "training.recovery.steps=5"),
        (["trainer.x=0.00025", "seed=123456789"], "trainer.x=0.00025,seed=123456789"),
        (["output_root=/a/b", "seed=1"], "seed=1"),
        ([], "default"),
    ],
)
def test_names(overrides, name) -> None:
    assert run_name(overrides) == name


def test_names_leave_out_what_is_shared() -> None:
    overrides = ["scheme=2:4", "seed=0", "+evaluation.num_samples=10"]
    assert run_name(overrides, ["seed", "evaluation.num_samples"]) == "scheme=2of4"


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["scheme=1:2,2:4", "seed=0", "evaluation.num_samples=10"], "evaluation.num_samples seed"),
        (["seed=range(3)", "pruner=first", "+a.b=1"], "a.b pruner"),
        (["seed=0", "keep=7"], ""),  # nothing is known to vary
        (["seed=0", "hparams_search=digits_rates"], "hparams_search seed"),
        (["seed=0,1", "keep=7", "hydra.launcher.n_jobs=2"], "keep"),
        # Another sweep may go to a folder that is given.
        (["seed=0,1", "keep=7", "hydra.sweep.dir=x"], ""),
    ],
)
def test_what_the_runs_of_a_sweep_share(overrides, keys) -> None:
    assert shared(overrides) == keys.split()


def test_folders_are_named_by_what_is_swept_and_a_given_folder_by_all(tf, root, tmp_path) -> None:
    """What differs between two sweeps into one folder stands in the names of their runs."""
    varied = ("prune", "-m", "pruner=first", "keep=1,2")
    assert tf(*varied, "seed=0").status == 0
    (sweep,) = (root / "prune").iterdir()
    assert {f.name for f in sweep.iterdir() if f.is_dir()} == {"keep=1", "keep=2"}
    for seed in (0, 1):
        given = tf(*varied, f"seed={seed}", f"hydra.sweep.dir={tmp_path / 'given'}")
        assert given.status == 0, given.err
    folders = [file.parent for file in (tmp_path / "given").glob("*/finished.json")]
    seeds = [OmegaConf.load(folder / "config.yaml").seed for folder in folders]
    assert sorted(seeds) == [0, 0, 1, 1]


def test_resuming_a_sweep_finds_its_folders(tf, root) -> None:
    assert tf("prune", "-m", "pruner=first", "keep=1,2").status == 0
    (sweep,) = (root / "prune").iterdir()
    (sweep / "keep=1/finished.json").unlink()
    again = tf("prune", f"resume={sweep}", exact=True)
    assert again.status == 0, again.err
    assert {f.name for f in sweep.iterdir() if f.is_dir()} == {"keep=1", "keep=2"}


@pytest.mark.slow
def test_folders_do_not_name_what_a_checkpoint_brings_along(tf, root) -> None:
    """Its process and sampler are chosen early where a value inside a group is given."""
    fixed = ("checkpoint=sit_digits", "pruner=first", "sampler.steps=2")
    result = tf("prune", "-m", "keep=1,2", *fixed, small=False)
    assert result.status == 0, result.err
    (sweep,) = (root / "prune").iterdir()
    assert {f.name for f in sweep.iterdir() if f.is_dir()} == {"keep=1", "keep=2"}
    (sweep / "keep=1/finished.json").unlink()
    assert tf("prune", f"resume={sweep}", exact=True).status == 0
    assert {f.name for f in sweep.iterdir() if f.is_dir()} == {"keep=1", "keep=2"}


def test_names_of_lists_keep_apart() -> None:
    names = {
        run_name([f"scheme={s}"]) for s in (D19, "[[1,2],[1,2]]", "[[1,21],[2]]", "[[1,2,1,2]]")
    }
    assert len(names) == 4
    for name in names:
        assert not set(name) & set("[]{}:'\"/\\ ,")


def test_long_fractions_are_named_by_four_digits_and_kept_apart() -> None:
    """As optimisers draw them: all three rates of a search can be read."""
    keys = ("pruner.gate_rate_factor", "training.mask_learning.learning_rate")
    names = [run_name([f"{key}=0.0019990{end}" for key in keys]) for end in ("41", "42")]
    assert all(n.startswith(f"{keys[0]}=0.001999,{keys[1]}=0.001999-") for n in names)
    assert len(set(names)) == 2
    assert run_name(["a=-1.23456789e-07"]).startswith("a=-1.235e-07-")


def test_paths_are_named_by_their_last_part_and_kept_apart() -> None:
    names = [run_name([f"checkpoint={p}"]) for p in ("/a/model", "/b/model")]
    assert all(name.startswith("checkpoint=model-") for name in names) and len(set(names)) == 2


def test_long_names_are_cut_and_stay_apart() -> None:
    many = [f"training.recovery.key{i}=value" for i in range(20)]
    names = {run_name([*many, "seed=0"]), run_name([*many, "seed=1"])}
    assert len(names) == 2
    assert all(len(name) <= MAX_NAME + 7 for name in names)


def test_list_schemes_in_a_sweep(prune, root) -> None:
    result = prune("scheme=[[1,2],[1,2]],[[1,4]],2:4")
    assert result.status == 0, result.err
    found = {
        json.dumps(tf_api.Decision.load(file).scheme)
        for file in sweep_folder(root).glob("*/decision.json")
    }
    assert found == {"[[1, 2], [1, 2]]", "[[1, 4]]", "[[2, 4]]"}


@pytest.mark.slow
def test_the_published_list_of_groups(tf, root, tmp_path, make_model, only_run) -> None:
    deep = make_model(tmp_path / "deep", depth=28)
    result = tf("prune", f"scheme={D19}", f"checkpoint={deep}", "training.mask_learning.steps=2")
    assert result.status == 0, result.err
    assert len(tf_api.Decision.load(only_run("prune") / "decision.json").kept) == 19


def test_one_bad_run_does_not_hide_the_others(prune, root) -> None:
    result = prune("scheme=1:3,2:4,1:2", "pruner=random")
    assert result.status == 2
    lines = result.err.strip().splitlines()
    assert len(lines) == 2
    assert "scheme=1of3" in lines[0] and "not a multiple of 3" in lines[0]
    assert lines[1] == "tinyfusion: 1 of 3 runs failed"
    runs = [f for f in sweep_folder(root).iterdir() if f.is_dir()]
    assert len(runs) == 2 and all((run / "finished.json").is_file() for run in runs)


def test_a_choice_that_does_not_exist_stops_the_sweep_before_it_begins(prune, root) -> None:
    result = prune("pruner=random,magic")
    assert result.status == 2 and "pruner=magic is not known" in result.err
    assert not root.exists() or not list(root.rglob("decision.json"))


def test_the_same_run_twice_in_a_sweep(prune, root) -> None:
    result = prune("pruner=random", "seed=3,3")
    assert result.status == 0 and "is finished; nothing to do" in result.out
    assert len(list(root.rglob("finished.json"))) == 1


def test_flags_may_stand_anywhere(tf, root) -> None:
    assert tf("prune", "pruner=random", "-m", "seed=0,1").status == 0
    assert len(list(root.rglob("finished.json"))) == 2


def test_a_failure_that_is_our_own_keeps_the_other_runs(prune, root, monkeypatch) -> None:
    from tinyfusion.pruners.random import Random

    choose = Random.choose

    def broken(self, context):
        if context.seed == 0:
            raise RuntimeError("a bug")
        return choose(self, context)

    monkeypatch.setattr(Random, "choose", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        prune("pruner=random", "seed=0,1")
    assert len(list(root.rglob("finished.json"))) == 1


@pytest.mark.slow
def test_a_sweep_over_backbones_gives_each_its_process_and_sampler(tf, root) -> None:
    names = ("dit_digits", "sit_digits", "mar_digits")
    result = tf("pretrain", "-m", f"backbone={','.join(names)}", *FIRST_STEP, small=False)
    assert result.status == 0, result.err
    (folder,) = (root / "pretrain").iterdir()
    found = {}
    for file in folder.glob("*/config.yaml"):
        config = OmegaConf.load(file)
        (name,) = [name for name in names if f"backbone={name}" in file.parent.name]
        classes = [config[key]._target_.rpartition(".")[2] for key in ("process", "sampler")]
        found[name] = (*classes, config.checkpoint)
    assert found == {
        "dit_digits": ("GaussianDiffusion", "AncestralSampler", None),
        "sit_digits": ("Interpolant", "ODESampler", None),
        "mar_digits": ("MaskedDiffusion", "AutoregressiveSampler", None),
    }
