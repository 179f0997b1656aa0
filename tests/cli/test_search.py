"""The figure that a run returns, and what searches by it: Optuna, and W&B's sweep files."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tinyfusion.cli import main
from tinyfusion.files import read_json
from tinyfusion.settings.composed import composed
from tinyfusion.settings.optimized import metrics_of
from tinyfusion.settings.overview import choices, conf_folder
from tinyfusion.tracking.keys import flat_scores

# Optuna 2 uses what SQLAlchemy 2 has not; Python shows such warnings in tests alone.
pytestmark = pytest.mark.filterwarnings("ignore:Deprecated API features:DeprecationWarning")

SWEEPS = sorted((conf_folder() / "sweep").glob("*.yaml"))
SEARCH = ("-m", "hparams_search=digits_rates", "hydra.sweeper.n_trials=2", "keep=2")


def searched(root: Path) -> Path:
    (folder,) = (root / "run").iterdir()
    return folder


def test_two_trials_of_a_search(tf, root) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs tinyfusion[optuna]")
    result = tf("run", *SEARCH)
    assert result.status == 0, result.err
    folder = searched(root)
    found = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    scores = {}
    for file in folder.glob("*/metrics.json"):
        assert file.parent.name.startswith("pruner.gate_rate_factor=")  # not by what is shared
        rate = OmegaConf.load(file.parent / "config.yaml").training.recovery.learning_rate
        scores[rate] = flat_scores(read_json(file, "metrics"))["recovered/fid"]
    assert len(scores) == 2
    best = min(scores, key=scores.get)
    assert found["best_value"] == scores[best]
    assert found["best_params"]["training.recovery.learning_rate"] == best
    assert f"search: best value {scores[best]:.6g} with pruner.gate_rate_factor=" in result.out


def test_a_failed_run_is_a_failed_trial(tf, root, monkeypatch) -> None:
    """The search goes on, the message says why, and the exit status that one failed."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs tinyfusion[optuna]")
    from tinyfusion.commands import job

    figure, folders = job._figure, []

    def once(folder: Path, metric: str) -> float:
        folders.append(folder)
        if len(folders) == 1:
            monkeypatch.setattr(job, "flat_scores", lambda _: {metric: float("nan")})
        else:
            monkeypatch.setattr(job, "flat_scores", flat_scores)
        return figure(folder, metric)

    monkeypatch.setattr(job, "_figure", once)
    result = tf("run", *SEARCH)
    assert result.status == 2 and len(folders) == 2
    assert "optimized_metric=recovered/fid is nan in" in result.err
    assert "1 of 2 runs failed" in result.err
    assert (searched(root) / "optimization_results.yaml").is_file()


def test_a_search_all_of_whose_runs_fail_ends_in_its_messages(tf) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs tinyfusion[optuna]")
    result = tf("run", *SEARCH, "checkpoint=absent")
    assert result.status == 2 and "2 of 2 runs failed" in result.err


@pytest.mark.parametrize(
    ("command", "overrides", "said"),
    [
        ("run", ["optimized_metric=recovered/fit"], "recovered/fit is not known; valid: source/"),
        ("run", ["optimized_metric=recovered/fid", "evaluation=none"], "source/depth, source/par"),
        ("prune", ["optimized_metric=recovered/fid"], "valid: source/depth, source/parameters,"),
        ("evaluate", ["optimized_metric=recovered/fid"], "valid: model/fid,"),
        ("run", [*SEARCH, "optimized_metric=recovered/fit"], "recovered/fit is not known; valid:"),
        ("run", ["-m", "hydra/sweeper=optuna", "keep=1,2"], "give optimized_metric=; valid: sour"),
    ],
)
def test_a_figure_that_no_run_has_is_refused_before_work(tf, root, command, overrides, said):
    result = tf(command, *overrides)
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.splitlines()) == 1 and not root.exists()


