"""``dry_run=true`` says what a run would take; it needs no checkpoint and leaves no file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tinyfusion.cli import main

TINY = (
    "backbone=dit_digits",
    "backbone.depth=4",
    "backbone.hidden_size=16",
    "backbone.num_heads=2",
)
LATENTS = ("data=latents", "process=ddpm_latents")


@pytest.fixture
def dry(capsys, tmp_path: Path, monkeypatch) -> Callable[..., str]:
    """``dry(command, *overrides)``: what it printed; nothing may be left on the disk."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *overrides: str, status: int = 0, key: str = "dry_run=true") -> str:
        capsys.readouterr()
        assert main([command, key, *overrides]) == status
        out, err = capsys.readouterr()
        assert list(tmp_path.iterdir()) == []
        assert (err == "") == (status == 0), err
        return out + err

    return run


def test_a_published_run_without_checkpoint_data_or_gpu(dry) -> None:
    out = dry("run", "experiment=imagenet/tinydit_d14", key="+dry_run=true")
    for text in (
        "675,129,632 parameters",
        "14 blocks, 340,457,504 parameters",
        "1,281,167 images of 4 x 32 x 32, 1,000 classes; not looked at",
        "data.root= was not given",
        "10,009 steps x global batch 128 = 1,281,152 images (1.0 epochs",
        "100,000 steps x global batch 256 = 25,600,000 images (20.0 epochs",
        "6,001,948 of 681,131,580 parameters are trained",  # LoRA 6,001,920 and 28 logits
        "4 model(s) x 50,000 images x 250 steps, each forward twice for guidance",
        "pruned/, recovered/, recovered_live/: 1.27 GiB each",
    ):
        assert text in out, text
    assert "warning" not in out and "meant to follow the recipe 'tinyfusion'" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shown"),
    {
        "tinysit_d14": [
            "sit, 28 blocks, 675,129,632 parameters",
            "14 blocks, 340,457,504 parameters",
            "1,281,167 images of 4 x 32 x 32, 1,000 classes; not looked at",
            "500,000 steps x global batch 256 = 128,000,000 images (99.9 epochs",
            "4 model(s) x 50,000 images x 250 steps, each forward twice for guidance",
        ],
        "tinymar_d16": [
            "mar, 32 blocks, 478,326,304 parameters",
            "16 blocks, 276,786,720 parameters",
            "1,281,167 images of 16 x 16 x 16, 1,000 classes; not looked at",
            "200,000 steps x global batch 256 = 51,200,000 images (40.0 epochs",
            "4 model(s) x 50,000 images x 64 steps, each forward twice for guidance",
        ],
    }.items(),
)
def test_published_runs_of_other_backbones(dry, name: str, shown: list[str]) -> None:
    # The autoencoder, which MAR's experiment asks for, isn't needed either.
    out = dry("run", f"experiment=imagenet/{name}", key="+dry_run=true")
    for text in shown:
        assert text in out, text
    assert "warning" not in out and f"meant to follow the recipe 'tinyfusion_{name[4:7]}'" in out


def test_micro_batches_recomputing_and_sharding_save_memory(dry) -> None:
    def together(*overrides: str) -> float:
        out = dry("recover", "experiment=imagenet/tinydit_d14", "backbone=dit_s_8", *overrides)
        ((size, unit),) = re.findall(r"together +([\d.]+) ([GM])iB", out)
        return float(size) * (1024 if unit == "G" else 1)

    whole = together()
    small = together("trainer.micro_batch=16")
    least = together("trainer.micro_batch=16", "trainer.checkpoint_blocks=true")
    apart = together("trainer=fsdp", "trainer.devices=8", "trainer.micro_batch=16")
    assert whole > small > least and small > apart


def test_departures_from_the_recipe_are_said(dry) -> None:
    changed = ("training.recovery.batch_size=1024", "training.recovery.steps=25000")
    out = " ".join(dry("recover", "experiment=imagenet/tinydit_d14", *changed).split())
    assert "warning: differs from the recipe 'tinyfusion': batch_size=1024 instead of 256" in out
    assert "4.0 times fewer updates" in out


