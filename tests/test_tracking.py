"""Trackers: config, metrics, figures and samples reach CSV, TensorBoard and W&B."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.tracking.contract import Tracking
from tinyfusion.tracking.keys import goal, metric_key
from tinyfusion.tracking.of_lightning import log_picture
from tinyfusion.tracking.tensorboard import TensorBoard
from tinyfusion.tracking.trackers import Trackers
from tinyfusion.tracking.wandb import INIT_TIMEOUT, Wandb

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

    offline = True

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
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tracking = TensorBoard()
    used(tracking, tmp_path, picture)
    phase = tracking.logger("recover")
    phase.log_metrics({"train/loss": 0.5}, 1)
    phase.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Images("prune/decision")[0].width == 8
    assert events.Scalars("recovered/fid")[0].value == 1.5
    assert "config/text_summary" in events.Tags()["tensors"]
    plugins = events.PluginTagToContent("hparams")
    begun = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"])
    settings = begun.session_start_info.hparams
    assert settings["seed"].number_value == 3 and settings["pruner._target_"].string_value == "x"
    listed = HParamsPluginData.FromString(plugins["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in listed.metric_infos] == ["recovered/fid"]
    curves = EventAccumulator(str(tmp_path / "tensorboard/recover")).Reload()
    assert curves.Scalars("train/loss")[0].value == 0.5


def test_tensorboard_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install tensorboard"):
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
    ("environment", "asked", "mode", "resume"),
    [
        ({"WANDB_API_KEY": "k" * 40}, None, None, "allow"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k" * 40}, None, "offline", None),
        ({"WANDB_MODE": "dryrun"}, None, "offline", None),
        ({"WANDB_MODE": "disabled"}, None, "disabled", "allow"),
        ({"WANDB_API_KEY": "k" * 40}, "offline", "offline", None),
        ({"WANDB_MODE": "offline"}, "online", "online", "allow"),
    ],
)
def test_wandb_mode(
    tmp_path, no_account, recorder, monkeypatch, environment, asked, mode, resume
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Wandb(mode=asked).start(tmp_path, "name", CONFIG)
    assert recorder.arguments["mode"] == mode and recorder.arguments["resume"] == resume


def test_a_resumed_job_is_the_same_wandb_run(tmp_path, no_account, recorder) -> None:
    identities = []
    for folder in ("a", "a", "b"):
        Wandb().start(tmp_path / folder, "name", CONFIG)
        identities.append(recorder.arguments["id"])
    assert identities[0] == identities[1] != identities[2]


def test_wandb_writes_offline(tmp_path: Path, picture: Path, no_account, offline_run) -> None:
    """The real library, without account and network, read back from its file."""
    tracking = Trackers({"wandb": Wandb(group="g", job_type="run", tags=["a", "b"], notes="why")})
    tracking.start(tmp_path, "name", CONFIG)
    for phase in ("prune", "recover/first"):
        logger = tracking.loggers(phase)[-1]
        for step, loss in ((1, 0.25), (2, 0.5)):
            logger.log_metrics(
                {"train/loss": loss, "train/learning_rate": 1.0, "evaluate/precision": loss}, step
            )
    tracking.image("prune/decision", picture)
    log_picture(logger, "samples", picture, 2)
    tracking.scores({"recovered (live weights)/fid": 1.5})
    tracking.finish()
    run = offline_run(tmp_path)
    assert (run.run.run_group, run.run.job_type, run.run.notes) == ("g", "run", "why")
    assert list(run.run.tags) == ["a", "b"] and run.run.display_name == "name"
    assert run.config["seed"] == 3 and run.config["pruner"] == {"_target_": "x"}
    assert run.summary["recovered_live/fid"] == 1.5
    for phase in ("prune", "recover/first"):
        axis = f"{phase}/step"
        assert run.metrics[axis].options.hidden
        loss, rate = run.metrics[f"{phase}/train/loss"], run.metrics[f"{phase}/train/learning_rate"]
        assert loss.step_metric == rate.step_metric == axis
        assert loss.summary.min and not loss.summary.last and rate.summary.last
        assert run.metrics[f"{phase}/evaluate/precision"].summary.max
        rows = [row for row in run.history if f"{phase}/train/loss" in row]
        assert [row[axis] for row in rows] == [1, 2]
        assert run.summary[f"{phase}/train/loss"] == {"min": 0.25}
    keys = {key for row in run.history for key in row}
    assert {"prune/decision.path", "recover/first/samples.filenames"} <= keys
    assert not [key for key in keys if set(key) & set(" ()")] and "trainer/global_step" not in keys
    assert not run.artifacts  # nothing was taken or made
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/prune/*.png"))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("recovered/fid", "recovered/fid"),
        ("recovered (live weights)/fid", "recovered_live/fid"),
        ("recovered (best in training)/fid", "recovered_best/fid"),
        ("round 1/depth", "round_1/depth"),
    ],
)
def test_keys_can_be_queried(name: str, key: str) -> None:
    assert metric_key(name) == key


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("recover/train/loss", "min"),
        ("recover/train/kd_mse", "min"),
        ("recover/held_out/loss_live", "min"),
        ("recover/evaluate/fid", "min"),
        ("recover/evaluate/held_out_loss", "min"),
        ("recover/evaluate/inception_score", "max"),
        ("prune/train/images_per_s", "max"),
        ("prune/train/grad_norm", "last"),
        ("prune/gates/temperature", "last"),
    ],
)
def test_which_value_of_a_curve_is_its_summary(name: str, which: str) -> None:
    assert goal(name) == which


def test_what_wandb_refuses_at_the_end_is_no_failure(tmp_path, no_account, recorder, caplog):
    logging.getLogger("tinyfusion").propagate = True
    tracking = Wandb()
    tracking.start(tmp_path, "name", CONFIG | {"checkpoint": str(tmp_path / "gone")})
    tracking.finish()
    assert "W&B: artifacts are not logged: checkpoint" in caplog.text and recorder.run.ended


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ({"project": "a/b"}, {}, "project='a/b': must not be empty or hold any of"),
        ({"project": ""}, {}, "project=''"),
        ({"project": "p:q"}, {}, "project='p:q'"),
        ({"project": "x" * 129}, {}, "exceeded 128 characters"),
        ({"entity": "my team"}, {}, "entity='my team'"),
        ({"mode": "banana"}, {}, "mode=banana is not known; valid: online, offline, disabled"),
        ({}, {"WANDB_MODE": "offlin"}, "WANDB_MODE=offlin is not known"),
        ({}, {"WANDB_API_KEY": "abc"}, "does not take the account: WANDB_API_KEY invalid"),
        ({"mode": "online"}, {"WANDB_API_KEY": "a b" * 14}, "WANDB_API_KEY invalid"),
    ],
)
def test_what_wandb_does_not_take_is_refused_and_nothing_is_left(
    tmp_path, no_account, monkeypatch, arguments, environment, said
) -> None:
    """By the real library, without network."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError) as refused:
        Trackers({"wandb": Wandb(**arguments), "mine": Tracking()}).start(
            tmp_path / "run", "name", CONFIG
        )
    assert str(refused.value).startswith("logger.wandb: ") and said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    "message", ["Timed out while retrying: no such host\nConsider more", "permission denied"]
)
def test_no_network_or_an_entity_that_is_not_there(
    tmp_path, no_account, monkeypatch, message
) -> None:
    import wandb

    found = {}

    def init(settings, dir: str, **_) -> None:
        found["timeout"] = settings.init_timeout
        (Path(dir) / "wandb").mkdir()
        raise wandb.errors.CommError(message)

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError) as refused:
        Trackers({"board": TensorBoard(), "wandb": Wandb()}).start(tmp_path / "run", "name", CONFIG)
    assert message.splitlines()[0] in str(refused.value)
    assert "logger.wandb.mode=offline or WANDB_MODE=offline" in str(refused.value)
    assert found["timeout"] == INIT_TIMEOUT <= 30
    assert not list((tmp_path / "run").iterdir())  # what TensorBoard began is gone as well


