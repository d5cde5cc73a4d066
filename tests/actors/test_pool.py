"""The end of a pool, with real forks. How it replaces actors: `test_actor.py`."""

from __future__ import annotations

import multiprocessing
import signal
import time
from typing import Any

import pytest

from actors import pool
from actors.pool import ActorPool
from replay_service.process import RestartBudget

FORK = multiprocessing.get_context("fork")


def test_an_actor_that_does_not_end_when_asked_is_killed_after_the_grace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool, "_STOP_GRACE_S", 0.3)
    stop: Any = FORK.Event()  # looks like a StopSignal, and can be set by the actor
    outlived = FORK.Value("i", 0)

    def deaf(_actor_id: int, _replaces_crashed: bool) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.set()
        time.sleep(20.0)
        outlived.value = 1

    assert ActorPool(deaf, [7], budget=RestartBudget(limit=0, window_s=1.0), stop=stop).run() == 0
    assert outlived.value == 0
    assert multiprocessing.active_children() == []
    assert [record.getMessage() for record in caplog.records] == ["actor-7 did not end in 0 s and is killed"]
