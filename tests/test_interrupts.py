"""Being asked to stop, where Python would drop what is raised."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tinyfusion.interrupts import Interrupted, handled


def test_a_signal_within_a_destructor_is_not_lost(capsys) -> None:
    class Asked:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Interrupted, match="SIGUSR1"), handled():
        one = Asked()
        del one
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            pass
    assert capsys.readouterr().err == ""