@pytest.mark.parametrize("command", ["prune", "recover", "evaluate", "run"])
def test_figures_that_are_listed_are_those_that_runs_have(tf, root, command, only_run) -> None:
    given = {"recover": ["recovery=finetune", "teacher=none"], "evaluate": []}
    result = tf(command, *given.get(command, ["keep=2"]))
    assert result.status == 0, result.err
    folder = only_run(command)
    had = set(flat_scores(read_json(folder / "metrics.json", "metrics")))
    listed = set(metrics_of(OmegaConf.load(folder / "config.yaml")))
    assert had <= listed
    # Of one seed there is no spread, and without a teacher no distance to it.
    assert {key.rpartition("/")[2] for key in listed - had} <= {"fid_std", "teacher_distance"}


@pytest.mark.parametrize(
    ("overrides", "has", "lacks"),
    [
        (["callbacks=evaluate"], "recovered_best/fid", "round_1/fid"),
        (["experiment=iterative"], "round_1/fid", "round_2/fid"),
        (["evaluation.speed_samples=0"], "recovered/fid", "recovered/images_per_s"),
        ([], "recovered/speed_up", "recovered_best/fid"),
        (["evaluation=none"], "recovered/depth", "recovered/fid"),
    ],
)
def test_figures_follow_the_configuration(overrides, has: str, lacks: str) -> None:
    found = metrics_of(OmegaConf.create(composed("run", overrides)))
    assert has in found and lacks not in found


@pytest.mark.parametrize("name", choices("hparams_search"))
def test_a_search_that_is_shipped_composes(name: str, capsys) -> None:
    assert main(["run", f"hparams_search={name}", "--cfg", "all"]) == 0
    cfg = OmegaConf.create(capsys.readouterr().out)
    assert cfg.optimized_metric in metrics_of(cfg)
    assert cfg.hydra.sweeper._target_.endswith("OptunaSweeper")


def test_what_is_needed_for_a_search_is_named(tf, root, monkeypatch) -> None:
    load = builtins.__import__

    def without(name: str, *rest, **more):
        if name.startswith("hydra_plugins.hydra_optuna"):
            raise ImportError(name)
        return load(name, *rest, **more)

    from hydra.core.config_store import ConfigStore

    stored = dict(ConfigStore.instance().repo["hydra"]["sweeper"])
    stored.pop("optuna.yaml", None)
    monkeypatch.setitem(ConfigStore.instance().repo["hydra"], "sweeper", stored)
    monkeypatch.setattr(builtins, "__import__", without)
    result = tf("run", *SEARCH)
    assert result.status == 2 and "pip install 'tinyfusion[optuna]'" in result.err
    assert len(result.err.splitlines()) == 1 and not root.exists()


def commands_of(sweep: dict) -> list[list[str]]:
    """Command lines as W&B's agent builds them, each value of a parameter in one of them."""
    parameters = sweep["parameters"]
    count = max(len(p.get("values", (0, 0))) for p in parameters.values())
    lines = []
    for index in range(count):
        chosen = {
            key: p["values"][index % len(p["values"])]
            if "values" in p
            else p["min"] + index * (p["max"] - p["min"]) / (count - 1)
            for key, p in parameters.items()
        }
        arguments = create_sweep_command_args(
            {"args": {k: {"value": v} for k, v in chosen.items()}}
        )
        line: list[str] = []
        for part in create_sweep_command(list(sweep["command"])):
            macro = part.removeprefix("${").removesuffix("}") if part.startswith("${") else ""
            line += arguments[macro] if macro in arguments else [part]
        lines.append(line)
    return lines


@pytest.mark.parametrize("file", SWEEPS, ids=[file.stem for file in SWEEPS])
def test_a_sweep_file_makes_command_lines_that_run(file: Path, capsys) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert sweep["method"] in ("grid", "bayes", "random")
    for env, program, command, *overrides in commands_of(sweep):
        assert (env, program) == ("${env}", "tinyfusion")
        assert main([command, *overrides, "--cfg", "job", "--resolve"]) == 0
        cfg = OmegaConf.create(capsys.readouterr().out)
        for key, parameter in sweep["parameters"].items():
            value = OmegaConf.select(cfg, key)
            if key not in ("delta", "recovery"):  # groups, whose choice is a whole node
                assert value in parameter.get("values", [value]), key
        assert sweep["metric"]["name"] in metrics_of(cfg)
        assert cfg.logger.wandb.job_type == command
        assert cfg.logger.wandb.project == sweep["project"]
