"""A scoring protocol on a tiny model."""

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.data.digits import Digits
from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation, for_table
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.guidance import Guidance


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    deep = DiT(8, 2, 1, hidden_size=16, depth=4, num_heads=2, num_classes=10)
    for parameter in deep.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return deep


def protocol(**changes):
    values = {"num_samples": 40, "sampler": DDIMSampler(3), "guidance": Guidance()}
    return Evaluation(**(values | changes))


def test_score_has_every_figure_and_is_reproducible(nets):
    process, source = GaussianDiffusion(clip=True), Digits()
    evaluation = protocol(seeds=(0, 1))
    row = evaluation.score(nets, process, source, teacher=nets)
    assert row == evaluation.score(nets, process, source, teacher=nets)
    assert row["teacher_distance"] == 0.0
    assert row["fid_std"] > 0 and row["depth"] == 4
    single = [protocol(seeds=(seed,)).score(nets, process, source)["fid"] for seed in (0, 1)]
    assert row["fid"] == pytest.approx(sum(single) / 2)
    assert for_table(row) == {k: v for k, v in row.items() if k != "fid_std"} | {
        "fid": (row["fid"], row["fid_std"])
    }
    assert row["parameters"] == sum(p.numel() for p in nets.parameters())


def test_one_seed_has_no_spread(nets):
    row = protocol(held_out_repeats=1).score(nets, GaussianDiffusion(), Digits())
    assert "fid_std" not in row
    assert for_table(row) == row


def test_speed_is_relative_to_the_first(nets):
    speeds = protocol(speed_samples=4, speed_repeats=1).speed(
        {"a": nets, "b": nets}, GaussianDiffusion()
    )
    assert speeds["a"]["ratio"] == 1.0 and speeds["b"]["images_per_s"] > 0
    assert protocol(speed_samples=0).speed({"a": nets}, GaussianDiffusion()) == {}


def test_floor_is_that_of_the_real_data():
    floor = protocol().floor(Digits())
    assert 0.3 < floor["fid_real_halves"] < 1.0


def test_useless_protocols_are_refused():
    wrong = {
        "num_samples": 3,
        "batch_size": 0,
        "held_out_repeats": 0,
        "speed_samples": -1,
        "speed_repeats": 0,
    }
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"evaluation.{name}={value} must be at least"):
            protocol(**{name: value})
    with pytest.raises(InputError, match="seeds is empty"):
        protocol(seeds=())
