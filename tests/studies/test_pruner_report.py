"""The report on pruners: from the folders of finished runs to tables, correlation and picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from tinyfusion import Decision, GaussianDiffusion, HeldOutLoss, save_model
from tinyfusion.backbones.dit import DiT
from tinyfusion.data.digits import Digits
from tinyfusion.errors import InputError
from tinyfusion.files import read_json, write_json, write_text
from tinyfusion.pruners.contract import calibration_batch
from tinyfusion.studies import random_halves
from tinyfusion.studies.collect import read_run
from tinyfusion.studies.correlation import p_value, points
from tinyfusion.studies.digits import PRUNERS, plan
from tinyfusion.studies.jobs import Job
from tinyfusion.studies.pruners import CALIBRATION_SAMPLES, calibration_loss, finished, report


def scores(fid: float) -> dict[str, float]:
    return {
        "fid": fid,
        "inception_score": 4.0,
        "held_out_loss": 0.07 + fid / 1000,
        "teacher_distance": 0.01,
        "precision": 0.5,
        "recall": 0.9,
    }


def finish(job: Job, fid: float, loss: float, kept: tuple[int, ...] = (0, 2)) -> None:
    """Leave what a finished run of the study leaves, and its calibration loss."""
    config = {
        "seed": job.seed,
        "training": {"recovery": {"steps": 600, "batch_size": 64}},
    }
    write_text(job.folder / "config.yaml", OmegaConf.to_yaml(config))
    models = {"source": scores(0.5), "pruned": scores(20.0)}
    models |= {"recovered": scores(fid), "recovered (live weights)": scores(fid)}
    decision = {"method": job.pruner, "kept": list(kept)}
    floor = {"fid_real_halves": 0.58, "fid_real_halves_std": 0.03}
    protocol = {"num_samples": 1000}
    write_json(
        job.folder / "metrics.json",
        {"models": models, "protocol": protocol, "floor": floor, "decision": decision},
    )
    write_json(job.folder / "calibration.json", {"loss": loss})


FIDS = {"learned 1:2": 1.5, "shortgpt": 0.9, "oracle": 1.2, "first": 1.0, "random": 3.0}
LOSSES = {"learned 1:2": 0.3, "shortgpt": 0.5, "oracle": 0.4, "first": 0.45, "random": 0.2}


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """The study's jobs; of recovery=kd five pruners are finished at two seeds."""
    jobs = plan(tmp_path, [0, 1])
    for job in jobs:
        if job.recovery == "kd" and job.pruner in FIDS:
            index = list(FIDS).index(job.pruner)
            finish(
                job, FIDS[job.pruner] + 0.2 * job.seed, LOSSES[job.pruner], (index, 9 + job.seed)
            )
    return jobs


def test_report_of_a_part(tmp_path, jobs) -> None:
    text = report(tmp_path, jobs)
    assert text == (tmp_path / "report.md").read_text()
    found = read_json(tmp_path / "report.json", "report")
    rows = {row["pruner"]: row for row in found["overview"]}
    assert list(rows) == ["learned 1:2", "shortgpt", "oracle", "first", "random"]
    assert rows["shortgpt"]["seeds"] == 2
    assert rows["shortgpt"]["fid kd"] == [pytest.approx(1.0), pytest.approx(0.1 * 2**0.5)]
    assert rows["shortgpt"]["calibration_loss"] == [0.5, 0.0]
    # The lower the loss, the worse the model: exactly reversed ranks.
    (fid, held_out) = found["correlations"]  # of three, the lower half, none is given
    assert fid["among"] == held_out["among"] == "all"
    assert (fid["recovery"], fid["before"], fid["after"]) == ("kd", "calibration_loss", "fid")
    assert fid["choices"] == 5
    assert fid["rho"] == pytest.approx(-1) and held_out["rho"] == pytest.approx(-1)
    # Of all 120 orders of five, the two that are this extreme.
    assert fid["p"] == pytest.approx(2 / 120)
    missing = [job for job in jobs if not job.done]
    assert f"Not finished: {len(missing)} of {len(jobs)} jobs" in text
    assert "- shortgpt (seed 1): 1 10" in text and "1.000 ± 0.141" in text
    assert "masked_kd" not in text.partition("Not finished")[2].partition("\n")[2]
    assert (tmp_path / "pruners.png").stat().st_size > 10_000


