"""Wrong input: one line on stderr, status 2, before any work, and no folder left behind."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

import tinyfusion as tf_api


def refused(result, root: Path, *fragments: str) -> None:
    assert result.status == 2, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("tinyfusion: error: ")
    for fragment in fragments:
        assert fragment in lines[0], lines[0]
    assert ": step" not in result.out  # no work was done
    assert not root.exists(), list(root.rglob("*"))


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        # schemes and budgets
        (["scheme=1:3"], ["scheme=1:3", "4 is not a multiple of 3", "valid group sizes: 2, 4"]),
        (["scheme=2:2"], ["scheme=2:2", "1 <= N < M"]),
        (["scheme=3:2"], ["scheme=3:2"]),
        (["scheme=[[1,2],[1,3]]"], ["scheme=[[1,2],[1,3]]", "covers 5 blocks", "has 4"]),
        (["scheme=[[1,2],[3,2]]"], ["can't keep 3 of 2"]),
        (["scheme=half"], ["scheme='half'"]),
        (["scheme=62"], ["base 60", '"1:2"']),
        (["scheme=1:2", "budget.macs=0.5"], ["scheme=1:2", "budget.macs=0.5", "one of them"]),
        (["budget.parameters=0.01"], ["budget.parameters", "can't be met", "the nearest"]),
        (["pruner=uniform", "units=branches"], ["units=branches: Uniform chooses among blocks"]),
        (["budget.protected=[9]"], ["budget.protected: there is no unit 9; valid: 0..3"]),
        (["pruner=random", "keep=4"], ["keep=4", "between 1 and 3"]),
        (["keep=3", "scheme=1:2"], ["keep=3", "scheme"]),
        (["pruner=indices", "pruner.kept=[0,4]"], ["pruner.kept=[0,4]", "block 4", "0..3"]),
        (["pruner=indices", "pruner.kept=[1,1]"], ["block 1 is listed more than once"]),
        (["pruner=indices", "pruner.kept=3"], ["pruner.kept=3", "must be a list"]),
        (["pruner=indices"], ["'pruner.kept' must be given"]),
        # choices
        (["pruner=magic"], ["pruner=magic", "valid: diff_pruning, ecoflap, ", " learned, "]),
        (
            ["pruner=shortgpt", "selector=nonsense"],
            [
                "selector=nonsense is not known",
                "valid: greedy, group_budgets, grouped, knapsack, top_k",
            ],
        ),
        (["pruner=shortgpt", "selector=null"], ["selector=null", "greedy"]),
        (
            ["pruner=shortgpt", "selector=grouped", "keep=3", "scheme=1:2"],
            ["keep=3", "scheme=1:2 keeps 2 of 4", "scheme=null"],
        ),
        (["pruner=flux_lite", "pruner.num_samples=0"], ["pruner.num_samples=0 must be at least 1"]),
        (
            ["experiment=imagenet/tinydit_d15"],
            ["experiment=imagenet/tinydit_d15 is not known", "valid: demo", "imagenet/tinydit_d14"],
        ),
        (["backbone=dit_xxl"], ["backbone=dit_xxl is not known", "dit_xl_2"]),
        (["experiment=nothing"], ["experiment=nothing is not known", "demo"]),
        (["pruner=null"], ["pruner=null", "shortgpt"]),
        (["delta=null"], ["delta=null", "frozen"]),
        (["trainer=cpu,gpu"], ["trainer=cpu,gpu", "--multirun"]),
        # keys
        (["sede=1"], ["unknown key 'sede'", "did you mean 'seed'?"]),
        (["+sede=1"], ["unknown key 'sede'"]),
        (["recovry=kd"], ["unknown key 'recovry'", "did you mean 'recovery'?"]),
        (["pruner.temprature=1"], ["unknown key 'pruner.temprature'"]),
        (["+pruner.temprature=1"], ["'pruner.temprature'", "valid for pruner: delta,"]),
        (["training.recovery.stepps=3"], ["unknown key 'training.recovery.stepps'"]),
        (["+training.recovery.stepps=3"], ["'training.recovery.stepps'", "steps"]),
        (["+callbacks.decision_trace.evry=3"], ["'callbacks.decision_trace.evry'", "every"]),
        (["+callbacks.mine.every=3"], ["callbacks.mine has no _target_"]),
        (["+teacher.pth=x"], ["pth"]),
        (["+pruner.temperature.strt=1"], ["'pruner.temperature.strt'", "end, start"]),
        (["seed"], ["'seed'", "KEY=VALUE"]),
        # values of another type
        (["seed=abc"], ["seed='abc' must be a whole number"]),
        (["keep=1.5"], ["keep=1.5 must be a whole number"]),
        (["seed=1e3"], ["seed=1000.0 must be a whole number, such as 1000"]),
        (["seed=[1,2"], ["seed=[1,2: the value can't be read"]),
        (["seed=1 # two"], ["seed='1 # two' must be a whole number"]),
        (["trainer.devices=two"], ["trainer.devices='two' must be a whole number"]),
        (["trainer.micro_batch={a:1}"], ["trainer.micro_batch={'a': 1} must be a whole number"]),
        (["trainer.progress=maybe"], ["trainer.progress='maybe' must be true or false"]),
        (["dry_run=perhaps"], ["dry_run='perhaps' must be true or false"]),
        (["training.recovery.steps=[1]"], ["training.recovery.steps=[1]", "a whole number"]),
        (["training.recovery=3"], ["training.recovery=3 must be", "steps, batch_size"]),
        (["training.recovery={step:1}"], ["unknown key 'training.recovery.step'"]),
        (["training.recovery=[1]"], ["training.recovery=[1] must be given as a part"]),
        (["pruner=indices", "pruner.kept=[1.5]"], ["pruner.kept=[1.5] must be a list"]),
        (["pruner=indices", "pruner.kept=[a]"], ["pruner.kept=['a']: there is no 'a'"]),
        (
            ["experiment=iterative", "iterative.depths=[a]"],
            ["iterative.depths=['a']", "a list of whole numbers"],
        ),
        (["trainer=3"], ["trainer=3 is not known", "cpu, ddp"]),
        (["trainer={a:1}"], ["trainer={a:1}: choose one of cpu, ddp"]),
        (["hydra.job.chdir=maybe"], ["hydra.job.chdir=maybe", "not a valid bool"]),
        (["--frobnicate"], ["unrecognized arguments: --frobnicate"]),
        (["--config-dir", "/nowhere"], ["'/nowhere' not found"]),
        # types and ranges
        (["training.recovery.steps=many"], ["training.recovery.steps='many'", "a whole number"]),
        (["training.recovery.steps=1.5"], ["training.recovery.steps=1.5", "a whole number"]),
        (["training.recovery.steps=null"], ["training.recovery.steps=null"]),
        (["training.recovery.steps=0"], ["training.recovery.steps=0 must be at least 1"]),
        (["trainer.log_every=0"], ["trainer.log_every=0"]),
        (["pruner.temperature=3"], ["pruner.temperature=3", "_target_"]),
        (["evaluation.seeds=0"], ["evaluation.seeds=0", "must be a list"]),
        (["evaluation.num_samples=1"], ["evaluation.num_samples=1"]),
        (["delta.rank=0"], ["delta.rank=0"]),
        (["pruner._target_=no.such.Class"], ["pruner._target_='no.such.Class'"]),
        (["output_root="], ["output_root= is empty"]),
        (["hydra.run.dir="], ["hydra.run.dir= is empty"]),
        (["hydra.run.dir=''"], ["hydra.run.dir= is empty"]),
        (["-m", "seed=0,1", "hydra.sweep.dir="], ["hydra.sweep.dir= is empty"]),
        # sampling that would fail after training
        (["sampler.steps=2000"], ["sampler", "2000"]),
        (["evaluation.guidance.channels=3"], ["evaluation: guidance channels=3", "1 channel"]),
        (["evaluation.guidance.scale=-1"], ["evaluation.guidance.scale=-1 must be"]),
        (["callbacks=evaluate", "callbacks.sample_grid.guidance.channels=2"], ["callbacks.sample"]),
        (
            ["callbacks=evaluate", "callbacks.evaluate.evaluation.extractor=nothing"],
            ["'nothing' is not registered"],
        ),
        # what the machine, Lightning or torch refuse
        (["trainer.precision=foo"], ["trainer.precision=foo", "valid: 32-true, bf16-mixed"]),
        # Weights in half precision: latents would reach them as float32, and steps round to 0.
        (["trainer.precision=bf16-true"], ["trainer.precision=bf16-true", "valid: 32-true"]),
        (["trainer.precision=16-true"], ["trainer.precision=16-true", "valid: 32-true"]),
        (["trainer.strategy=foo"], ["trainer.strategy=foo is not known", "fsdp"]),
        (["optimizer.weight_decay=-1"], ["optimizer: ", "weight_decay"]),
        (["trainer.micro_batch=0"], ["trainer.micro_batch=0"]),
        (["trainer.compile=true", "trainer.compile_backend=fast"], ["compile_backend='fast'"]),
        (["trainer.precision=16-mixed"], ["16-mixed", "needs a GPU", "bf16-mixed"]),
        (["training.recipe=mine"], ["training.recipe", "tinyfusion"]),
        # data and files
        (["checkpoint=/no/such/file"], ["'/no/such/file' does not exist"]),
        (["checkpoint=null"], ["checkpoint= must be given"]),
        (["decision=/no/such/decision.json"], ["decision.json' does not exist"]),
        (["teacher.path=/no/such"], ["'/no/such' does not exist"]),
        (["data=imagefolder", "data.size=8"], ["'data.root' must be given"]),
        (["data=imagefolder", "data.size=8", "data.root=/no/such"], ["data.root='/no/such'"]),
        (["teacher=none"], ["teacher=none"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_run_refuses(tf, root, overrides, fragments) -> None:
    refused(tf("run", *overrides), root, *fragments)


def test_unknown_command(capsys) -> None:
    from tinyfusion.cli import main

    assert main(["prunne"]) == 2
    assert "unknown command 'prunne'; valid: encode, pretrain, prune" in capsys.readouterr().err


def test_empty_data_folder(tf, root, tmp_path) -> None:
    empty = tmp_path / "images"
    empty.mkdir()
    result = tf("run", "data=imagefolder", "data.size=8", f"data.root={empty}")
    refused(result, root, str(empty))


def test_scoring_that_can_not_work_is_refused_before_training(tf, root, tmp_path) -> None:
    refused(tf("run", "evaluation.extractor=nothing"), root, "'nothing' is not registered")
    absent = f"evaluation.reference={tmp_path / 'absent.npz'}"
    refused(tf("run", absent), root, "absent.npz' does not exist")
    for name in "0123456789":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / name / "a.png")
    data = ("data=imagefolder", f"data.root={tmp_path / 'images'}", "data.channels=1")
    refused(tf("run", *data, "data.size=8"), root, "data.held_out=256", "10 images")
    refused(tf("run", *data, "data.size=8", "data.held_out=0"), root, "data.held_out=0")
    wrong = tf("run", *data, "data.size=16", "data.held_out=2", "backbone=dit_digits")
    assert wrong.status == 2
    result = tf("run", *data, "data.size=16", "data.held_out=2", "checkpoint=none")
    refused(result, root, "'none' does not exist")
    result = tf("evaluate", *data, "data.size=8", "data.held_out=2", "data.channels=3")
    refused(result, root, "in_channels=1 but the data has 3")


def test_a_gpu_that_is_not_there(tf, root, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for command in ("run", "sample"):
        refused(tf(command, "trainer=gpu"), root, "trainer: accelerator=gpu")


def test_guidance_of_a_model_without_a_null_class(tf, root, tmp_path) -> None:
    net = tf_api.DiT(8, 2, 1, 16, 4, 2, num_classes=10, class_dropout_prob=0.0)
    tf_api.save_model(net, tmp_path / "plain", {})
    plain = f"checkpoint={tmp_path / 'plain'}"
    refused(tf("run", plain, "evaluation.guidance.scale=2"), root, "evaluation: ", "null class")
    refused(tf("sample", plain, "guidance.scale=2"), root, "guidance: ", "null class")
    assert tf("sample", plain, "guidance.scale=1", "n=2").status == 0


def test_wrong_sampling_is_refused_by_sample(tf, root) -> None:
    refused(tf("sample", "sampler.steps=2000"), root, "sampler", "2000")
    refused(tf("sample", "guidance.channels=2"), root, "guidance: ", "1 channel")
    refused(tf("sample", "data=digits"), root, "unknown key 'data'")


def test_evaluate_needs_a_protocol_and_a_teacher_that_exists(tf, root) -> None:
    refused(tf("evaluate", "evaluation=none", small=False), root, "evaluation=none")
    refused(tf("evaluate", "teacher=from_source"), root, "teacher.path=source")


def test_the_paper_recipe_on_other_images_than_latents(tf, root) -> None:
    paper = ("experiment=imagenet/tinydit_d14", "data.root=store", "trainer=cpu")
    refused(tf("run", *paper, small=False), root, "depth")
    for command in ("run", "prune", "recover", "evaluate", "sample"):
        # Without data: one that has none drops what the experiment says of it.
        given = [key for key in paper if command != "sample" or not key.startswith("data.")]
        refused(
            tf(command, *given, "output_root=" + str(root), exact=True),
            root,
            "checkpoint= must be given",
        )


def test_truncated_checkpoint(tf, root, tmp_path, model) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(tf("run", f"checkpoint={tmp_path / 'torn.safetensors'}"), root, "truncated")


def test_checkpoint_of_another_shape(tf, root) -> None:
    refused(tf("run", "backbone=dit_digits"), root, "depth")


class _Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_checkpoint_with_code_is_not_executed(tf, root, tmp_path) -> None:
    mark = tmp_path / "executed"
    torch.save({"model": {"x": torch.zeros(1)}, "args": _Payload(mark)}, tmp_path / "evil.pt")
    refused(tf("run", f"checkpoint={tmp_path / 'evil.pt'}"), root, "refused")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(_Payload(mark)))
    refused(tf("run", f"checkpoint={tmp_path / 'evil.pkl'}"), root, "evil.pkl")
    assert not mark.exists()


@pytest.mark.parametrize("recovery", ["masked_kd", "repkd"])
def test_teacher_of_another_width(tf, root, tmp_path, make_model, recovery) -> None:
    wide = make_model(tmp_path / "wide", width=32)
    result = tf("run", f"teacher.path={wide}", f"recovery={recovery}")
    refused(result, root, "hidden_size: 16 and 32", "recovery=kd")


def test_teacher_of_another_width_suits_output_distillation(tf, tmp_path, make_model) -> None:
    wide = make_model(tmp_path / "wide", width=32)
    assert tf("run", f"teacher.path={wide}", "recovery=kd").status == 0


def test_decision_for_another_depth(tf, root, tmp_path) -> None:
    decision = tf_api.Decision((0, 5), 8).save(tmp_path / "d.json")
    refused(tf("run", f"decision={decision}"), root, "8", "4")
    refused(tf("recover", f"decision={decision}"), root, "8", "4")


def test_a_file_that_is_no_decision(tf, root, tmp_path) -> None:
    (tmp_path / "d.json").write_text(json.dumps({"kept": [0, 1]}))
    refused(tf("recover", f"decision={tmp_path / 'd.json'}"), root, "is not a decision")


def test_unquoted_ratio_in_a_file(tf, root, tmp_path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nscheme: 1:2\n")
    result = tf("run", "experiment=mine", "--config-dir", str(tmp_path))
    refused(result, root, "scheme=62", "base 60", 'scheme: "1:2" with quotes')


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("sede: 1", "unknown key 'sede'"),
        ("training: {recovery: {stpes: 3}}", "'training.recovery.stpes'"),
        ("pruner: {tempersture: 3}", "'pruner.tempersture'"),
        ("seed: abc", "abc"),
        ("defaults: [{override /pruner: magic}]", "pruner=magic is not known"),
        ("defaults: [{override /prunner: random}]", "prunner"),
        ("seed: [", "mine.yaml"),
    ],
)
def test_mistakes_in_an_experiment_file(tf, root, tmp_path, text, fragment) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    refused(tf("run", "experiment=mine", "--config-dir", str(tmp_path)), root, fragment)


def test_folder_in_use(tf, root) -> None:
    folder = root / "here"
    again = ("prune", "pruner=random", f"hydra.run.dir={folder}")
    assert tf(*again).status == 0
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    result = tf(*again, "seed=1")
    assert (
        result.status == 2 and f"seed=0 there, 1 here; resume it by resume={folder}" in result.err
    )
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_a_refused_run_leaves_other_files_alone(tf, tmp_path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    result = tf("prune", "scheme=1:3", f"hydra.run.dir={folder}")
    assert result.status == 2
    assert (folder / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda f: None, "there is no such folder"),
        (lambda f: f.write_text("x"), "there is no such folder"),
        (lambda f: f.mkdir(), "no config.yaml in it"),
        (lambda f: (f.mkdir(), (f / "config.yaml").write_text("a: [")), "can't be read"),
        (lambda f: (f.mkdir(), (f / "config.yaml").write_text("")), "not the configuration"),
        (lambda f: (f.mkdir(), (f / "config.yaml").write_text("command: x")), "not the config"),
        (
            lambda f: (f.mkdir(), (f / "config.yaml").write_text("command: prune")),
            "tinyfusion prune resume=",
        ),
        (lambda f: (f.mkdir(), (f / "multirun.yaml").write_text("a: 1")), "can't be read"),
    ],
)
def test_resume_of_what_is_no_run(tf, root, tmp_path, make, fragment) -> None:
    folder = tmp_path / "run"
    make(folder)
    refused(tf("run", f"resume={folder}", exact=True), root, f"resume={folder}", fragment)


@pytest.mark.parametrize("extra", ["seed=1", "-m", "resume=b"])
def test_resume_goes_alone(tf, root, extra) -> None:
    refused(tf("run", extra, "resume=a", exact=True), root, "resume=", f"remove {extra!r}")


def test_folders_that_existed_before_stay(tf, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "empty"
    mine.mkdir(parents=True)
    result = tf("run", "scheme=1:3", f"hydra.run.dir={mine / 'new' / 'run'}")
    assert result.status == 2 and mine.is_dir() and not any(mine.iterdir())
    # The folder itself may be one that the user has made.
    result = tf("run", "scheme=1:3", f"hydra.run.dir={mine}")
    assert result.status == 2 and mine.is_dir() and not any(mine.iterdir())
    result = tf("run", "-m", "scheme=1:3,2:3", f"hydra.sweep.dir={mine / 'sweep'}")
    assert result.status == 2 and mine.is_dir() and not any(mine.iterdir())
