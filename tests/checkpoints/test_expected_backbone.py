"""``backbone=`` and ``num_heads=`` are checked against the file."""

import pytest
import torch

from tinyfusion.backbones.mar import MAR
from tinyfusion.checkpoints import load, read_checkpoint, save_model
from tinyfusion.checkpoints.expected import expected_teacher
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune


@pytest.fixture
def folder(net, tmp_path):
    return save_model(net, tmp_path / "model")


@pytest.fixture
def bare(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_family_and_arguments_that_fit_are_accepted(net, folder, bare):
    assert load(folder, backbone="dit").depth == 4
    assert load(folder, backbone=net.config()).depth == 4
    assert load(folder, backbone={"depth": 4, "gate_bias_init": 0.15}).depth == 4
    assert load(bare, backbone={"backbone": "dit", "num_heads": 8}).num_heads == 8


def test_preset_that_fits_is_accepted(tmp_path):
    from tinyfusion.backbones.presets import build

    save_model(build("dit_s_8"), tmp_path)
    assert load(tmp_path, backbone="dit_s_8").depth == 12


def test_mismatch_names_three_tensors_with_both_shapes(bare):
    with pytest.raises(InputError) as caught:
        load(bare, backbone="dit_s_2")
    assert str(caught.value).startswith(
        f"{bare}: does not fit backbone='dit_s_2': "
        "pos_embed: (1, 16, 48) in the file, (1, 256, 384) expected; "
        "x_embedder.proj.weight: (48, 2, 2, 2) in the file, (384, 4, 2, 2) expected; "
        "x_embedder.proj.bias: (48,) in the file, (384,) expected; and "
    )
    assert "\n" not in str(caught.value)


def test_other_depth_is_named_by_the_missing_tensors(folder):
    with pytest.raises(InputError, match=r"blocks.4\.\S+: absent in the file, \(144, 48\) expect"):
        load(folder, backbone={"depth": 5})
    with pytest.raises(InputError, match=r"blocks.3\.\S+: \(288, 48\) in the file, absent expect"):
        load(folder, backbone={"depth": 3})


def test_a_pruned_model_may_be_called_what_it_was_cut_from(net, tmp_path):
    whole = net.config()
    folder = save_model(prune(net, [0, 3]), tmp_path / "pruned")
    for depth in (2, 4):
        loaded = load(folder, backbone={**whole, "depth": depth})
        assert loaded.depth == 2 and loaded.kept_from == (0, 3)
    for depth in (1, 3):  # block 3 was the fourth
        with pytest.raises(InputError, match="absent"):
            load(folder, backbone={**whole, "depth": depth})


def test_arguments_without_a_shape_are_compared_with_the_config(folder):
    with pytest.raises(InputError, match="its config says num_heads=4, but 8 was given"):
        load(folder, num_heads=8)
    with pytest.raises(InputError, match=r"its config says frequency_divisor=128.0, but 127"):
        load(folder, backbone={"frequency_divisor": 127})


def test_heads_given_twice_must_agree(bare):
    with pytest.raises(InputError, match=r"num_heads=6, but backbone=.* has 4"):
        load(bare, backbone={"num_heads": 4}, num_heads=6)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("dit_xl_3", "backbone='dit_xl_3' is unknown; valid: dit, sit, "),
        ({"backbone": "mar"}, "is a 'dit', but backbone='mar' was given"),
        ({"widht": 3}, "has no argument 'widht'"),
        ({"num_heads": 5}, "num_heads must divide hidden_size"),
    ],
)
def test_unusable_expectations_are_refused(folder, backbone, message):
    with pytest.raises(InputError, match=message):
        load(folder, backbone=backbone)


def test_a_second_model_is_what_the_first_is_where_its_file_does_not_say(net, bare, folder):
    first = {"backbone": "sit", **net.config(), "depth": 2}
    # Its size is its own.
    assert expected_teacher(read_checkpoint(bare), first) == {"backbone": "sit"}
    for said in (None, {"depth": 2}, {"backbone": "mar"}, {"backbone": "plain_vit.PlainViT"}):
        assert expected_teacher(read_checkpoint(bare), said) is None
    assert expected_teacher(read_checkpoint(folder), first) is None


def test_a_second_mar_is_cut_into_tokens_as_the_first(tmp_path):
    head = {"head_depth": 1, "head_width": 8}
    mar = MAR(8, 16, 1, 2, 2, 2, in_channels=1, num_classes=10, buffer_size=2, **head)
    torch.save(mar.state_dict(), tmp_path / "mar.pt")
    checkpoint = read_checkpoint(tmp_path / "mar.pt")
    first = {"backbone": "mar", "patch_size": 2, "encoder_depth": 8}
    assert expected_teacher(checkpoint, first) == {"backbone": "mar", "patch_size": 2}
    assert expected_teacher(checkpoint, {"backbone": "mar"}) == {"backbone": "mar"}
    said = checkpoint.__class__(**{**vars(checkpoint), "hints": {"patch_size": 1}})
    assert expected_teacher(said, first) == {"backbone": "mar"}


def test_tensors_beyond_the_architecture_are_refused(net, tmp_path):
    state = {**net.state_dict(), "gates.0": torch.zeros(1, 2)}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"gates.0: \(1, 2\) in the file, absent expected"):
        load(tmp_path / "net.pt", num_heads=4)
