"""Drawing into a folder together: failures, waiting, what is shown."""

from __future__ import annotations

import errno
import threading

import pytest
import torch

from tinyfusion.backbones.dit import DiT
from tinyfusion.commands import draw
from tinyfusion.commands.draw import Share
from tinyfusion.commands.setup import Setup
from tinyfusion.conditioning import ClassLabels
from tinyfusion.data.sample_store import SampleStore
from tinyfusion.errors import InputError
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.runtime.progress import ImageProgress
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.generate import Drawing

N = 12


class Shown(ImageProgress):
    """Remembers how far it was told to be."""

    def __init__(self):
        super().__init__("sample", N)
        self.seen: list[float] = []

    def reach(self, done: float) -> None:
        self.seen.append(done)


@pytest.fixture
def share(tmp_path):
    def make(progress=None):
        torch.manual_seed(0)
        net = DiT(8, 2, 1, hidden_size=16, depth=1, num_heads=2, num_classes=10).eval()
        labels = ClassLabels(torch.arange(N) % 10)
        drawing = Drawing(net, GaussianDiffusion(), DDIMSampler(4), labels, seed=0, batch_size=4)
        store = SampleStore(tmp_path / "samples", N, drawing.shape, 4, 4, "png")
        return Share(store, drawing, set(store.missing()), progress)

    return make


def test_progress_counts_parts_of_images(share) -> None:
    shown = Shown()
    one = share(shown)
    one.fill_all(range(3))
    one.wait()
    # Four steps for each of three batches of four images, and what is there after each.
    assert shown.seen == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 11, 11, 12]


def test_the_first_rank_waits_for_what_others_draw(share) -> None:
    first, other = share(Shown()), share()
    first.fill_all([0])
    thread = threading.Thread(target=other.fill_all, args=([1, 2],))
    thread.start()
    first.wait()
    thread.join()
    assert first.store.missing() == [] and first.progress.seen[-1] == N


def test_a_rank_that_fails_is_not_waited_for(share, monkeypatch) -> None:
    first, other = share(Shown()), share()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(other.store, "fill", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        other.fill_all([1])
    with pytest.raises(RuntimeError, match="rank 3 has failed; what is there is kept"):
        first.wait()
    # When it goes on, it is no longer one that has failed.
    share().fill_all([1])
    assert not list(first.store.root.glob(".failed*"))


def test_ranks_that_write_nothing_are_not_waited_for_for_ever(share, monkeypatch) -> None:
    monkeypatch.setattr(draw, "PATIENCE", -1.0)
    with pytest.raises(RuntimeError, match="the other ranks have written nothing"):
        share(Shown()).wait()


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "can't be written: No space left"),
        (torch.OutOfMemoryError("too much"), "batch_size=4 needs more memory than the device"),
    ],
)
def test_what_a_user_can_mend_is_one_line(share, monkeypatch, failure, message) -> None:
    one = share()

    def fail(*_):
        raise failure

    monkeypatch.setattr(one.store, "fill", fail)
    with pytest.raises(InputError, match=message):
        one.fill_all([0])


def test_each_rank_has_its_own_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    class Settings:
        accelerator = "gpu"

    def device() -> torch.device:
        setup = object.__new__(Setup)
        setup.trainer = Settings
        return setup.device

    assert device() == torch.device("cuda")
    for local, expected in ((0, 0), (1, 1), (3, 1)):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        assert device() == torch.device("cuda", expected)
