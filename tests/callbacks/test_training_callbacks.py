"""Callbacks that watch training: what they write, and that they change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image

from tinyfusion.backbones.dit import DiT
from tinyfusion.callbacks.decision_trace import DecisionTrace
from tinyfusion.callbacks.evaluate import EvaluateDuringTraining
from tinyfusion.callbacks.progress import PhaseProgress
from tinyfusion.callbacks.sample_grid import SampleGrid
from tinyfusion.checkpoints import load
from tinyfusion.data.digits import Digits
from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.held_out import HeldOutLoss
from tinyfusion.pipeline.fit import fit
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.recovery.objective import Objective
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.guidance import Guidance
from tinyfusion.seeding import StepNoise
from tinyfusion.tracking.of_lightning import log_picture
from tinyfusion.training.pretrain import Pretraining
from tinyfusion.training.recovery import Recovery
from tinyfusion.training.schedules import LearningRate
from tinyfusion.training.settings import TrainerSettings, TrainingSettings

STEPS = 6


@pytest.fixture(scope="module")
def source() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return Evaluation(20, AncestralSampler(2), Guidance(), held_out_repeats=1, speed_samples=0)


def module_of(kind: str, source: Digits) -> Pretraining | Recovery:
    torch.manual_seed(0)
    net = DiT(8, 2, 1, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    process = GaussianDiffusion()
    shared = {
        "process": process,
        "noise": StepNoise(0, kind),
        "total_steps": STEPS,
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        "learning_rate": LearningRate(1e-3, 1e-4),
        "clip_norm": 1.0,
        "label_drop": 0.1,
    }
    if kind == "recovery":
        return Recovery(net, None, Objective(), [], 0.9, **shared)
    return Pretraining(net, 0.9, HeldOutLoss(process, *source.held_out(), 1), 100, **shared)


def trained(
    kind: str, folder: Path, source: Digits, *callbacks, logger=None, **trainer
) -> Pretraining:
    module = module_of(kind, source)
    fit(
        module,
        source,
        TrainingSettings(STEPS, 8),
        TrainerSettings(accelerator="cpu", log_every=2, **trainer),
        folder,
        kind,
        0,
        [logger or CSVLogger(folder, name="log", flush_logs_every_n_steps=1)],
        callbacks,
    )
    return module


@pytest.mark.parametrize("kind", ["pretrain", "recovery"])
def test_watching_leaves_the_trajectory_alone(kind, tmp_path, source, evaluation) -> None:
    plain = trained(kind, tmp_path / "plain", source)
    watched = trained(
        kind,
        tmp_path / "watched",
        source,
        EvaluateDuringTraining(2, evaluation),
        SampleGrid(2, AncestralSampler(2)),
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    for name, (ema, _) in plain.averages.items():
        for key, value in ema.shadow.items():
            assert torch.equal(value, watched.averages[name][0].shadow[key])


def test_scores_are_those_of_the_averaged_weights(tmp_path, source, evaluation) -> None:
    module = trained("recovery", tmp_path, source, EvaluateDuringTraining(3, evaluation))
    rows = np.genfromtxt(
        tmp_path / "log/version_0/metrics.csv", delimiter=",", names=True, dtype=None
    )
    scored = rows[~np.isnan(rows["evaluatefid"])]
    assert list(scored["step"]) == [3, 6]
    with module.ema.averaged(module.student):
        expected = evaluation.score(module.student, module.process, source)
    assert scored["evaluatefid"][-1] == pytest.approx(expected["fid"], rel=1e-6)
    live = evaluation.score(module.student, module.process, source)
    assert live["held_out_loss"] != expected["held_out_loss"]
    assert scored["evaluateheld_out_loss"][-1] == pytest.approx(expected["held_out_loss"], rel=1e-6)


def test_the_last_step_is_scored(tmp_path, source, evaluation) -> None:
    watching = EvaluateDuringTraining(4, evaluation, keep_best=False)
    trained("recovery", tmp_path, source, watching)
    assert list(watching.history) == [4, 6]
    assert not (tmp_path / "best").exists()


def test_the_model_of_least_fid_is_kept(tmp_path, source, evaluation, monkeypatch) -> None:
    fids = {2: 5.0, 4: 3.0, 6: 4.0}
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def score(self, net, process, source, dtype, group):
        assert dtype is None and group.size == 1
        step = next(step for step in fids if step not in weights)
        weights[step] = {name: value.clone() for name, value in net.state_dict().items()}
        return {"fid": fids[step], "held_out_loss": 1.0}

    monkeypatch.setattr(Evaluation, "score", score)
    watching = EvaluateDuringTraining(2, evaluation)
    module = trained("recovery", tmp_path, source, watching)
    assert watching.best_step == 4
    best = load(str(tmp_path / "best"))
    for name, value in best.state_dict().items():
        assert torch.equal(value, weights[4][name]), name
    live = module.student.state_dict()
    assert any(not torch.equal(value, live[name]) for name, value in weights[4].items())
    record = json.loads((tmp_path / "best" / "config.json").read_text())["provenance"]
    assert record["step"] == 4 and record["metrics"]["fid"] == 3.0
    assert record["weights"] == "averaged"
    assert record["chosen_by"] == "least FID-20 during training"
    rows = np.genfromtxt(
        tmp_path / "log/version_0/metrics.csv", delimiter=",", names=True, dtype=None
    )
    best_so_far = rows["evaluatebest_fid"]
    assert best_so_far[~np.isnan(best_so_far)].tolist() == [5.0, 3.0, 3.0]


def test_the_best_so_far_survives_a_resumption(tmp_path, source, evaluation) -> None:
    whole = EvaluateDuringTraining(2, evaluation)
    trained("recovery", tmp_path, source, whole, resume_every=4)
    kept = (tmp_path / "best" / "model.safetensors").read_bytes()
    again = EvaluateDuringTraining(2, evaluation)
    trained("recovery", tmp_path, source, again, resume_every=4)  # goes on from step 4
    assert again.history == whole.history and again.best_step == whole.best_step
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == kept


def test_a_kill_while_the_best_is_replaced_loses_nothing(
    tmp_path, source, evaluation, monkeypatch
) -> None:
    fids = iter([1.0, 3.0, 4.0, 4.0])  # of steps 2, 4 and 6, and of 6 again
    monkeypatch.setattr(
        Evaluation, "score", lambda *_, **__: {"fid": next(fids), "held_out_loss": 1.0}
    )
    trained("recovery", tmp_path, source, EvaluateDuringTraining(2, evaluation), resume_every=4)
    kept = (tmp_path / "best" / "model.safetensors").read_bytes()
    # As a process leaves it that was killed between the two renames.
    (tmp_path / "best").rename(tmp_path / ".best.former")
    again = EvaluateDuringTraining(2, evaluation)
    trained("recovery", tmp_path, source, again, resume_every=4)  # goes on from step 4
    assert again.best_step == 2
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == kept
    assert not (tmp_path / ".best.former").exists()


def test_scores_that_are_not_finite_are_never_the_best(evaluation) -> None:
    watching = EvaluateDuringTraining(1, evaluation)
    assert watching.best_step is None
    watching.history = {1: {"fid": float("nan")}, 2: {}, 3: {"inception_score": 2.0}}
    assert watching.best_step is None
    watching.history[4] = {"fid": 9.0}
    assert watching.best_step == 4


def test_pictures_go_to_the_chosen_logger(tmp_path, source) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path, name="board", version="recovery")
    grid = SampleGrid(4, AncestralSampler(2), columns=2)
    trained("recovery", tmp_path, source, grid, logger=board)
    events = EventAccumulator(str(tmp_path / "board" / "recovery"), {"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [0, 4, 6]


def test_pictures_go_to_wandb_under_the_stages_name(tmp_path) -> None:
    shown = []

    class Recorded(WandbLogger):
        def __init__(self):
            pass

        def log_image(self, key, images, step):
            shown.append((key, images, step))

    log_picture(Recorded(), "samples", tmp_path / "a.png", 3)
    assert shown == [("samples", [str(tmp_path / "a.png")], 3)]


def test_sample_grid_has_a_row_per_record(tmp_path, source) -> None:
    grid = SampleGrid(4, AncestralSampler(2), columns=5)
    trained("recovery", tmp_path, source, grid)
    assert list(grid.rows) == [0, 4, 6]
    assert all(row.shape == (5, 1, 8, 8) and row.dtype == torch.uint8 for row in grid.rows.values())
    assert not torch.equal(grid.rows[0], grid.rows[6])
    with Image.open(tmp_path / "samples_progress.png") as picture:
        assert picture.width > 5 * 40 and picture.height > 3 * 40


def test_sample_grid_draws_as_a_protocol_of_its_settings_does(tmp_path, source) -> None:
    sampler, guidance = AncestralSampler(2), Guidance(3.0)
    grid = SampleGrid(STEPS, sampler, guidance, seed=5, columns=10)
    module = trained("recovery", tmp_path, source, grid, precision="bf16-mixed")
    evaluation = Evaluation(10, sampler, guidance)
    with module.ema.averaged(module.student):
        half, plain = (
            evaluation.drawing(module.student, module.process, 5, dtype).draw(0)
            for dtype in (torch.bfloat16, None)
        )
    assert torch.equal(grid.rows[STEPS], half) and not torch.equal(half, plain)


def test_sample_grid_shows_what_the_decoder_makes(tmp_path, source) -> None:
    class Mirror:
        batch_size = 2

        def to(self, device):
            return self

        def decode(self, latents):
            return latents.flip(3)

    grids = [SampleGrid(6, AncestralSampler(2), autoencoder=d) for d in (None, Mirror())]
    for number, grid in enumerate(grids):
        trained("recovery", tmp_path / str(number), source, grid)
    assert torch.equal(grids[1].rows[6], grids[0].rows[6].flip(3))


def test_sample_grid_goes_on_after_a_resumption(tmp_path, source) -> None:
    grid = SampleGrid(2, AncestralSampler(2))
    trained("recovery", tmp_path, source, grid, resume_every=4)
    again = SampleGrid(2, AncestralSampler(2))
    trained("recovery", tmp_path, source, again, resume_every=4)  # goes on from step 4
    assert list(again.rows) == [0, 2, 4, 6]
    assert all(torch.equal(again.rows[step], grid.rows[step]) for step in grid.rows)


def test_progress_without_a_terminal_is_a_few_lines(tmp_path, source, monkeypatch) -> None:
    lines = []
    monkeypatch.setattr(
        "tinyfusion.progress.log.info", lambda text, *values: lines.append(text % values)
    )
    trained("recovery", tmp_path, source, PhaseProgress("recovery", lines=2), progress=False)
    assert [line.split(",")[0] for line in lines] == [
        "recovery: 3 of 6 steps (50.0 %)",
        "recovery: 6 of 6 steps (100.0 %)",
    ]
    assert "loss " in lines[0]


def test_progress_on_a_terminal_is_one_bar(tmp_path, source, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    trained("recovery", tmp_path, source)
    out = capsys.readouterr().out
    assert "recovery" in out and "6 of 6 steps" in out and "loss" in out


@pytest.mark.parametrize("make", [
    lambda e: EvaluateDuringTraining(0, e),
    lambda e: SampleGrid(0, e.sampler),
    lambda e: SampleGrid(1, e.sampler, columns=0),
    lambda e: DecisionTrace(0),
])  # fmt: skip
def test_intervals_are_checked(make, evaluation) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        make(evaluation)