def test_width_and_scratch_are_no_points_of_the_correlation(tmp_path, jobs) -> None:
    for job in jobs:
        if job.pruner.startswith("diff_pruning") or job.recovery == "kd, from scratch":
            finish(job, 9.0, 0.9, ())
        if job.recovery == "finetune" and job.pruner == "learned 1:2":
            finish(job, 2.0, 0.3)  # with one of widths, but alone among pruners of blocks
    text = report(tmp_path, jobs)
    found = read_json(tmp_path / "report.json", "report")
    assert {point.label for point in points(finished(jobs), "kd")} == set(FIDS)
    assert all(row["choices"] == 5 for row in found["correlations"])
    assert "diff_pruning, 50 %" in text and "kd, from scratch" in text
    assert {row["recovery"] for row in found["correlations"]} == {
        "kd"
    } and "FID, finetune" not in text
    listed = [(r["pruner"], r["recovery"]) for r in found["tables"]["recovered"]]
    assert ("oracle", "kd, from scratch") in listed
    # What is trained from scratch is not what was cut.
    assert all(row["recovery"] == "none" for row in found["tables"]["pruned"])
    # The oracle's own row is not mixed with the one from scratch.
    (oracle,) = [row for row in found["overview"] if row["pruner"] == "oracle"]
    assert oracle["fid kd"][0] == pytest.approx(1.3)


def test_pruners_that_chose_the_same_are_one_point(tmp_path, jobs) -> None:
    for job in jobs:
        if job.recovery == "kd" and job.pruner == "laptop_diff":
            finish(job, 0.95, LOSSES["shortgpt"], (1, 9 + job.seed))  # as shortgpt
        if job.recovery == "kd" and job.pruner == "uniform":
            # As shortgpt at one of two seeds.
            finish(job, 2.0, 0.1, (1, 9 if job.seed == 0 else 20))
        if (job.recovery, job.pruner, job.seed) == ("kd", "flux_lite", 1):
            finish(job, 0.8, LOSSES["shortgpt"], (1, 10))  # as shortgpt, as far as it has got
    report(tmp_path, jobs)
    found = read_json(tmp_path / "report.json", "report")
    assert len(found["overview"]) == 8
    assert all(row["choices"] == 6 for row in found["correlations"])


def test_a_correlation_of_all_may_fail_among_the_lower_half(tmp_path) -> None:
    jobs = plan(tmp_path, [0])
    losses = dict(zip(PRUNERS, (0.8, 0.1, 0.2, 0.7, 0.3, 0.4, 0.5, 0.6), strict=False))
    fids = dict(zip(PRUNERS, (8.0, 4.0, 3.0, 7.0, 2.0, 1.0, 5.0, 6.0), strict=False))
    for job in jobs:
        if job.recovery == "kd" and job.pruner in losses:
            place = list(losses).index(job.pruner)
            finish(job, fids[job.pruner], losses[job.pruner], (place, 20))
    text = report(tmp_path, jobs)
    rows = read_json(tmp_path / "report.json", "report")["correlations"]
    (every, lower) = [row for row in rows if row["after"] == "fid"]
    assert (every["among"], every["choices"]) == ("all", 8)
    assert every["rho"] == pytest.approx(1 - 6 * 20 / (8 * 63))
    assert (lower["among"], lower["choices"]) == ("lower half", 4)
    assert lower["rho"] == pytest.approx(-1) and "| lower half |" in text


def test_fid_right_after_the_cut_is_held_against_that_after_recovery(tmp_path, jobs) -> None:
    for job in (job for job in jobs if job.done):
        metrics = read_json(job.folder / "metrics.json", "metrics")
        metrics["models"]["pruned"]["fid"] = 10 * FIDS[job.pruner]
        write_json(job.folder / "metrics.json", metrics)
    text = report(tmp_path, jobs)
    found = read_json(tmp_path / "report.json", "report")["correlations"]
    by_fid = [row for row in found if row["before"] == "pruned_fid"]
    assert [row["rho"] for row in by_fid] == [pytest.approx(1), pytest.approx(1)]
    assert len(found) == 4 and "| kd       | FID " in text