def test_a_job_that_another_logger_refuses_has_taken_and_made_nothing(
    tmp_path, no_account, recorder, monkeypatch
) -> None:
    monkeypatch.setattr(Wandb, "_conclude", lambda *_: pytest.fail("logged artifacts"))
    monkeypatch.setattr(TensorBoard, "start", lambda *_: 1 / 0)
    with pytest.raises(InputError, match=r"logger\.board: division by zero"):
        Trackers({"wandb": Wandb(), "board": TensorBoard()}).start(tmp_path, "name", CONFIG)
    assert recorder.run.ended


class _Own(Logger):
    """A logger of a user's, which takes pictures if it has a method for them."""

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__()
        self.rows, self.ended, self.config, self.saved_in = [], "", {}, save_dir

    name, version, experiment = "own", 0, None

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((dict(metrics), step))

    def log_hyperparams(self, params, *_) -> None:
        self.config = params

    def finalize(self, status: str) -> None:
        self.ended = status


class _OwnOfPictures(_Own):
    def log_image(self, key: str, images: list, step: int | None = None) -> None:
        self.rows.append(({key: Path(images[0]).name}, step))


class _MLflow(_Own):
    """As Lightning's ``MLFlowLogger`` is, as far as pictures go."""

    run_id = "r"

    @property
    def experiment(self) -> SimpleNamespace:
        return SimpleNamespace(
            log_artifact=lambda run, path, folder: self.rows.append(((run, folder), None))
        )


