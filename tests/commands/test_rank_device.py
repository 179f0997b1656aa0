"""Which device a rank computes on."""

from __future__ import annotations

import torch

from tinyfusion.pipeline.machine import scoring_device


def test_each_rank_has_its_own_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    class Settings:
        accelerator = "gpu"

    def device() -> torch.device:
        return scoring_device(Settings)

    assert device() == torch.device("cuda")
    for local, expected in ((0, 0), (1, 1), (3, 1)):
        for name, value in {"RANK": local, "LOCAL_RANK": local, "WORLD_SIZE": 4}.items():
            monkeypatch.setenv(name, str(value))
        assert device() == torch.device("cuda", expected)
