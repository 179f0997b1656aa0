"""What `tinyfusion benchmark` times: sizes, cuts, random weights and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from tinyfusion.commands.benchmark_models import (
    NARROWED,
    Subject,
    check_memory,
    random_weights,
    ready,
    short_names,
)
from tinyfusion.commands.benchmark_models import planned_subjects as plan
from tinyfusion.errors import InputError
from tinyfusion.metrics.memory import available_memory, bytes_of
from tinyfusion.metrics.speed import parameters
from tinyfusion.settings.check import check
from tinyfusion.settings.objects import objects_of
from tinyfusion.settings.overview import conf_folder

PAPER = {28: "dit_xl_2", 19: "dit_xl_2_d19", 14: "dit_xl_2_d14", 7: "dit_xl_2_d7"}
NARROW = ("hidden_size=32", "num_heads=4", "input_size=4")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def planned(*overrides: str) -> list[Subject]:
    cfg = check(compose("benchmark", [*overrides]))
    narrowed = {key: cfg[key] for key in NARROWED if cfg[key] is not None}
    return plan(objects_of(cfg), cfg.models, narrowed, cfg.depths, cfg.widths)


def test_presets_and_cuts_have_the_papers_parameters(golden_folder: Path) -> None:
    wanted = json.loads((golden_folder / "paper_params.json").read_text())["models"]
    models = f"models=[{','.join(PAPER.values())}]"
    subjects = planned(models, "depths=[19,14,7]")
    counts = [parameters(subject.net) for subject in subjects]
    totals = {depth: wanted[f"DiT-XL/2 depth {depth}"]["total"] for depth in PAPER}
    assert counts == [*totals.values(), totals[19], totals[14], totals[7]]
    assert all(p.is_meta for subject in subjects for p in subject.net.parameters())


def test_narrowed_presets_still_tell_the_published_size(golden_folder: Path) -> None:
    wanted = json.loads((golden_folder / "paper_params.json").read_text())["models"]
    models = f"models=[{','.join(PAPER.values())}]"
    subjects = planned(models, *NARROW)
    for subject, depth in zip(subjects, PAPER, strict=True):
        assert subject.net.depth == depth and subject.net.hidden_size == 32
        assert parameters(subject.preset) == wanted[f"DiT-XL/2 depth {depth}"]["total"]


def test_cuts_in_depth_share_the_weights_of_the_first() -> None:
    subjects = planned("models=[dit_s_2]", "depths=[6,1]", *NARROW)
    nets = ready(subjects, CPU, seed=0)
    whole, half, one = nets.values()
    assert list(nets) == ["dit_s_2", "dit_s_2, 6 blocks", "dit_s_2, 1 blocks"]
    assert (whole.depth, half.depth, one.depth) == (12, 6, 1)
    assert {id(p) for p in half.parameters()} < {id(p) for p in whole.parameters()}
    assert half.blocks[1].mlp.fc1.weight is whole.blocks[2].mlp.fc1.weight
    # The modules are their own: what is compiled of one is not of the other.
    assert half.blocks[1] is not whole.blocks[2]
    assert subjects[1].label == "6" and not any(net.training for net in nets.values())


def test_stacks_lose_their_share_of_blocks() -> None:
    subjects = planned("backbone=mar_digits", "depths=[16]")
    _, cut = ready(subjects, CPU, seed=0).values()
    assert (len(cut.encoder_blocks), len(cut.decoder_blocks)) == (8, 8)


def test_cuts_in_width_lose_their_share_of_parameters(tmp_path: Path) -> None:
    sizes = ("hidden_size=128", "num_heads=8", "input_size=4")
    subjects = planned("models=[dit_s_2]", "widths=[0.25,0.5]", *sizes)
    whole, quarter, half = subjects
    for cut, ratio in ((quarter, 0.25), (half, 0.5)):
        assert 1 - parameters(cut.net) / parameters(whole.net) == pytest.approx(ratio, abs=0.03)
        assert cut.net.depth == 12 and cut.cut == "width"
    assert int(half.label) < int(quarter.label) < 128
    nets = ready(subjects, CPU, seed=0)
    assert [parameters(net) for net in nets.values()] == [parameters(s.net) for s in subjects]


def test_random_weights_have_no_tensor_of_zeros_and_are_seeded() -> None:
    (subject,) = planned("models=[dit_s_2]", *NARROW)
    state = torch.get_rng_state()
    first, again = (random_weights(subject.arguments, CPU, seed=3) for _ in range(2))
    other = random_weights(subject.arguments, CPU, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bool(p.any()) for p in first.parameters())
    gates = [net.blocks[0].adaLN_modulation[1].weight for net in (first, again, other)]
    assert torch.equal(gates[0], gates[1]) and not torch.equal(gates[0], gates[2])


def test_checkpoints_keep_their_weights_and_size() -> None:
    subjects = planned("models=[digits,dit_digits]", "hidden_size=16", "num_heads=4")
    teacher, narrow = subjects
    assert teacher.arguments is None and teacher.preset is None
    assert (teacher.net.hidden_size, narrow.net.hidden_size) == (32, 16)
    nets = ready(subjects, CPU, seed=0)
    assert nets["digits"] is teacher.net


def test_a_packaged_model_is_meant_where_a_preset_has_its_name() -> None:
    (subject,) = planned("backbone=sit_digits", "models=[sit_digits]")
    assert subject.arguments is None


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["/a/x/recovered", "/a/y/recovered", "/b/pruned", "dit_s_2", "me/hub"]) == [
        "x/recovered",
        "y/recovered",
        "pruned",
        "dit_s_2",
        "me/hub",
    ]
    assert short_names(["/m", "/a/m"]) == ["//m", "a/m"]


def test_more_weights_than_memory_are_refused() -> None:
    subjects = planned("models=[dit_s_2,dit_b_2]", "depths=[6]", "hidden_size=32", "num_heads=4")
    # Cuts in depth share what they have.
    needed = sum(bytes_of(subject.net) for subject in subjects[:2])
    check_memory(subjects, needed, CPU)
    check_memory(subjects, None, CPU)
    with pytest.raises(
        InputError, match=r"weights of the 3 networks take .* MiB together, and cpu"
    ):
        check_memory(subjects, needed - 1, CPU)
    free = available_memory(CPU)
    assert free is None or free > 1e6


@pytest.mark.parametrize(
    ("overrides", "message"),
    {
        ("models=dit_s_2",): r"models=dit_s_2: valid is a list",
        ("models=3",): r"models=3: valid is a list",
        ("models=[]",): r"models=\[\]: valid is a list",
        ("models=[3]",): r"models=\[3\]: valid is a list",
        ("checkpoint=null",): r"models=\[null\]: valid is a list",
        ("models=[digits,digits]",): "'digits' is listed more than once",
        ("models=[dit_xl_3]",): r"'dit_xl_3' does not exist; .* or a preset: dit_s_2",
        ("models=[dit]",): "'dit' does not say how large; valid: dit_s_2",
        ("models=[digits,dit_s_2]",): r"shape \(1, 8, 8\), dit_s_2 of \(4, 32, 32\)",
        ("models=[digits,sit_digits]",): "SiT needs a process of kind 'interpolant'",
        ("models=[sit_s_2]",): "let backbone=sit or a size of it choose",
        ("hidden_size=64",): r"hidden_size=64 narrows presets, .* none in models=\[digits\]",
        ("models=[dit_s_2]", "hidden_size=35"): "dit_s_2 with hidden_size=35: num_heads must",
        ("models=[dit_s_2]", "input_size=3"): "dit_s_2 with input_size=3: ",
        ("depths=[14,28]",): r"depths=\[14,28\]: 28 must be between 1 and 27, as digits has 28",
        ("depths=[0]",): r"depths=\[0\]: 0 must be between 1 and 27",
        ("depths=[7,7]",): r"depths=\[7,7\]: more than one of these is digits, 7 blocks",
        ("widths=[1.0]",): r"widths=\[1\.0\]: 1\.0 must be above 0 and below 1",
        ("widths=[0.999]",): r"widths=\[0\.999\]: ",
        ("widths=[0.5,0.501]",): r"widths=\[0\.5,0\.501\]: more than one of these is digits, width",
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_can_not_be_timed_is_refused(overrides, message) -> None:
    with pytest.raises(InputError, match=message):
        planned(*overrides)
