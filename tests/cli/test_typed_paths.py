"""Paths of any name, from any folder: typed, recorded, passed on and resumed."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

NAME = "scheme=1of2,delta=lora (größe) #1 it's"
ONE = ("n=1", "sampler=ddpm_20", "sampler.steps=1", "trainer.threads=1")


@pytest.fixture
def here(tmp_path, model, monkeypatch) -> Path:
    """The working folder, with models under names that mean something to Hydra."""
    folder = tmp_path / "here"
    for name in (NAME, "a,b", "[x]"):
        shutil.copytree(model, folder / name)
    (folder / "conf dir/experiment").mkdir(parents=True)
    file = folder / "conf dir/experiment/mine.yaml"
    file.write_text(f'# @package _global_\ncheckpoint: "{NAME}"\n', encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def config(run: Path):
    return OmegaConf.load(run / "config.yaml")


def runs_in(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.rglob("finished.json"))


def test_a_model_and_folders_of_any_name(tf, here, monkeypatch) -> None:
    folders = (f"output_root={NAME}/out", f"hydra.run.dir={NAME}/run")
    result = tf("sample", *ONE, f"checkpoint={NAME}", *folders, exact=True)
    assert result.status == 0, result.err
    run = here / NAME / "run"
    assert config(run).checkpoint == str(here / NAME)
    assert config(run).output_root == str(here / NAME / "out")
    # The recorded command does the same from elsewhere.
    _, *words = shlex.split((run / "command.txt").read_text(encoding="utf-8"))
    monkeypatch.chdir("/")
    again = tf(*words, f"hydra.run.dir={here / 'again'}", exact=True)
    assert again.status == 0, again.err
    assert config(here / "again") == config(run)
    # What is to be copied into a shell survives it.
    taken = tf(*words, "seed=1", f"hydra.run.dir={run}", exact=True)
    assert taken.status == 2 and shlex.quote(f"resume={run}") in taken.err
    assert tf("sample", f"resume={run}", exact=True).status == 0
    assert "finished" in tf("sample", f"resume='{here}/again'", exact=True).out


def test_a_sweep_is_resumed_from_elsewhere(tf, here, monkeypatch) -> None:
    models = f"checkpoint={NAME},a,b,[x]"
    result = tf("sample", "-m", *ONE, models, "hydra.sweep.dir=my sweep, 1", exact=True)
    assert result.status == 0, result.err
    runs = runs_in(here / "my sweep, 1")
    found = {Path(config(run).checkpoint).name for run in runs}
    assert found == {NAME, "a,b", "[x]"}
    # One has not begun.
    shutil.rmtree(runs[0])
    monkeypatch.chdir("/")
    again = tf("sample", f"resume={here}/my sweep, 1", exact=True)
    assert again.status == 0, again.err
    assert runs_in(here / "my sweep, 1") == runs


def test_what_a_users_own_files_say_of_paths(tf, here, monkeypatch) -> None:
    own = ("--config-dir", "conf dir", "experiment=mine")
    line = ("sample", "-m", *ONE, *own, "seed=0,1", "hydra.sweep.dir=sweep")
    assert tf(*line, exact=True).status == 0
    runs = runs_in(here / "sweep")
    assert [config(run).checkpoint for run in runs] == [str(here / NAME)] * 2
    recorded = shlex.split((runs[0] / "command.txt").read_text(encoding="utf-8"))
    assert f"--config-dir={here / 'conf dir'}" in recorded
    shutil.rmtree(runs[1])
    monkeypatch.chdir("/")
    again = tf("sample", f"resume={here / 'sweep'}", exact=True)
    assert again.status == 0, again.err
    assert runs_in(here / "sweep") == runs and Path.cwd() == Path("/")


@pytest.mark.parametrize("sweep", [False, True])
def test_in_the_runs_own_folder_paths_are_those_of_where_it_was_started(tf, here, sweep) -> None:
    own = ("--config-dir", "conf dir", "experiment=mine", "hydra.job.chdir=true")
    flags = ("-m", "seed=0,1", "hydra.sweep.dir=out") if sweep else ("hydra.run.dir=out",)
    result = tf("sample", *ONE, *own, *flags, exact=True)
    assert result.status == 0, result.err
    runs = runs_in(here / "out")
    assert len(runs) == (2 if sweep else 1) and Path.cwd() == here
    for run in runs:
        assert config(run).checkpoint == str(here / NAME)
        assert config(run).output_root == str(here / "outputs")
    assert not (here / "outputs").exists()


def test_work_in_the_runs_own_folder_that_is_refused_leaves_nothing(tf, here) -> None:
    for wrong in ("n=abc", "labels=[99]", "checkpoint=nope"):
        own = ("hydra.job.chdir=true", "hydra.run.dir=made/here", wrong)
        result = tf("sample", *ONE, "checkpoint=a,b", *own, exact=True)
        assert result.status == 2 and len(result.err.strip().splitlines()) == 1, result.err
        assert not (here / "made").exists() and Path.cwd() == here
    dry = ("checkpoint=a,b", "dry_run=true", "hydra.job.chdir=true")
    assert tf("prune", *dry, exact=True).status == 0


def test_folders_named_by_hydra_itself(tf, here) -> None:
    subdir = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    line = ("sample", "-m", *ONE, f"checkpoint={NAME},a,b", subdir, "hydra.sweep.dir=sweep")
    assert tf(*line, exact=True).status == 0
    runs = runs_in(here / "sweep")
    assert len(runs) == 2
    assert tf("sample", "resume=sweep", exact=True).out.count("is finished") == 2


def test_references_that_stand_for_nothing_and_names_like_them(tf, here, monkeypatch) -> None:
    (here / "${a}").mkdir()
    for value, fragment in (("${b}/x", "Interpolation key 'b'"), ("${a}", "begins a reference")):
        result = tf("sample", *ONE, f"checkpoint={value}", exact=True)
        assert result.status == 2 and len(result.err.strip().splitlines()) == 1, result.err
        assert "error: checkpoint=" in result.err and fragment in result.err
    monkeypatch.chdir(here / "${a}")
    assert "the working folder is" in tf("sample", *ONE, exact=True).err
    assert not (here / "outputs").exists()


def test_a_comma_without_a_sweep_is_explained(tf, here) -> None:
    result = tf("sample", *ONE, "checkpoint=digits,sit_digits", exact=True)
    assert result.status == 2 and "--multirun" in result.err
    assert not (here / "outputs").exists()
