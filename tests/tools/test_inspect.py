"""``tinyfusion inspect``: what it prints for every kind of file."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tinyfusion
from tinyfusion.backbones.dit import DiT
from tinyfusion.backbones.sit import SiT
from tinyfusion.checkpoints import save_model
from tinyfusion.cli import main
from tinyfusion.decision import Decision
from tinyfusion.files import sha256_of
from tinyfusion.surgery import prune
from tinyfusion.tools.inspect import examine


@pytest.fixture
def net() -> DiT:
    return DiT(input_size=8, in_channels=2, hidden_size=48, depth=4, num_heads=4, num_classes=5)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]):
    """Run the command; its lines as pairs of name and value."""

    def run(path: Path) -> list[tuple[str, str]]:
        assert main(["inspect", str(path)]) == 0
        out = capsys.readouterr()
        first, *lines = out.out.splitlines()
        assert first == str(path) and not out.err
        assert max(map(len, lines)) <= 100
        rows = (line.strip().partition("  ") for line in lines)
        return [(name, value.strip()) for name, _, value in rows]

    return run


def test_everything_about_a_pruned_model(net: DiT, tmp_path: Path, shown) -> None:
    pruned = prune(net, [0, 3])
    record = {
        "command": "tinyfusion prune",
        "source": {"path": "x.pt", "sizes": [1, [2, 3]]},
        "a": None,
    }
    weights = save_model(pruned, tmp_path / "pruned", record, half=True) / "model.safetensors"
    assert shown(tmp_path / "pruned") == [
        ("architecture", "DiT"),
        ("format", f"model folder of tinyfusion {tinyfusion.__version__}"),
        ("depth", "2 blocks"),
        ("kept blocks", "0, 3 (numbers in the model it was pruned from)"),
        ("width", "48"),
        ("heads", "4"),
        ("MLP width", "192"),
        ("patch size", "2"),
        ("input", "2 x 8 x 8"),
        ("classes", "5 and the null class"),
        ("output", "4 channels, with learned sigma"),
        ("parameters", f"{sum(p.numel() for p in pruned.parameters()):,}"),
        ("dtype", "float16, float32"),
        ("size", f"{weights.stat().st_size / 1024:.2f} KiB"),
        ("SHA-256", sha256_of(weights)),
        ("convention", "frequency divisor 128, norm epsilon 1e-06: as published"),
        ("provenance", ""),
        ("command", "tinyfusion prune"),
        ("source", ""),
        ("path", "x.pt"),
        ("sizes", "1, [2, 3]"),
        ("a", "none"),
    ]


def test_bare_file(net: DiT, tmp_path: Path, shown) -> None:
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    rows = dict(shown(tmp_path / "net.safetensors"))
    assert rows["architecture"] == "DiT or SiT: their files look the same"
    assert rows["format"] == "bare state dict (safetensors)"
    assert rows["heads"] == "not in the file: give num_heads= to load it"
    assert rows["convention"].endswith(": as published (assumed: not in the file)")
    assert rows["provenance"] == "not recorded"


def test_published_width_implies_the_heads(tmp_path: Path, shown) -> None:
    net = DiT(input_size=4, hidden_size=384, depth=1, num_heads=6, mlp_ratio=0.25)
    state = {name: tensor.bfloat16() for name, tensor in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    rows = dict(shown(tmp_path / "net.pt"))
    assert rows["heads"] == "6 (as published for this width; the file does not say)"
    assert (rows["dtype"], rows["MLP width"]) == ("bfloat16", "96")


def test_training_checkpoint(net: DiT, tmp_path: Path, shown) -> None:
    content = {
        "model": {f"module.{name}": tensor for name, tensor in net.state_dict().items()},
        "ema": net.state_dict(),
        "opt": torch.optim.AdamW(net.parameters()).state_dict(),
        "args": argparse.Namespace(model="SiT-XL/2", image_size=64, num_classes=5),
    }
    torch.save(content, tmp_path / "0400000.pt")
    rows = shown(tmp_path / "0400000.pt")
    assert ("architecture", "SiT") in rows
    assert ("format", "training checkpoint, weights under 'ema'") in rows
    assert ("model", "state dict of 52 tensors") in rows and ("model", "SiT-XL/2") in rows
    assert ("opt", "optimizer state of 0 tensors") in rows
    assert [value for name, value in rows if name == "note"] == [
        "its args say model=SiT-XL/2, which means hidden_size=1152, but its tensors have",
        "its args say model=SiT-XL/2, which means depth=28, but its tensors have depth=4; the",
    ]


def test_sharded_diffusers_folder(tmp_path: Path, shown) -> None:
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=8, out_channels=8,
        num_embeds_ada_norm=5,
    )  # fmt: skip
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    theirs.half().save_pretrained(tmp_path, max_shard_size="40KB")
    shards = list(tmp_path.glob("*.safetensors"))
    rows = dict(shown(tmp_path))
    assert rows["architecture"] == "DiT" and len(shards) > 1
    assert rows["format"] == f"diffusers folder, sharded in {len(shards)} files"
    assert rows["dtype"] == "float16"  # the position table is computed, not stored
    assert rows["heads"] == "2"
    assert rows["size"] == f"{sum(file.stat().st_size for file in shards) / 1024:.2f} KiB"
    assert rows["convention"] == (
        "frequency divisor 127, norm epsilon 1e-05: as stock diffusers computes"
    )
    twin = DiT(
        input_size=8, hidden_size=16, depth=3, num_heads=2, num_classes=5, frequency_divisor=127
    )
    assert rows["parameters"] == f"{sum(p.numel() for p in twin.parameters()):,}"


def test_mixed_convention_is_called_neither(net: DiT, tmp_path: Path) -> None:
    net.frequency_divisor = 127.0
    assert examine(save_model(net, tmp_path))["convention"] == {
        "frequency_divisor": 127.0,
        "mlp_norm_eps": 1e-6,
        "meaning": "neither as published (128, 1e-06) nor as stock diffusers computes (127, 1e-05)",
    }


def test_json_holds_the_same_facts(net: DiT, tmp_path: Path, capsys) -> None:
    sit = SiT(**net.config() | {"class_dropout_prob": 0.0, "learn_sigma": False})
    folder = save_model(sit, tmp_path / "sit")
    assert main(["inspect", "--json", str(folder)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == examine(folder)
    expected = {
        "path": str(folder), "kind": "model", "architecture": "SiT", "backbone": "sit", "depth": 4,
        "heads": 4, "num_classes": 5, "null_class": False, "learn_sigma": False,
        "out_channels": 2, "kept_from": None, "dtypes": ["float32"], "notes": [],
        "parameters": sum(p.numel() for p in sit.parameters()),
    }  # fmt: skip
    assert facts.items() >= expected.items()


def test_config_that_contradicts_the_tensors_is_noted(net: DiT, tmp_path: Path, shown) -> None:
    path = save_model(net, tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["arguments"]["patch_size"] = 4
    path.write_text(json.dumps(config))
    assert dict(shown(tmp_path))["note"].startswith("its config says patch_size=4, but its tensors")


def test_packaged_model(capsys) -> None:
    assert main(["inspect", "digits"]) == 0
    assert "\n  depth         28 blocks\n" in capsys.readouterr().out


def test_decision(tmp_path: Path, shown) -> None:
    decision = Decision(
        kept=(1, 2), source_depth=4, method="learned", scheme=[[1, 2], [1, 2]], seed=3,
        probabilities=[[0.1, 0.9], [0.75, 0.25]], scores={"calibration": 0.5}, source_sha256="ab12",
    )  # fmt: skip
    assert shown(decision.save(tmp_path / "decision.json")) == [
        ("this is", "a decision: which blocks of a model stay; use it as decision=FILE"),
        ("method", "learned"),
        ("scheme", str(decision.groups)),
        ("depth", "2 of 4 blocks stay"),
        ("kept blocks", "1, 2"),
        ("dropped blocks", "0, 3"),
        ("confidence", "0.90, 0.75 by group"),
        ("evidence", "calibration"),
        ("seed", "3"),
        ("source SHA-256", "ab12"),
        ("written by", f"tinyfusion {tinyfusion.__version__}"),
    ]


def test_decision_under_a_budget(tmp_path: Path, shown) -> None:
    budget = {
        "macs": 60.0, "rest": 10.0, "units": "branches", "protected": ["blocks.0.attn"],
        "costs": {f"blocks.{n}.{part}": 45.0 for n in range(1) for part in ("attn", "mlp")},
        "minimums": [{"units": "blocks.0.attn..blocks.0.mlp", "at_least": 1}],
    }  # fmt: skip
    decision = Decision(
        (0, 1), 4, "learned", removed=("blocks.1.mlp",), budget=budget, scores={"margin": 0.75}
    )
    rows = dict(shown(decision.save(tmp_path / "decision.json")))
    assert rows["budget"] == "macs 60 (60.0% of 100)" and rows["chosen among"] == "branches"
    assert rows["protected"] == "blocks.0.attn" and rows["removed branches"].startswith("blocks.1")
    assert rows["at least"] == "1 of blocks.0.attn..blocks.0.mlp"
    assert rows["margin"].startswith("0.750: the least sure unit's probability")
    counted = Decision((0, 1), 4, "learned", budget={"keep": 2})
    assert dict(shown(counted.save(tmp_path / "decision.json")))["budget"] == "keep 2 blocks"


def test_adapter(net: DiT, tmp_path: Path, shown) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=r"blocks\.[13]\.(attn\.qkv|mlp.fc1)")
    peft.get_peft_model(net, config).save_pretrained(tmp_path)
    rows = dict(shown(tmp_path))
    assert rows["format"] == "PEFT adapter (LORA)"
    assert rows["rank, alpha"] == "2, 4" and rows["blocks"] == "1, 3"
    assert rows["parameters"] == f"{2 * 2 * (48 + 144 + 48 + 192):,} in 8 tensors"
    assert shown(tmp_path / "adapter_config.json") == shown(tmp_path)
    assert shown(tmp_path / "adapter_model.safetensors") == shown(tmp_path)


def test_resume_checkpoint(net: DiT, tmp_path: Path, shown) -> None:
    content = {
        "state_dict": {f"student.{name}": tensor for name, tensor in net.state_dict().items()},
        "global_step": 31,
        "pytorch-lightning_version": "2.6.0",
        "tinyfusion": {"averages": {}},
    }
    torch.save(content, tmp_path / "resume.ckpt")
    rows = dict(shown(tmp_path / "resume.ckpt"))
    assert rows["this is"].startswith(
        "resume checkpoint of a run at step 31, not a model; continue"
    )
    assert rows["holds"].startswith("52 tensors of the trained module")


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["inspect", str(path)]) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1
    assert out.err.startswith("tinyfusion: error: ")
    return out.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"these are not weights", "not a readable PyTorch file"),
        ("net.safetensors", b"", "not a readable safetensors file: it is empty"),
        ("x.json", b'{"a": 1}', "a JSON file, not a checkpoint"),
        ("x.json", b"{", "is not valid JSON"),
        ("adapter_config.json", b"{}", "not the config of a PEFT adapter"),
        ("decision.json", b'{"format": "tinyfusion-decision"}', "nothing is decided: give kept"),
    ],
)
def test_files_of_no_known_kind_are_refused(
    tmp_path: Path, capsys, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name, capsys)


def test_damaged_and_foreign_models_are_refused(net: DiT, tmp_path: Path, capsys) -> None:
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    state["pos_embed"][0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    assert "'pos_embed' holds 1 values that are not finite" in refused(tmp_path / "nan.pt", capsys)
    torch.save({"ema": state, "args": torch.nn.Identity()}, tmp_path / "evil.pt")
    assert "refused, because the file asks to run torch.nn.modules" in refused(
        tmp_path / "evil.pt", capsys
    )
    save_file({"conv_in.weight": torch.zeros(2)}, tmp_path / "unet.safetensors")
    assert "not a DiT state dict" in refused(tmp_path / "unet.safetensors", capsys)
    assert "does not exist; valid: a file" in refused(tmp_path / "absent.pt", capsys)


def test_arguments_are_checked_in_one_line(capsys) -> None:
    for arguments in ([], ["a", "b"], ["--verbose", "digits"]):
        assert main(["inspect", *arguments]) == 2
        out = capsys.readouterr()
        assert out.out == "" and out.err.count("\n") == 1
        assert "see 'tinyfusion inspect --help'" in out.err


def test_help_is_quick(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tinyfusion.cli import main\nstatus = main(['inspect', '--help'])\n"
        "print('MODULES', *sys.modules)\nraise SystemExit(status)"
    )
    environment = {"PYTHONPATH": str(Path(tinyfusion.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    text, _, modules = run.stdout.rpartition("MODULES")
    assert text.startswith("usage: tinyfusion inspect [-h] [--json] [--weights WEIGHTS] FILE")
    assert not {"torch", "diffusers", "hydra"} & set(modules.split())


def test_diffusers_is_not_imported(net: DiT, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    code = (
        "import sys\nfrom tinyfusion.cli import main\n"
        f"status = main(['inspect', {str(tmp_path / 'net.pt')!r}])\n"
        "print('MODULES', *sys.modules)\nraise SystemExit(status)"
    )
    environment = {"PYTHONPATH": str(Path(tinyfusion.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    modules = run.stdout.rpartition("MODULES")[2].split()
    assert "torch" in modules and not {"diffusers", "lightning", "peft"} & set(modules)


def test_file_that_will_not_load_says_why(net: DiT, tmp_path: Path, shown) -> None:
    state = net.state_dict()
    state["blocks.2.mlp.fc2.bias"] = torch.zeros(3)
    del state["blocks.3.attn.proj.weight"]
    torch.save(state, tmp_path / "net.pt")
    note = examine(tmp_path / "net.pt")["notes"]
    assert note == [
        "it won't load, because its tensors don't fit together: blocks.2.mlp.fc2.bias: (3,) in the "
        "file, (48,) expected; blocks.3.attn.proj.weight: absent in the file, (48, 48) expected"
    ]
    assert "note" in dict(shown(tmp_path / "net.pt"))
