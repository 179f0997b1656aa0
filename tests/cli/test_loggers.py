"""Where a command logs: several loggers at once, anyone's own, and those that can't be reached."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from tinyfusion.settings.overview import conf_folder
from tinyfusion.settings.renamed import update_loggers, update_targets
from tinyfusion.tracking.contract import Tracking

SEEN: dict[str, list[str]] = {}


class OwnLogger(Logger):
    """Notes the names of what it is given."""

    def __init__(self, save_dir: str, label: str = "own") -> None:
        super().__init__()
        self.label, self.places = label, SEEN.setdefault(label, [])
        self.places.append(save_dir)

    name, version, experiment = "own", 0, None

    def log_metrics(self, metrics, step=None) -> None:
        self.places += metrics

    def log_hyperparams(self, params, *_) -> None:
        self.places.append(params["command"])


class OwnTracking(Tracking):
    """As one could be written when there was one alone."""

    def __init__(self, label: str = "tracking") -> None:
        self.places = SEEN.setdefault(label, [])

    def scores(self, values) -> None:
        self.places += values


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> str:
    """``--config-dir`` with loggers of one's own, in the module ``own_loggers``."""
    SEEN.clear()
    module = SimpleNamespace(OwnLogger=OwnLogger, OwnTracking=OwnTracking)
    monkeypatch.setitem(sys.modules, "own_loggers", module)
    folder = tmp_path / "conf/logger"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("mine:\n  _target_: own_loggers.OwnLogger\n  label: mine\n")
    (folder / "bare.yaml").write_text("_target_: own_loggers.OwnTracking\nlabel: bare\n")
    (folder / "other.yaml").write_text("_target_: own_loggers.OwnLogger\nlabel: other\n")
    return f"--config-dir={tmp_path / 'conf'}"


def rows(folder: Path) -> int:
    return len((folder / "prune/log/version_0/metrics.csv").read_text().splitlines())


@pytest.fixture
def no_account(monkeypatch, tmp_path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/.netrc"))


def test_several_loggers_at_once(tf, only_run, own) -> None:
    """Two files, one of them in the form of one alone, and one from the command line."""
    result = tf(
        "prune",
        own,
        "logger=[tensorboard,mine,bare]",
        "+logger.typed._target_=own_loggers.OwnLogger",
        "+logger.typed.label=typed",
    )
    assert result.status == 0, result.err
    folder = only_run("prune")
    assert rows(folder) == 2  # which nobody asked for
    assert list((folder / "tensorboard").rglob("events*"))
    for label in ("mine", "typed"):
        assert SEEN[label][:2] == [str(folder), "prune"]
        assert "prune/train/loss" in SEEN[label] and "pruned/depth" in SEEN[label]
    assert "pruned/depth" in SEEN["bare"]


def test_wandb_beside_csv(tf, only_run, no_account, offline_run) -> None:
    result = tf(
        "prune", "logger=[csv,wandb]", "logger.wandb.project=p", "training.mask_learning.steps=1"
    )
    assert result.status == 0, result.err
    assert rows(only_run("prune")) == 2
    assert "no Weights & Biases account found" in result.out
    run = offline_run(only_run("prune"))
    assert run.run.project == "p" and run.run.job_type == "prune" and not run.run.run_group


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["logger=wandb", "logger.wandb.project=a/b"], "logger.wandb: project='a/b': must not"),
        (["logger=wandb", "logger.wandb.mode=banana"], "mode=banana is not known; valid: online"),
        (["logger=[tensorboard,wandb]", "logger.wandb.entity=a/b"], "logger.wandb: entity='a/b'"),
        (["logger=wandb", "logger.project=p"], "logger.project= is logger.wandb.project= now"),
        (["logger=wandb", "+logger.offline=true"], "logger.offline= is logger.wandb.mode= now"),
        (["logger=wandb", "logger.wandb.offline=true"], "is logger.wandb.mode= now"),
        (["logger=[csv,wand]"], "logger=wand is not known; valid: bare, csv, mine,"),
        (["logger=[bare,other]"], "only ownlogger would log"),
        (["+logger.x._target_=collections.OrderedDict"], "OrderedDict is neither a Lightning"),
        (["+logger.x._target_=own_loggers.Absent"], "logger.x._target_='own_loggers.Absent' can't"),
        (["+logger.x._target_=own_loggers.OwnLogger", "+logger.x.lable=a"], "key 'logger.x.lable'"),
        (["+logger.x.project=p"], "logger.x has no _target_"),
        (["+logger.x._target_=lightning.pytorch.loggers.CometLogger"], "logger.x: Requirement '"),
    ],
)
def test_what_can_not_be_logged_to_is_refused_before_training(
    tf, root, own, no_account, monkeypatch, overrides, said
) -> None:
    monkeypatch.setattr("tinyfusion.pipeline.fit.fit", lambda *_, **__: pytest.fail("trained"))
    result = tf("prune", own, *overrides)
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.splitlines()) == 1
    assert not root.exists()


def test_a_key_without_network_is_found_out_before_work(tf, root, no_account, monkeypatch) -> None:
    import wandb

    def init(**_) -> None:
        raise wandb.errors.CommError("Timed out while retrying: no such host\nConsider")

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    for command in ("activations", "pretrain"):
        for name in ("activations.collect", "pretrain.pretraining_phase"):
            monkeypatch.setattr(f"tinyfusion.commands.{name}", lambda *_: pytest.fail("worked"))
        result = tf(command, "logger=wandb")
        assert result.status == 2 and "no such host; without them: logger.wandb.mode" in result.err
        assert not root.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"_target_": "tinyfusion.tracking.Tracking"}, "csv"),
        ({"_target_": "tinyfusion.tracking.TensorBoard"}, "tensorboard"),
        ({"_target_": "tinyfusion.tracking.Wandb", "project": "p", "offline": True}, "wandb"),
        ({"_target_": "tinyfusion.tracking.Wandb", "project": "p", "offline": None}, "wandb"),
    ],
)
def test_configurations_of_former_versions(old, new) -> None:
    cfg = OmegaConf.create({"command": "run", "logger": old})
    update_targets(cfg)
    update_loggers(cfg)
    (name,) = cfg.logger
    assert name == new
    own_file = OmegaConf.load(conf_folder() / f"logger/{new}.yaml")
    assert cfg.logger[name]._target_ == own_file[new]._target_
    if "offline" in old:
        assert cfg.logger.wandb.project == "p" and "offline" not in cfg.logger.wandb
        assert cfg.logger.wandb.mode == ("offline" if old["offline"] else None)


def test_no_logger_at_all_leaves_the_csv_files(tf, only_run) -> None:
    assert tf("prune", "logger=[]", "training.mask_learning.steps=1").status == 0
    assert rows(only_run("prune")) == 2