@pytest.mark.parametrize("command", ["pretrain", "prune", "recover", "run"])
def test_every_command_that_trains(dry, command: str) -> None:
    out = dry(command, *TINY)
    assert out.startswith(f"tinyfusion {command}: dry run; nothing is trained or written\n")
    phases = {
        "pretrain": ["pretrain"],
        "prune": ["mask_learning"],
        "recover": ["recovery"],
        "run": ["mask_learning", "recovery"],
    }[command]
    assert [line for line in out.splitlines() if line.replace("_", "").isalpha()] == phases
    assert out.count("memory per device, estimated:") == len(phases)
    assert "1,500 images of 1 x 8 x 8, 10 classes\n" in out
    assert ("pruned " in out) == (command in ("prune", "run"))


def test_a_checkpoint_says_what_the_network_is(dry, model) -> None:
    out = dry("run", f"checkpoint={model}")
    assert "dit, 4 blocks" in out and f"(by {model})" in out
    assert f"(by {model})" in dry("prune", f"checkpoint={model}", "backbone=dit")
    out = dry("run", f"checkpoint={model}", "pruner=indices", "pruner.kept=[0,1,3]")
    assert "pruned      3 blocks" in out and "mask_learning" not in out
    out = dry("run", f"checkpoint={model}", "pruner=shortgpt", "scheme=null", "keep=1")
    assert "pruned      1 blocks" in out and "mask_learning" not in out


def test_what_a_run_would_refuse_is_refused(dry, model) -> None:
    for overrides, text in {
        ("checkpoint=null",): "say what the network is by backbone=",
        ("checkpoint=/no/such",): "'/no/such' does not exist",
        (*TINY, "scheme=3:5"): "scheme",
        (*TINY, "training.recovery.steps=0"): "steps=0",
        (*TINY, "training.recovery.batch_size=7", "trainer.devices=2"): "batch_size=7",
        (*TINY, "dry_run=maybe"): "dry_run",
        (*TINY, "trainer.strategy=none"): "strategy=none",
        ("backbone=dit_xl_2", "process.num_steps=0"): "num_steps",
        ("backbone=dit_xl_2",): "backbone has in_channels=4 but the data has 1",
        ("backbone=sit_digits", "sampler=ddim_50"): "valid: sampler=ode_dopri5",
        ("backbone=mar_digits", "sampler.iterations=17"): "valid: 1 to 16",
        (*TINY, "evaluation.guidance.channels=3"): "evaluation: guidance channels=3",
    }.items():
        assert text in dry("run", *overrides, status=2), overrides
    assert "unknown key 'dry_run'" in dry("evaluate", status=2)


def test_a_sweep_is_refused(dry) -> None:
    out = dry("run", "-m", *TINY, "seed=1,2", status=2)
    assert "dry_run=true is about one run" in out


def test_a_probe_times_real_steps(dry, monkeypatch) -> None:
    from tinyfusion.pipeline import probe

    monkeypatch.setattr(probe, "STEPS", 4)
    monkeypatch.setattr(probe, "UNTIMED", 1)
    small = ("trainer.threads=1", "evaluation.batch_size=4", "trainer.micro_batch=16")
    out = dry("run", *TINY, *small, "dry_run_probe=true")
    assert (
        len(re.findall(r"[\d.e-]+ s per step \(4 real steps\): [\d.]+ (?:minutes|hours)", out)) == 2
    )
    assert "on 1 device(s), decoding and scoring left out" in out
    assert re.search(r"^time +[\d.]+ (minutes|hours) in all", out, re.MULTILINE)
    assert "not estimated" not in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to time on")
def test_without_a_gpu_no_time_is_made_up(dry) -> None:
    assert "not estimated (no GPU here); dry_run_probe=true" in dry("pretrain", *TINY)


@pytest.mark.parametrize("chosen", [["pruner=learned"], ["pruner=shortgpt", "selector=grouped"]])
def test_a_scheme_that_contradicts_keep_is_refused(tf, chosen) -> None:
    result = tf("run", *chosen, "scheme=1:2", "keep=1", "dry_run=true", "dry_run_probe=false")
    assert result.status == 2 and "scheme=1:2 keeps 2 of 4 blocks but keep=1" in result.err
