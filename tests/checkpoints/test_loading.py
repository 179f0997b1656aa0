"""The type that weights are loaded in, and the memory that loading takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tinyfusion.checkpoints import load, read_checkpoint, save_model, to_backbone
from tinyfusion.checkpoints.lazy_state import LazyState
from tinyfusion.checkpoints.tensors import not_finite, read_safetensors
from tinyfusion.errors import InputError

ROOT = Path(__file__).parents[2]


def types_of(net: torch.nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in (*net.parameters(), *net.buffers())}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.float32),
        ("auto", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
        ("float64", torch.float64),
    ],
)
def test_the_type_is_chosen_by_name(net, tmp_path, dtype, expected) -> None:
    net = net.to(torch.bfloat16)
    found = load(save_model(net, tmp_path), dtype=dtype)
    assert types_of(found) == {expected}
    for name, tensor in net.state_dict().items():
        if name != "pos_embed":  # restored from its rounded values
            assert torch.equal(found.state_dict()[name], tensor.to(expected)), name
    assert [p.requires_grad for p in found.parameters()] == [
        p.requires_grad for p in net.parameters()
    ]


@pytest.mark.parametrize("name", ["digits", "sit_digits", "mar_digits"])
def test_a_model_in_bfloat16_computes(name) -> None:
    net = load(name)
    inputs = [x + torch.randn_like(x) if x.is_floating_point() else x for x in net.example_inputs()]
    with torch.no_grad():
        expected = net(*inputs)
        found = load(name, dtype="bfloat16")(
            *(x.bfloat16() if x.is_floating_point() else x for x in inputs)
        )
    assert found.dtype == torch.bfloat16
    assert 0 < (found.float() - expected).norm() / expected.norm() < 0.05


def test_of_several_types_auto_takes_that_of_most_elements(net, tmp_path) -> None:
    save_model(net, tmp_path, half=True)  # the position table stays float32
    assert read_checkpoint(tmp_path).dtypes == ("float16", "float32")
    assert types_of(load(tmp_path, dtype="auto")) == {torch.float16}


@pytest.mark.parametrize("dtype", ["half", "int8", torch.int8, 16, torch.float8_e4m3fn])
def test_other_types_are_refused_before_anything_is_read(dtype) -> None:
    valid = r"valid are auto, float32, bfloat16, float16, float64"
    with pytest.raises(InputError, match=rf"dtype='\S+': {valid}"):
        load("no/such/file", dtype=dtype)


def test_types_that_cannot_hold_the_weights_are_refused(net, tmp_path) -> None:
    net.blocks[1].mlp.fc1.weight.data[0, 0] = 1e6
    save_model(net, tmp_path)
    message = r"dtype=float16 can't hold tensor 'blocks.1.mlp.fc1.weight', .* is 1e\+06; valid: b"
    with pytest.raises(InputError, match=message):
        load(tmp_path, dtype="float16")
    assert types_of(load(tmp_path, dtype="bfloat16")) == {torch.bfloat16}


def test_a_checkpoint_gives_several_models_unless_it_is_released(net, tmp_path) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    first = to_backbone(checkpoint, num_heads=4)
    second = to_backbone(checkpoint, num_heads=4, release=True)
    assert len(checkpoint.state) == 0
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert tensor.data_ptr() != second.state_dict()[name].data_ptr()


def test_tensors_are_read_when_asked_for_and_from_the_file_that_was_opened(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}, path)
    state = read_safetensors(path)
    assert {name: (tuple(x.shape), x.dtype) for name, x in state.meta.items()} == {
        "a": ((3,), torch.float32),
        "b": ((2, 2), torch.bfloat16),
    }
    assert all(tensor.is_meta for tensor in state.meta.values())
    save_file({"a": torch.full((3,), 7.0)}, tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").replace(path)
    assert torch.equal(state["a"], torch.ones(3))
    state["a"].add_(1)
    assert torch.equal(state["a"], torch.ones(3)), "every reading has memory of its own"
    renamed = state.renamed({"c": "a"}) | LazyState.of({"d": torch.ones(1)})
    assert list(renamed) == ["c", "d"] and torch.equal(renamed.take("c"), torch.ones(3))
    assert list(renamed) == list(renamed.meta) == ["d"]


def test_values_are_looked_at_in_parts() -> None:
    tensor = torch.zeros(3, 200_000).t()
    tensor[5, 1], tensor[199_999, 2] = float("nan"), float("-inf")
    assert not_finite(tensor) == 2 and not_finite(torch.tensor(1.0)) == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured on Linux")
def test_loading_takes_the_memory_of_the_model_and_of_one_tensor() -> None:
    megabytes = 80
    run = subprocess.run(
        [sys.executable, "scripts/loading_memory.py", f"--megabytes={megabytes}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ratios = dict(re.findall(r"^(.*): ([\d.]+) times the model$", run.stdout, re.M))
    assert {"float32 -> float32", "bfloat16 -> bfloat16"} <= set(ratios)
    # A tensor has at most 6.3 million bytes; of what it is read from, there may be as much again.
    assert {title for title, ratio in ratios.items() if float(ratio) > 1 + 2 * 6.3 / 80} == set()