def test_several_loggers_take_all_and_csv_is_always_there(tmp_path: Path, picture: Path) -> None:
    own, pictures, flow = _Own(), _OwnOfPictures(), _MLflow()
    tracking = Trackers({"a": own, "b": pictures, "c": flow, "board": TensorBoard()})
    tracking.start(tmp_path, "name", CONFIG)
    loggers = tracking.loggers("recover")
    for logger in loggers:
        logger.log_metrics({"loss": 0.5}, 3)
        log_picture(logger, "samples", picture, 3)
        logger.finalize("success")
    tracking.image("decision", picture)
    assert not own.ended  # a phase is not the job
    tracking.scores({"recovered/fid": 1.5, "recovered/name": "text"})
    tracking.finish()
    assert own.rows == [({"recover/loss": 0.5}, 3), ({"recovered/fid": 1.5}, None)]
    assert ({"recover/samples": "picture.png"}, 3) in pictures.rows
    assert ({"decision": "picture.png"}, None) in pictures.rows
    assert (("r", "recover/samples/3"), None) in flow.rows
    assert (("r", "decision"), None) in flow.rows
    assert own.config == CONFIG and own.ended == "success"
    assert (tmp_path / "recover/log/version_0/metrics.csv").read_text().splitlines()[1] == "0.5,3"
    assert list((tmp_path / "tensorboard/recover").iterdir())


def test_a_picture_is_logged_once_until_it_changes(tmp_path: Path, picture: Path) -> None:
    """Phases log the figures of their folder, and so does the command at its end."""
    pictures = _OwnOfPictures()
    tracking = Trackers({"mine": pictures})
    tracking.start(tmp_path, "name", CONFIG)
    for _ in range(2):
        tracking.image("prune/decision", picture)
    tracking.image("samples", picture)
    assert [list(row) for row, _ in pictures.rows] == [["prune/decision"], ["samples"]]
    Image.new("RGB", (8, 4), (0, 255, 0)).save(picture)
    tracking.image("prune/decision", picture)
    assert len(pictures.rows) == 3


def test_what_is_no_logger() -> None:
    with pytest.raises(InputError, match=r"logger\.mine: a dict is neither"):
        Trackers({"mine": {}})
