"""Damaged, foreign and hostile files end in one line, and nothing in them is executed."""

import argparse
import os
import pickle
import re
import zipfile
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tinyfusion.checkpoints import load, read_checkpoint, save_model
from tinyfusion.errors import InputError


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        load(path, num_heads=4)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class Touch:
    """Creates a file when unpickled by a loader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["torch", "torch_old", "pickle_2", "pickle_4", "inside_args"])
def test_code_is_refused_and_not_executed(net, tmp_path, kind):
    path, witness = tmp_path / "evil.pt", tmp_path / "executed"
    content = {"ema": net.state_dict(), "args": Touch(witness)}
    if kind == "inside_args":
        content["args"] = argparse.Namespace(model=Touch(witness))
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content["args"], protocol=int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "torch_old")
    # The protected loader does not know the opcodes of pickle protocol 4 that name a function.
    refused(
        path,
        "refused, because it is a plain pickle, which may run code"
        if kind == "pickle_4"
        else r"refused, because the file asks to run posix\.system; valid: a file that holds only",
    )
    assert not witness.exists()
    # The same file does run code in a loader without protection: the test tests something.
    if not kind.startswith("pickle"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert witness.exists()


class Foreign:
    """A class that only its own program knows."""


def test_other_objects_are_refused_too(net, tmp_path):
    torch.save({"ema": net.state_dict(), "args": Foreign()}, tmp_path / "net.pt")
    refused(
        tmp_path / "net.pt", r"refused, because the file asks to run [\w.]*test_bad_files\.Foreign;"
    )


def test_whole_module_is_refused(net, tmp_path):
    torch.save(net, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "refused, because the file asks to run tinyfusion.backbones.dit")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("layout", ["zip", "old", "safetensors"])
def test_truncated_files_are_refused(net, tmp_path, layout, share):
    path = tmp_path / ("net.safetensors" if layout == "safetensors" else "net.pt")
    if layout == "safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=layout == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    what = "truncated" if share else r"empty \(0 bytes\)"
    refused(path, f"not a readable (PyTorch|safetensors) file: it is {what}")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"\x89PNG\r\n", r"is a picture \(PNG\); valid: a file of PyTorch or safetensors"),
        (b"\x1f\x8b\x08\x00abc", "is compressed by gzip: unpack it"),
        (
            b"\n<!DOCTYPE html><html><title>Not found</title>",
            r"is a web page \(Not found\), not wei",
        ),
        (b'{"error": "no access"}', 'is text .JSON.*begins with .{"error": "no access"}'),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n",
            "is a pointer of git-lfs, not the file of 12,345 bytes itself; get it by 'git lfs p",
        ),
        (b"\x00\x01\x02\x03", r"begins with b'\\x00\\x01\\x02\\x03', as no weights file does"),
    ],
)
def test_other_files_are_refused_with_what_they_are(tmp_path, start, reason):
    (tmp_path / "net.pt").write_bytes(start)
    refused(tmp_path / "net.pt", f"not a readable PyTorch file: it {reason}")


def test_archives_of_something_else_are_refused_with_what_they_hold(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("weights/readme.txt", "none here")
    refused(
        tmp_path / "net.pt", "is a zip archive, but not of PyTorch: it holds weights/readme.txt"
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [1, 4, 5])
def test_other_pickle_protocols_are_the_cause_that_is_named(net, tmp_path, protocol, zipped):
    path = tmp_path / "net.pt"
    torch.save(
        net.state_dict(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(InputError) as caught:
        load(path, num_heads=4)
    text = str(caught.value)
    assert f"was saved with pickle_protocol={protocol}" in text
    assert "this one names nothing but what torch needs" in text
    # The way out is a command that works.
    (code,) = re.findall(r'python -c "(.*)" \(', text)
    exec(code)
    assert load(tmp_path / "net-weights.pt", num_heads=4).depth == 4


def test_a_protocol_that_torch_can_not_read_is_named(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt", pickle_protocol=0)
    refused(tmp_path / "net.pt", "was saved with pickle_protocol=0, which torch itself can't read")


def test_a_later_protocol_says_what_its_file_would_run(net, tmp_path):
    content = {"ema": net.state_dict(), "args": Touch(tmp_path / "executed")}
    torch.save(content, tmp_path / "net.pt", pickle_protocol=4)
    refused(
        tmp_path / "net.pt", r"pickle_protocol=4, .* runs what the file names \(posix\.system\)"
    )
    assert not (tmp_path / "executed").exists()


def test_protocol_3_is_read(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt", pickle_protocol=3)
    assert load(tmp_path / "net.pt", num_heads=4).depth == 4


def test_harmless_objects_beside_weights_are_put_aside_unread(net, tmp_path, caplog):
    content = {
        "ema": net.state_dict(),
        "args": argparse.Namespace(out=Path("a/b"), lr=np.float32(0.5), image_size=np.int64(64)),
        "best": np.float64(3.5),
        "rng": np.arange(4),
        "began": datetime(2026, 1, 2),
        "config": OmegaConf.create({"a": {"b": 1}}),
        "seen": defaultdict(int, {"x": 1}),
    }
    torch.save(content, tmp_path / "net.pt")
    assert load(tmp_path / "net.pt", num_heads=4).depth == 4
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    assert checkpoint.provenance["args"] == {"out": "a/b", "lr": 0.5, "image_size": 64}
    assert checkpoint.also == {
        "best": "3.5",
        "rng": "numpy._core.multiarray._reconstruct, not read",
        "began": "datetime.datetime, not read",
        "config": "omegaconf.dictconfig.DictConfig, not read",
        "seen": "dict of 1 entries",
    }
    assert "not used: best (3.5), rng (numpy" in caplog.text


def test_objects_in_the_way_are_named_with_a_way_out(net, tmp_path):
    content = {"ema": net.state_dict(), "opt": Foreign(), "best": np.float64(1)}
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "net.pt", num_heads=4)
    (code,) = re.findall(r'python -c "(.*)" \(this runs what the file names', str(caught.value))
    exec(code)
    assert load(tmp_path / "net-weights.pt", num_heads=4).depth == 4
    torch.save(net, tmp_path / "whole.pt")
    refused(tmp_path / "whole.pt", r"torch\.save\(c\.state_dict\(\), ")


@pytest.mark.parametrize("name", ["notes.pt", "notes.safetensors", "notes.txt"])
def test_text_is_refused(tmp_path, name):
    (tmp_path / name).write_text("these are not weights\n" * 50)
    refused(tmp_path / name, "not a readable")


@pytest.mark.parametrize("content", [{}, [1, 2], {"state": 1}, {"ema": {}}, 7])
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "holds neither a state dict nor a training checkpoint")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused(net, tmp_path, value, dtype):
    state = {name: tensor.to(dtype).clone() for name, tensor in net.state_dict().items()}
    state["blocks.1.attn.proj.bias"][:2] = value
    save_file(state, tmp_path / "net.safetensors")
    refused(tmp_path / "net.safetensors", "'blocks.1.attn.proj.bias' holds 2 values that are not")


@pytest.mark.parametrize("key", [None, "ema", "model"])
def test_nan_in_half_precision_pytorch_files_is_refused(net, tmp_path, key):
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    state["blocks.3.mlp.fc2.weight"][5, 7] = float("nan")
    torch.save({key: state} if key else state, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "'blocks.3.mlp.fc2.weight' holds 1 values that are not finite")


def test_nan_in_what_is_not_used_does_no_harm(net, tmp_path):
    raw = {name: tensor * float("nan") for name, tensor in net.state_dict().items()}
    torch.save({"model": raw, "ema": net.state_dict()}, tmp_path / "net.pt")
    assert load(tmp_path / "net.pt", num_heads=4).depth == 4


@pytest.mark.parametrize("cut", [1, 22, 100, 5000, -5000, -100, -22, -1])
def test_training_checkpoints_cut_anywhere_are_refused(net, tmp_path, cut):
    content = {"model": net.state_dict(), "ema": net.state_dict(), "args": argparse.Namespace(a=1)}
    torch.save(content, tmp_path / "net.pt")
    whole = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(whole[:cut])
    refused(tmp_path / "net.pt", "not a readable PyTorch file: it is truncated")


def test_names_decide_nothing(net, tmp_path):
    save_file(net.state_dict(), tmp_path / "net.pt")
    torch.save(net.state_dict(), tmp_path / "net.safetensors")
    for name in ("net.pt", "net.safetensors"):
        assert load(tmp_path / name, num_heads=4).depth == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "mid_block.a", "conv_out.b"],
            r"not a DiT state dict: it has no tensor 'x_embedder.proj.weight' \(first tensors: "
            r"conv_in.weight, conv_out.b, down_blocks.0.resnets.0.conv1.weight\)$",
        ),
        (["base_model.model.blocks.0.attn.qkv.lora_A.weight"], "those of a LoRA adapter; give the"),
    ],
)
def test_other_architectures_are_refused(tmp_path, names, message):
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "unet.safetensors")
    refused(tmp_path / "unet.safetensors", message)


def test_folders_without_a_model_say_what_they_hold(net, tmp_path):
    refused(tmp_path, "not a model folder, it holds nothing; valid: config.json and model.safet")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "adapter", "not a model folder, but a LoRA adapter; give the model")
    save_model(net, tmp_path / "run" / "pruned")
    save_model(net, tmp_path / "run" / "recovered")
    refused(tmp_path / "run", "but it holds some; give one of .*run/pruned, .*run/recovered$")
    (tmp_path / "run" / "decision.json").write_text("{}")
    refused(tmp_path / "run" / "decision.json", "a JSON file, not a checkpoint; 'tinyfusion insp")


def test_integer_tensors_are_refused(net, tmp_path):
    torch.save({**net.state_dict(), "pos_embed": torch.zeros(1, 16, 48).long()}, tmp_path / "n.pt")
    refused(tmp_path / "n.pt", "tensor 'pos_embed' is torch.int64; valid: floating types")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": torch.zeros(1, 15, 48)}, "pos_embed has 15 positions; valid: the square"),
        ({"final_layer.linear.weight": torch.zeros(24, 48)}, "24 rows; valid .*: 8, or twice"),
        ({"x_embedder.proj.weight": torch.zeros(48, 8)}, "'x_embedder.proj.weight' has shape"),
        ({"blocks.0.mlp.fc1.weight": None}, "not a DiT state dict: it has no tensor 'blocks.0"),
        ({"blocks.6.attn.proj.bias": torch.zeros(48)}, r"numbered up to 6 without \[4, 5\]"),
        ({"blocks.1.attn.proj.bias": None}, "absent in the file, .* expected"),
    ],
)
def test_tensors_that_form_no_dit_are_refused(net, tmp_path, changes, message):
    state = {**net.state_dict(), **changes}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", message)


def test_random_damage_never_escapes_as_another_error(net, tmp_path):
    path, random = tmp_path / "net.pt", np.random.default_rng(0)
    torch.save({"ema": net.state_dict(), "args": argparse.Namespace(a=1)}, path)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = np.frombuffer(whole, dtype=np.uint8).copy()
        damaged[random.integers(0, 4000, size=20)] = random.integers(0, 256, size=20)
        path.write_bytes(damaged.tobytes())
        try:
            load(path, num_heads=4)
        except InputError as error:
            assert "\n" not in str(error)
