"""Trackers: config, metrics, figures and samples reach CSV, TensorBoard and W&B."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.tracking import TensorBoard, Tracking, Wandb

CONFIG = {"seed": 3, "pruner": {"_target_": "x"}}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 4), (255, 0, 0)).save(path)
    return path


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/.netrc"))


class _Recorder:
    """Stands in for a W&B run."""

    def __init__(self) -> None:
        self.logged, self.summary, self.ended = [], {}, False

    def log(self, values, **_) -> None:
        self.logged.append(values)

    def define_metric(self, *_, **__) -> None:
        pass

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    import wandb

    found = SimpleNamespace(run=_Recorder(), arguments={})

    def init(**arguments):
        found.arguments = arguments
        return found.run

    monkeypatch.setattr(wandb, "init", init)
    return found


def used(tracking: Tracking, folder: Path, picture: Path) -> None:
    tracking.start(folder, "name", CONFIG)
    tracking.image("prune/decision", picture)
    tracking.scores({"recovered/fid": 1.5})
    tracking.finish()


def test_csv_keeps_every_row(tmp_path: Path, picture: Path) -> None:
    tracking = Tracking()
    tracking.start(tmp_path, "name", CONFIG)
    logger = tracking.logger("recover")
    for step in range(3):
        logger.log_metrics({"loss": step}, step)
    # Nothing was finalised: a killed run ends here.
    rows = (tmp_path / "recover/log/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    used(tracking, tmp_path, picture)


def test_tensorboard(tmp_path: Path, picture: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = TensorBoard()
    used(tracking, tmp_path, picture)
    phase = tracking.logger("recover")
    phase.log_metrics({"train/loss": 0.5}, 1)
    phase.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Images("prune/decision")[0].width == 8
    assert events.Scalars("recovered/fid")[0].value == 1.5
    assert "config/text_summary" in events.Tags()["tensors"]
    curves = EventAccumulator(str(tmp_path / "tensorboard/recover")).Reload()
    assert curves.Scalars("train/loss")[0].value == 0.5


def test_tensorboard_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'tinyfusion\[tensorboard\]'"):
        TensorBoard().start(tmp_path, "name", CONFIG)


def test_wandb_without_an_account_is_offline_and_says_so(
    tmp_path: Path, picture: Path, no_account, recorder, caplog
) -> None:
    logging.getLogger("tinyfusion").propagate = True
    with caplog.at_level(logging.INFO, "tinyfusion"):
        used(Wandb(), tmp_path, picture)
    assert "no Weights & Biases account found" in caplog.text
    assert recorder.arguments["mode"] == "offline" and recorder.arguments["config"] == CONFIG
    assert recorder.run.summary == {"recovered/fid": 1.5} and recorder.run.ended
    assert list(recorder.run.logged[0]) == ["prune/decision"]


@pytest.mark.parametrize(
    ("environment", "offline", "mode", "resume"),
    [
        ({"WANDB_API_KEY": "k" * 40}, None, None, "allow"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k" * 40}, None, "offline", None),
        ({"WANDB_MODE": "disabled"}, None, None, "allow"),
        ({"WANDB_API_KEY": "k" * 40}, True, "offline", None),
    ],
)
def test_wandb_mode(
    tmp_path, no_account, recorder, monkeypatch, environment, offline, mode, resume
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Wandb(offline=offline).start(tmp_path, "name", CONFIG)
    assert recorder.arguments["mode"] == mode and recorder.arguments["resume"] == resume


def test_a_resumed_job_is_the_same_wandb_run(tmp_path, no_account, recorder) -> None:
    identities = []
    for folder in ("a", "a", "b"):
        Wandb().start(tmp_path / folder, "name", CONFIG)
        identities.append(recorder.arguments["id"])
    assert identities[0] == identities[1] != identities[2]


def test_wandb_writes_offline(tmp_path: Path, picture: Path, no_account) -> None:
    """The real library, without account and network."""
    import wandb

    tracking = Wandb()
    tracking.start(tmp_path, "name", CONFIG)
    tracking.logger("recover").log_metrics({"train/loss": 0.25}, 1)
    tracking.image("prune/decision", picture)
    tracking.scores({"recovered/fid": 1.5})
    tracking.finish()
    wandb.teardown()  # ends the writing process, which may lag behind
    (data,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = data.read_bytes()
    for text in (b"recover/train/loss", b"prune/decision", b"recovered/fid", b"pruner"):
        assert text in content
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/prune/*.png"))
