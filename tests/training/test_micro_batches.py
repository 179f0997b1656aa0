"""A run may be resumed with other micro-batches, as on another number of devices."""

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
