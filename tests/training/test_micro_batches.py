"""Micro-batches change nothing: not what is logged, nor a run resumed with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tinyfusion.recovery.objective import Objective
from tinyfusion.training.recovery import Recovery


class Stop(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Stop


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2), (2, 8), (8, 1)])
def test_resuming_with_other_micro_batches(
    run, make_net, shared, tmp_path, before: int, after: int
) -> None:
    def build() -> Recovery:
        # Not Adam, which makes much of the rounding of gradients near zero.
        plain = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)}
        return Recovery(make_net(2), None, Objective(), [], 0.9, **shared(6, **plain))

    whole, cut, resumed = build(), build(), build()
    run(whole, folder=tmp_path / "whole")
    folder = tmp_path / "cut"
    with pytest.raises(Stop):
        # Step 3 is saved; of step 4 nothing is.
        run(cut, accumulate=before, folder=folder, resume_every=3, callbacks=[StopAt(4)])
    run(resumed, accumulate=after, folder=folder, resume_every=3)
    assert resumed.ema.num_updates == whole.ema.num_updates == 6
    for name, value in whole.student.state_dict().items():
        torch.testing.assert_close(resumed.student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


class LoggedLosses(Callback):
    """Losses by step; a step's is logged after the callbacks were called at its end."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step:
            self.by_step[trainer.global_step] = float(trainer.callback_metrics["train/loss"])

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self.by_step[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("accumulate", [2, 8])
def test_logged_losses_are_means_over_all_micro_batches(
    run, make_net, shared, tmp_path, accumulate: int
) -> None:
    logged = {}
    for micro in (1, accumulate):
        module = Recovery(make_net(2), None, Objective(), [], 0.9, **shared(4))
        watch = LoggedLosses()
        run(module, accumulate=micro, folder=tmp_path / str(micro), callbacks=[watch], log_every=1)
        logged[micro] = watch.by_step
    assert list(logged[1]) == [1, 2, 3, 4] and len(set(logged[1].values())) == 4
    assert logged[accumulate] == pytest.approx(logged[1], rel=1e-4)
