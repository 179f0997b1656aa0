"""The figures of ADM's evaluator, from its own features: recorded with the official code."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.metrics.fidelity import (
    Reference,
    Statistics,
    frechet_distance,
    inception_score,
    precision_recall,
    real_halves_fid,
    score,
)

TOLERANCE = {"rel": 1e-5, "abs": 1e-6}


@pytest.fixture(scope="module")
def adm(golden):
    return golden("adm_metrics")


def recorded(adm, name: str) -> float:
    return adm[f"f64.{name}"].item()


def distance(adm, which: str, features: str) -> float:
    fake, real = (Statistics.of(adm[f"{which}.{side}.{features}"]) for side in ("fake", "real"))
    return frechet_distance(fake, real)


@pytest.mark.parametrize("which", ["A", "B", "C", "D"])
def test_fid(adm, which: str) -> None:
    # C: features of size 1e2; D: fewer samples than features, so that both roots are singular.
    expected = recorded(adm, f"{which}.fid")
    assert distance(adm, which, "pool") == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("which", ["A", "B"])
def test_sfid(adm, which: str) -> None:
    expected = recorded(adm, f"{which}.sfid")
    assert distance(adm, which, "spatial") == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("which", ["A", "B"])
def test_inception_score(adm, which: str) -> None:
    # Log-probabilities are logits whose softmax changes nothing.
    fake, real = (adm[f"{which}.{side}.softmax"].double().log() for side in ("fake", "real"))
    assert inception_score(fake) == pytest.approx(recorded(adm, f"{which}.is_fake"), **TOLERANCE)
    assert inception_score(real) == pytest.approx(recorded(adm, f"{which}.is_real"), **TOLERANCE)
    parts = recorded(adm, f"{which}.is_fake_split100")
    assert inception_score(fake, 100) == pytest.approx(parts, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("which", "suffix"), [("A", "_float32"), ("B", "_float32"), ("C", "")])
def test_precision_and_recall(adm, which: str, suffix: str, dtype: torch.dtype) -> None:
    fake, real = (adm[f"{which}.{side}.pool"].to(dtype) for side in ("fake", "real"))
    precision, recall = precision_recall(fake, real)
    # Exact: the same number of images lies inside.
    expected = recorded(adm, f"{which}.precision{suffix}"), recorded(adm, f"{which}.recall{suffix}")
    assert round(precision * len(fake)) == round(expected[0] * len(fake))
    assert precision == pytest.approx(expected[0], abs=1e-6)
    assert round(recall * len(real)) == round(expected[1] * len(real))


def test_statistics(adm) -> None:
    found = Statistics.of(adm["A.real.pool"])
    torch.testing.assert_close(torch.from_numpy(found.mu), adm["f64.A.mu_real"], rtol=1e-6, atol=0)
    diagonal = torch.from_numpy(found.sigma).diagonal()
    torch.testing.assert_close(diagonal, adm["f64.A.sigma_real_diag"], rtol=1e-6, atol=0)
    assert found.mu.dtype == found.sigma.dtype == "float64"


def test_all_figures_in_one_row(adm) -> None:
    """As `score` puts them together, with an extractor's layers named as the digits' are."""

    def features(side: str) -> dict[str, torch.Tensor]:
        return {
            "features": adm[f"B.{side}.pool"],
            "logits": adm[f"B.{side}.softmax"].double().log(),
            "spatial": adm[f"B.{side}.spatial"],
        }

    known = Reference.of(features("real"), "tinyfusion-digits")
    row = score(features("fake"), known, "tinyfusion-digits")
    assert row == pytest.approx(
        {
            "fid": recorded(adm, "B.fid"),
            "sfid": recorded(adm, "B.sfid"),
            "inception_score": recorded(adm, "B.is_fake"),
            "precision": recorded(adm, "B.precision_float32"),
            "recall": recorded(adm, "B.recall_float32"),
        },
        **TOLERANCE,
    )
    alone = score(features("fake"), Reference(known.statistics, {}), "tinyfusion-digits")
    assert alone == {key: row[key] for key in ("fid", "sfid", "inception_score")}


def test_real_halves(adm) -> None:
    floor = real_halves_fid(adm["A.real.pool"], seed=0)
    assert 0 < floor < distance(adm, "B", "pool")
