"""The global batch is kept on any number of devices, or refused at the start."""

from __future__ import annotations

import pytest

from tinyfusion.errors import InputError
from tinyfusion.pipeline.batching import Split, split_batch
from tinyfusion.training.settings import TrainerSettings


@pytest.mark.parametrize(
    ("global_batch", "devices", "micro_batch", "wanted"),
    [
        (256, 1, None, (1, 1, 256)),
        (256, 8, None, (8, 1, 32)),
        (256, 1, 32, (1, 8, 32)),
        (256, 8, 48, (8, 1, 32)),
        (256, 2, 50, (2, 4, 32)),  # 128 = 3 x 42.7 won't do, 4 x 32 does
        (96, 1, 50, (1, 2, 48)),
        (7, 1, 4, (1, 7, 1)),
    ],
)
def test_fewest_even_micro_batches(global_batch, devices, micro_batch, wanted) -> None:
    split = split_batch("key", global_batch, devices, micro_batch)
    assert split == Split(*wanted)
    assert split.devices * split.micro_batches * split.images == global_batch
    # No smaller number of micro-batches would do.
    for fewer in range(1, split.micro_batches):
        share, rest = divmod(global_batch, devices * fewer)
        assert rest or (micro_batch is not None and share > micro_batch)


def test_devices_that_cannot_share_are_refused_with_what_would_do() -> None:
    with pytest.raises(InputError) as caught:
        split_batch("training.recovery.batch_size", 256, 6, 32)
    for part in ("training.recovery.batch_size=256", "6 devices", "4 device(s)"):
        assert part in str(caught.value)
    assert "252 or 258" in str(caught.value)


def test_split_reads_as_a_product() -> None:
    assert str(Split(2, 4, 32)) == "2 device(s) x 4 micro-batch(es) x 32 image(s)"


@pytest.mark.parametrize("changes", [{"micro_batch": 0}, {"devices": 0}, {"num_nodes": 0}])
def test_trainer_settings_out_of_range(changes: dict[str, int]) -> None:
    (name,) = changes
    with pytest.raises(InputError, match=f"trainer.{name}="):
        TrainerSettings(**changes)
    assert TrainerSettings(devices=-1).devices == -1
