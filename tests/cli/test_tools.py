"""The tools beside the commands, and what the commands make of other people's files."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tinyfusion
from tinyfusion.backbones.sit import SiT
from tinyfusion.checkpoints import load, save_model
from tinyfusion.cli import TOOLS, main


def test_tools_are_listed_exist_and_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for tool, summary in TOOLS.items():
        assert f"\n  {tool:<11}  {summary}\n" in out
        assert main([tool, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: tinyfusion {tool} ")
        if tool != "completion":  # knows the tools itself
            module = importlib.import_module(f"tinyfusion.tools.{tool.replace('-', '_')}")
            assert callable(module.main)
    assert main(["inspct"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(", ".join(TOOLS))


def test_tools_leave_logging_as_they_found_it(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("tinyfusion")
    before = logger.level, logger.propagate, list(logger.handlers)
    assert main(["inspect", "digits"]) == 0
    assert main(["inspect", "/no/such"]) == 2
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_output_may_be_cut_off_by_its_reader() -> None:
    code = "from tinyfusion.cli import main; raise SystemExit(main(['inspect', 'digits']))"
    environment = {"PYTHONPATH": str(Path(tinyfusion.__file__).parents[1])}
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, env=environment
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, b"")


@pytest.fixture
def bare(model: Path, tmp_path: Path) -> Path:
    """The tiny model as a file that says neither its heads nor its family."""
    torch.save(load(model).state_dict(), tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


def test_commands_say_that_a_bare_file_was_read_as_dit(tf, bare, only_run) -> None:
    result = tf("sample", f"checkpoint={bare}", "num_heads=2", "n=2")
    assert result.status == 0, result.err
    line = f"{bare}: read as DiT; SiT files look the same: give backbone=sit for one\n"
    assert result.out.count(line) == 1
    assert line in (only_run("sample") / "run.log").read_text()


def test_saying_dit_of_any_size_needs_no_remark(tf, bare) -> None:
    result = tf("sample", f"checkpoint={bare}", "num_heads=2", "n=2", "backbone=dit")
    assert result.status == 0, result.err
    assert "read as DiT" not in result.out


@pytest.mark.parametrize("command", ["prune", "recover", "sample", "evaluate", "run"])
def test_sit_in_a_process_for_dit_is_refused_before_work(tf, bare, root, command) -> None:
    given = (f"checkpoint={bare}", "num_heads=2", "backbone=sit")
    result = tf(command, *given, "process=ddpm_pixels")
    assert result.status == 2 and result.err.count("\n") == 1
    assert f"{bare}: a SiT needs a process of kind 'interpolant', but" in result.err
    assert "process=GaussianDiffusion is of kind 'diffusion'" in result.err
    assert not root.exists()
    # By itself, backbone=sit chooses its process; the sampler that tf() adds is DiT's.
    alone = ("teacher=none", "recovery=finetune") if command == "recover" else ()
    result = tf(command, *given, *alone)
    assert result.status == 2 and "AncestralSampler samples by processes of kind" in result.err
    assert "valid: sampler=ode_dopri5, " in result.err and not root.exists()


def test_new_sit_in_a_process_for_dit_is_refused(tf, root) -> None:
    result = tf("pretrain", "backbone=sit_s_8", "process=ddpm_pixels", small=False)
    assert result.status == 2 and "a SiT needs a process of kind 'interpolant'" in result.err
    assert not root.exists()


def test_a_bare_teacher_is_of_the_family_of_its_student(tf, bare, tmp_path, only_run) -> None:
    student = save_model(SiT(8, 2, 1, 16, 2, 2, num_classes=10), tmp_path / "student")
    given = (f"checkpoint={student}", f"teacher.path={bare}", "num_heads=2", "backbone=sit")
    few = ("recovery=kd", "sampler=ode_euler_50", "training.recovery.steps=1")
    result = tf("recover", *given, *few, "training.recovery.batch_size=4", small=False)
    assert result.status == 0, result.err
    assert "read as DiT" not in result.out and (only_run("recover") / "recovered").is_dir()


def test_the_other_family_is_named_with_the_process_it_needs(tf, bare, root) -> None:
    result = tf("sample", f"checkpoint={bare}", "num_heads=2", "process=sit")
    assert result.status == 2 and not root.exists()
    assert "choose another process=, or let backbone=dit or a size of it choose one" in result.err


def test_a_new_model_for_other_data_is_refused_before_it_is_made(tf, root, monkeypatch) -> None:
    def build(*_):
        raise AssertionError("the start values of a large model take long")

    monkeypatch.setattr("tinyfusion.commands.loading.build_backbone", build)
    result = tf("pretrain", "backbone=dit_s_8", "process=ddpm_latents")
    assert result.status == 2 and not root.exists()
    assert "backbone has in_channels=4 but the data has 1" in result.err


def test_a_family_alone_is_no_size_for_a_new_model(tf, root) -> None:
    result = tf("pretrain", "backbone=dit")
    assert result.status == 2 and not root.exists()
    assert "backbone=dit says what a checkpoint is, not how large a new model" in result.err
    assert "choose one of dit_s_2, " in result.err and "sit_" not in result.err


def test_size_that_the_file_does_not_have_is_refused(tf, bare, root) -> None:
    result = tf("sample", f"checkpoint={bare}", "backbone=sit_s_2")
    assert result.status == 2 and not root.exists()
    assert "pos_embed: (1, 16, 16) in the file, (1, 256, 384) expected; x_embedder" in result.err


def test_which_weights_of_a_file_can_be_said_of_every_file(tf, model, tmp_path, capsys) -> None:
    state = load(model).state_dict()
    content = {"one": state, "other": {name: 0.5 * tensor for name, tensor in state.items()}}
    torch.save(content, tmp_path / "two.pt")
    file = str(tmp_path / "two.pt")
    given = [f"checkpoint={file}", "num_heads=2", "n=1", "backbone=dit"]
    refused = tf("sample", *given)
    assert refused.status == 2 and "say which: weights=one or weights=other" in refused.err
    result = tf("sample", *given, "weights=other")
    assert result.status == 0, result.err
    assert result.out.count("weights under 'other'") == 2  # at once, and at the end
    assert "not used: one (state dict of" in result.out
    refused = tf("activations", f"teacher.path={file}", "num_heads=2")
    assert refused.status == 2 and "teacher.weights=one or teacher.weights=other" in refused.err
    result = tf("activations", f"teacher.path={file}", "num_heads=2", "teacher.weights=one")
    assert result.status == 0, result.err
    for tool in (["inspect", file], ["convert", file, str(tmp_path / "x"), "--to", "ours"]):
        assert main(tool) == 2
        assert "say which: --weights one or --weights other" in capsys.readouterr().err
    assert main(["inspect", file, "--weights", "one"]) == 0
    assert "weights under 'one'" in capsys.readouterr().out
