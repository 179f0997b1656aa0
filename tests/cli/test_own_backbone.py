"""A backbone from outside the package: every command, and what is refused of it and its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

import tinyfusion
from tinyfusion import load, prune, save_model
from tinyfusion.cli import main
from tinyfusion.errors import InputError

PACKAGE = Path(tinyfusion.__file__).parents[1]
EXAMPLE = Path(__file__).parents[2] / "docs" / "own_backbone"
OWN = ("--config-dir", str(EXAMPLE / "conf"), "backbone=plain_vit")
NAME = "plain_vit.PlainViT"
FEW = (
    "evaluation=none",
    *(
        f"training.{phase}.{key}"
        for phase in ("pretrain", "mask_learning", "recovery")
        for key in ("steps=4", "batch_size=8")
    ),
)
"""Overrides of a command that trains little and scores nothing."""


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's folder on the path, as PYTHONPATH puts it there."""
    monkeypatch.syspath_prepend(EXAMPLE)


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A model folder of the example with four blocks."""
    from plain_vit import PlainViT

    return save_model(PlainViT(depth=4, width=16), tmp_path / "models" / "four")


def write_module(folder: Path, name: str, body: str) -> str:
    """A module with one backbone ``Own`` that is importable; its dotted name."""
    folder.mkdir(exist_ok=True)
    source = f"from plain_vit import PlainViT\nclass Own(PlainViT):\n{body}"
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    return f"{name}.Own"


def test_the_example_is_short_and_has_no_size_of_its_own_in_the_configuration() -> None:
    lines = (EXAMPLE / "plain_vit.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 60
    assert (EXAMPLE / "conf/backbone/plain_vit.yaml").read_text("utf-8").endswith(f"{NAME}\n")


def test_pretrain_and_run(tf, only_run) -> None:
    sizes = ("+backbone.depth=4", "+backbone.width=16")
    result = tf("pretrain", *OWN, *FEW, *sizes, small=False)
    assert result.status == 0, result.err
    whole = only_run("pretrain") / "model"
    config = json.loads((whole / "config.json").read_text())
    assert (config["backbone"], config["depth"]) == (NAME, 4)
    # The class alone, without sizes, fits a file of any depth.
    result = tf("run", *OWN, *FEW, f"checkpoint={whole}", "scheme=1:2", small=False)
    assert result.status == 0, result.err
    run = only_run("run")
    metrics = json.loads((run / "metrics.json").read_text())
    assert [row["depth"] for row in metrics["models"].values()] == [4, 2]
    recovered = load(run / "recovered")
    assert type(recovered).__name__ == "PlainViT" and len(recovered.kept_from) == 2


def test_prune_recover_and_sample_from_files(tf, own_model, only_run, capsys) -> None:
    result = tf("prune", *OWN, f"checkpoint={own_model}", "pruner=indices", "pruner.kept=[0,3]")
    assert result.status == 0, result.err
    pruned = only_run("prune") / "pruned"
    source, cut = load(own_model), load(pruned)
    assert cut.kept_from == (0, 3)
    for name, tensor in cut.blocks[1].state_dict().items():
        assert torch.equal(tensor, source.blocks[3].state_dict()[name])
    result = tf("recover", *OWN, f"checkpoint={pruned}", f"teacher.path={own_model}")
    assert result.status == 0, result.err
    recovered = only_run("recover") / "recovered"
    assert not torch.equal(load(recovered).embed.weight, cut.embed.weight)
    result = tf("sample", *OWN, f"checkpoint={recovered}", "n=3", "guidance.scale=2")
    assert result.status == 0, result.err
    assert len(list((only_run("sample") / "samples").iterdir())) == 3
    assert main(["inspect", str(recovered)]) == 0
    out = capsys.readouterr().out
    assert NAME in out and "2 blocks" in out and "0, 3" in out and "width" in out


def test_an_interrupted_run_goes_on(tf, own_model, only_run, monkeypatch) -> None:
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("tinyfusion.commands.run.recover_into", interrupt)
        arguments = ("delta=full", "recovery=finetune")
        result = tf("run", *OWN, f"checkpoint={own_model}", *arguments, *FEW, small=False)
    assert result.status == 130
    folder = only_run("run")
    assert not (folder / "recovered").exists()
    assert main(["run", f"resume={folder}"]) == 0
    assert load(folder / "recovered").depth == 2


def test_reading_a_file_imports_nothing(tf, own_model, tmp_path, monkeypatch, root) -> None:
    monkeypatch.syspath_prepend(tmp_path / "modules")
    name = write_module(tmp_path / "modules", "never_asked_for", "    pass\n")
    file = own_model / "config.json"
    file.write_text(file.read_text().replace(NAME, name))
    hint = (
        rf"backbone 'never_asked_for.Own' is no family of this package and no class that was "
        rf"imported, .* give backbone= .*"
        rf"_target_: {name}, .*backbone='{name}'\), or 'import never_asked_for' first"
    )
    with pytest.raises(InputError, match=hint):
        load(own_model)
    assert main(["inspect", str(own_model)]) == 0
    assert tf("sample", f"checkpoint={own_model}").status == 2
    result = tf("sample", *OWN, f"checkpoint={own_model}")
    assert f"is a '{name}', but backbone='{NAME}' was given" in result.err
    assert "never_asked_for" not in sys.modules
    assert type(load(own_model, backbone=name)).__module__ == "never_asked_for"
    assert load(own_model).depth == 4  # known from now on


def test_converting_names_the_class(own_model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(tmp_path / "modules")
    name = write_module(tmp_path / "modules", "to_convert", "    pass\n")
    file = own_model / "config.json"
    file.write_text(file.read_text().replace(NAME, name))
    command = ["convert", str(own_model), str(tmp_path / "ours"), "--to", "ours"]
    assert main(command) == 2 and f"to convert --backbone {name}," in capsys.readouterr().err
    assert main([*command, "--backbone", name]) == 0
    assert json.loads((tmp_path / "ours/config.json").read_text())["backbone"] == name


def test_inspect_says_that_a_word_for_no_backbone_does_not_load(own_model, capsys) -> None:
    file = own_model / "config.json"
    file.write_text(file.read_text().replace(NAME, "unet"))
    assert main(["inspect", str(own_model)]) == 0
    assert "it won't load: 'unet' is no backbone of this version" in capsys.readouterr().out


def test_a_file_of_other_sizes_is_refused(tf, own_model) -> None:
    result = tf("sample", *OWN, f"checkpoint={own_model}", "+backbone.depth=5")
    assert result.status == 2
    assert f"does not fit backbone='{NAME}' with depth=5: blocks.4." in result.err
    result = tf("sample", *OWN, f"checkpoint={own_model}", "+backbone.class_dropout_prob=0.5")
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("body", "overrides", "message"),
    [
        (
            "    def config(self):\n        return {'depth': 4}\n",
            (),
            "Own(**config()) has other tensors than the network whose config it is",
        ),
        (
            "    def config(self):\n        return super().config() | {'odd': {1, 2}}\n",
            (),
            "Own.config() holds odd={1, 2}, which JSON can't hold",
        ),
        (
            "    def __init__(self, depth=4, style='plain'):\n"
            "        if style != 'plain':\n"
            "            raise ValueError('style must be plain')\n"
            "        super().__init__(depth=depth)\n",
            ("+backbone.style=bold",),
            "can't be built from style='bold': ValueError: style must be plain",
        ),
        ("    pass\n", ("+backbone.depht=4",), "unknown key 'backbone.depht'; valid for backbone"),
        ("    process_kind = 'magic'\n", (), "needs a process of kind 'magic'"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_training(
    tf, root, tmp_path, monkeypatch, body, overrides, message
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "modules")
    # Every case has a module of its own: they stay imported.
    name = write_module(tmp_path / "modules", f"own_{uuid.uuid4().hex}", body)
    result = tf("pretrain", *OWN, f"backbone._target_={name}", *overrides)
    assert result.status == 2 and message in result.err
    assert not list(root.rglob("model"))


def test_what_is_no_backbone_is_refused(tf) -> None:
    result = tf("sample", *OWN, "backbone._target_=plain_vit.Block", "+backbone.width=8")
    assert result.status == 2
    assert "backbone._target_='plain_vit.Block' is no backbone; valid: a class" in result.err


def test_a_class_that_can_not_be_found_again_is_not_saved(tmp_path) -> None:
    from plain_vit import PlainViT

    class Inside(PlainViT):
        pass

    with pytest.raises(InputError, match="Inside is defined inside a function"):
        save_model(Inside(depth=2), tmp_path / "model")
    script = type("Script", (PlainViT,), {"__module__": "__main__"})
    with pytest.raises(InputError, match="Script is defined in the script or notebook"):
        save_model(script(depth=2), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_dry_run_needs_no_more_than_the_class(tf) -> None:
    result = tf("pretrain", *OWN, "dry_run=true")
    assert result.status == 0, result.err
    assert f"{NAME}, 12 blocks, 155,713 parameters" in result.out


def test_pruned_twice_counts_in_the_first(own_model, tmp_path) -> None:
    net = prune(prune(load(own_model, backbone=NAME), [0, 2, 3]), [1, 2])
    assert load(save_model(net, tmp_path / "twice")).kept_from == (2, 3)


def test_conversion_says_how_to_load_it(own_model, tmp_path, capsys) -> None:
    target = tmp_path / "copy"
    assert main(["convert", str(own_model), str(target), "--backbone", NAME, "--to", "ours"]) == 0
    assert f'tinyfusion.load("copy", backbone="{NAME}")' in (target / "README.md").read_text()
    assert main(["convert", str(own_model), str(tmp_path / "x"), "--to", "diffusers"]) == 2
    assert "computes only DiT" in capsys.readouterr().err


@pytest.mark.slow
def test_the_commands_of_the_documentation(tmp_path) -> None:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(PACKAGE), str(EXAMPLE)]))

    def run(command: str, *overrides: str) -> Path:
        arguments = [command, *OWN, f"output_root={tmp_path}", "trainer.threads=1", *overrides]
        done = subprocess.run(
            [sys.executable, "-m", "tinyfusion.cli", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / command).iterdir()
        return folder

    few = tuple(f"training.{phase}.steps=20" for phase in ("pretrain", "mask_learning", "recovery"))
    scores = ("evaluation.num_samples=50", "sampler=ddpm_20", "sampler.steps=4")
    model = run("pretrain", "training.pretrain.steps=20", *scores) / "model"
    recovered = run("run", f"checkpoint={model}", "scheme=1:2", *few, *scores) / "recovered"
    run("sample", f"checkpoint={recovered}", "n=20", *scores[1:])
    row = json.loads(
        (run("evaluate", f"checkpoint={recovered}", *scores) / "metrics.json").read_text()
    )
    assert row["model"]["depth"] == 6 and row["model"]["fid"] > 0
