"""Tiny models and a way to run commands in this process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import save_model
from tinyfusion.cli import main
from tinyfusion.figures.canvas import FORMS, save_figure
from tinyfusion.runtime import report

SAMPLING = ("sampler=ddpm_20", "sampler.steps=2")
TRAINING = tuple(
    f"training.{phase}.{key}"
    for phase in ("mask_learning", "recovery")
    for key in ("steps=4", "batch_size=8")
)
SCORING = (
    "evaluation.num_samples=20",
    "evaluation.reference_samples=200",
    "evaluation.speed_samples=4",
    "evaluation.speed_repeats=1",
    "evaluation.held_out_repeats=1",
)
TWO = (
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.precision=32-true",
    "trainer.num_workers=0",
)
"""Overrides for two devices, beside a strategy such as ``trainer=ddp``."""

SMALL = {
    "pretrain": (
        *SAMPLING,
        *SCORING,
        "training.pretrain.steps=4",
        "training.pretrain.batch_size=8",
    ),
    "prune": (*SAMPLING, *TRAINING),
    "recover": (*SAMPLING, *TRAINING),
    "sample": SAMPLING,
    "evaluate": (*SAMPLING, *SCORING),
    "activations": ("samples=16", "batch_size=8"),
    "benchmark": (*SAMPLING, "batch_size=2", "rounds=1"),
    "run": (*SAMPLING, *TRAINING, *SCORING),
}
"""Overrides that make each command take about a second."""


def tiny_model(folder: Path, depth: int = 4, width: int = 16, seed: int = 0) -> Path:
    """A model folder with random weights, none of them zero."""
    net = DiT(8, 2, 1, hidden_size=width, depth=depth, num_heads=2, num_classes=10)
    draws = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    save_model(net, folder, {})
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """See `tiny_model`."""
    return tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of four blocks of width 16."""
    return tiny_model(tmp_path_factory.mktemp("models") / "four")


class Result(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where run folders go; does not exist yet."""
    return tmp_path / "outputs"


@pytest.fixture
def tf(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a small command on the tiny model: ``tf("run", "scheme=2:4")``."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)

    def run(command: str, *overrides: str, small: bool = True, exact: bool = False) -> Result:
        extra = [f"output_root={root}", "trainer.threads=1", *(SMALL[command] if small else ())]
        if command != "pretrain" and not any(o.startswith("checkpoint=") for o in overrides):
            extra.append(f"checkpoint={model}")
        capsys.readouterr()
        status = main([command, *overrides] if exact else [command, *extra, *overrides])
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run


@pytest.fixture
def only_run(root: Path) -> Callable[[str], Path]:
    """The folder of the only run of a command."""

    def find(command: str) -> Path:
        (folder,) = (root / command).iterdir()
        return folder

    return find


KILL_PATIENCE = 60.0
"""Seconds after which a command that was to be killed counts as stuck."""


@pytest.fixture
def killed_when() -> Callable[[Callable[[], bool], list[str]], None]:
    """Start a command line in its own process and kill it as soon as a condition holds."""

    def work(arguments: list[str]) -> None:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
        os._exit(main(arguments))

    def run(reached: Callable[[], bool], arguments: list[str]) -> None:
        # Forked, it shares what has been imported, but can't use more of torch's threads than one.
        torch.set_num_threads(1)
        process = multiprocessing.get_context("fork").Process(target=work, args=(arguments,))
        process.start()
        deadline = time.monotonic() + KILL_PATIENCE
        try:
            while not reached():
                assert time.monotonic() < deadline, "the command did not get there"
                time.sleep(0.002)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL

    return run


@pytest.fixture(scope="session")
def assert_same_files() -> Callable[..., None]:
    """Compare files of two folders by their bytes."""

    def check(first: Path, second: Path, *names: str) -> None:
        for name in names:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name

    return check


@pytest.fixture(autouse=True)
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw with few pixels; tests/figures looks at figures as they are."""
    monkeypatch.setattr(save_figure, "__defaults__", (40, FORMS))


@pytest.fixture(autouse=True)
def ranks_leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for other ranks to find out that an error has been reported.

    Nor take a test that runs at the same time for one of them.
    """
    monkeypatch.setattr(report, "HOLD", 0.0)
    monkeypatch.setattr(report, "_IDENTITY", (*report._IDENTITY, "PYTEST_CURRENT_TEST"))


@pytest.fixture(autouse=True)
def own_rank() -> Iterator[None]:
    """Let no test that poses as a further rank silence Lightning's loggers in later ones."""
    from lightning_utilities.core.rank_zero import rank_zero_only

    before = getattr(rank_zero_only, "rank", 0)
    yield
    rank_zero_only.rank = before or 0
