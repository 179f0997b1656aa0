from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures.curves import _running_mean, loss_curves


@pytest.mark.parametrize("log_scale", [False, True])
def test_curves_of_any_kind_are_drawn(tmp_path, log_scale):
    steps = np.arange(300)
    metrics = {f"run {i}": (steps, np.exp(-steps / (50 + 10 * i))) for i in range(9)}
    metrics["held-out"] = ([0, 100, 200], [1.0, float("nan"), 0.4])
    metrics["non-positive"] = (steps[:30], -np.ones(30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = loss_curves(metrics, tmp_path / "c.png", "Recovery", log_scale=log_scale)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (1040, 600)
        colours = {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert (0, 114, 178) in colours and (213, 94, 0) in colours


def test_running_mean_leaves_gaps_alone():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    np.testing.assert_allclose(_running_mean(values, 1), [1.0, np.nan, 4.0, 4.0])


def test_bad_metrics_are_refused(tmp_path):
    with pytest.raises(InputError, match="no metric"):
        loss_curves({}, tmp_path / "c.png")
    with pytest.raises(InputError, match="loss has 2 steps and 1 values"):
        loss_curves({"loss": ([0, 1], [0.5])}, tmp_path / "c.png")