def test_runs_that_diverged_or_were_not_scored_are_left_out(tmp_path, jobs) -> None:
    last, uniform = (
        next(job for job in jobs if (job.pruner, job.recovery) == (name, "kd"))
        for name in ("last", "uniform")
    )
    finish(last, float("nan"), 0.9)
    finish(uniform, 1.0, 0.8)
    metrics = read_json(uniform.folder / "metrics.json", "metrics")
    metrics["models"]["recovered"].pop("fid")
    write_json(uniform.folder / "metrics.json", metrics)
    report(tmp_path, jobs)
    found = read_json(tmp_path / "report.json", "report")
    (row, _) = found["correlations"]
    assert row["choices"] == 5 and row["rho"] == pytest.approx(-1)
    names = [row["pruner"] for row in found["overview"]]
    assert "last" in names and "uniform" not in names


def test_no_correlation_of_few_pruners(tmp_path) -> None:
    jobs = plan(tmp_path, [0])
    with pytest.raises(InputError, match="no finished run"):
        report(tmp_path, jobs)
    for job in jobs:
        if job.recovery == "kd" and job.pruner in ("oracle", "first", "random"):
            finish(job, FIDS[job.pruner], LOSSES[job.pruner])
    assert "Not given: fewer than 4 different choices" in report(tmp_path, jobs)
    assert read_json(tmp_path / "report.json", "report")["correlations"] == []


def test_chance_agrees_with_the_usual_formula_where_points_are_many() -> None:
    from scipy.stats import spearmanr

    draws = np.random.default_rng(1)
    x = draws.normal(size=40)
    for strength in (0.0, 0.4):
        y = strength * x + draws.normal(size=40)
        found = spearmanr(x, y)
        assert p_value(x, y, found.statistic) == pytest.approx(found.pvalue, abs=0.02)
    assert p_value(x, x, 1.0) == pytest.approx(1 / 20_001), "the order itself is one of all"


def test_calibration_loss_is_that_of_one_batch_and_kept(tmp_path) -> None:
    net = DiT(8, 2, 1, hidden_size=8, depth=2, num_heads=2, num_classes=10)
    save_model(net, tmp_path / "pruned", {})
    config = {
        "seed": 5,  # which the batch does not depend on
        "process": {"_target_": "tinyfusion.processes.gaussian.GaussianDiffusion"},
        "data": {"_target_": "tinyfusion.data.digits.Digits"},
    }
    write_text(tmp_path / "config.yaml", OmegaConf.to_yaml(config))
    write_json(tmp_path / "metrics.json", {"models": {"recovered": {}}})
    found = calibration_loss(read_run(tmp_path))
    batch = calibration_batch(GaussianDiffusion(), Digits(), CALIBRATION_SAMPLES, 0)
    assert isinstance(batch, HeldOutLoss)
    assert found == pytest.approx(batch(net)["loss"], rel=1e-6)
    assert read_json(tmp_path / "calibration.json", "loss")["num_samples"] == CALIBRATION_SAMPLES
    write_json(tmp_path / "calibration.json", {"loss": 7.0})
    assert calibration_loss(read_run(tmp_path)) == 7.0


def test_table_of_the_random_study(tmp_path) -> None:
    jobs = random_halves.plan(tmp_path, [0, 1], 1000, 128)
    with pytest.raises(InputError):
        random_halves.report(tmp_path, jobs)
    marks = {
        name: {"kept": [0], "loss": 0.5, "percentile": 12.5}
        for name in ("sensitivity", "shortgpt", "flux_lite", "laptop_diff", "oracle", "learned")
    }
    evidence = {
        **{"candidates": 1000, "num_samples": 128, "loss_std": 1.0, "marks": marks},
        **{"loss_min": 0.2, "loss_median": 0.9, "loss_max": 30.0},
        **{"block_evaluations": 6000, "naive_block_evaluations": 14_000},
    }
    decision = Decision((0,), 2, "random", scores=evidence)
    decision.save(tmp_path / "decisions/random_median/decision.json")
    for job in jobs:
        if job.command == "run" and job.pruner in ("random, median loss", "shortgpt"):
            finish(job, 2.0 + job.seed, 0.0)
    text = random_halves.report(tmp_path, jobs)
    rows = {row["strategy"]: row for row in read_json(tmp_path / "report.json", "report")["table"]}
    assert rows["random, median loss"]["loss"] == 0.9 and rows["random, most loss"]["loss"] == 30.0
    assert rows["random, median loss"]["fid"][0] == 2.5 and "fid" not in rows["oracle"]
    assert rows["shortgpt"]["percentile"] == 12.5 and rows["learned 1:2"]["paper_fid"] == 5.73
    assert "1,000 random choices" in text and "Not finished: " in text and "22.28" in text
