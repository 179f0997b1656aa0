"""Batches as they come: what is not used of them is counted."""

from __future__ import annotations

import pytest
import torch

from tinyfusion.data.stream import BatchStream, _MicroBatches
from tinyfusion.notices import captured


@pytest.mark.parametrize("rank", [0, 1])
def test_samples_that_no_device_gets_and_bad_ones_are_counted(rank: int) -> None:
    images = torch.zeros(7, 1, 4, 4)
    images[2] = torch.nan
    stream = BatchStream([(images, torch.zeros(7, dtype=torch.int64))])
    with captured() as events:
        parts = list(_MicroBatches(stream, range(2), 1, rank, 2))
    assert [len(part.images) for part in parts] == [3, 3]
    found = [(event.kind[:24], event.number) for event in events]
    both = [("sample(s) not used, as e", 1), ("sample(s) with values th", 1)]
    assert found == ([] if rank else 2 * both)  # all ranks see the same
