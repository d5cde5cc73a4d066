"""Whole runs go through faults of Redis without a single restart, say what they wait for, and end sound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from replay_service.connection import connect
from replay_service.redis_server import EmbeddedRedis, find_server
from tests.faults import full_disk, no_memory, paused, small_disk
from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, assert_sound

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

FAULT_S = 14.0
"""Longer than the ten seconds within which each role must say what it waits for."""


class OwnRedis:
    """A Redis on a small disk of its own, named to the run with --redis-url."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.running = EmbeddedRedis.start(disk / "redis", server=find_server(), max_memory_mb=256)
        self.admin: Any = connect(self.running.endpoint)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnRedis]:
    with small_disk(tmp_path / "disk") as disk:
        begun = OwnRedis(disk)
        yield begun
        begun.admin.close()
        begun.running.process.kill()
        begun.running.process.wait()


FAULTS: dict[str, tuple[Callable[[OwnRedis], AbstractContextManager[None]], str]] = {
    "no memory": (lambda own: no_memory(own.admin), "waits for Redis to have memory again"),
    "full disk": (lambda own: full_disk(own.admin, own.disk), "waits for Redis to write its file again"),
    "paused": (lambda own: paused(own.running.process.pid), "waits for Redis to reply"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_waits_a_fault_out_and_ends_sound(name: str, own: OwnRedis, start: Start) -> None:
    fault, words = FAULTS[name]
    password = {"AWAC_REDIS_PASSWORD": own.running.endpoint.password}
    options = ("--num-env-steps", "4000", "--utd-ratio", "0.5", "--redis-url", own.running.endpoint.url)
    run = start(*SMALL_PEN, *options, environment=password)
    run.wait_until(lambda state: state.env_steps > 0)
    with fault(own):
        time.sleep(FAULT_S)
        assert run.process.poll() is None, run.output + run.logs()
    assert run.wait() == 0, run.output + run.logs()
    summary = run.summary()
    assert summary["env_steps"] == 4000
    assert summary["unaccounted_steps"] == 0
    assert summary["actor_restarts"] == summary["learner_restarts"] == 0
    for role in ("learner", "actor-0", "actor-1", "evaluator", "replay"):
        log = (run.run_dir / "logs" / f"{role}.log").read_text()
        assert "Traceback" not in log, log
    for role in ("learner", "actor-0", "actor-1"):
        assert words in (run.run_dir / "logs" / f"{role}.log").read_text(), role
    assert_sound(run.run_dir)
