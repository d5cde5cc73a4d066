"""The launcher and a real Redis that is busy, damaged, emptied or gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from launcher.redis_link import RedisLink
from replay_service.config import RunConfig
from replay_service.connection import connect
from replay_service.errors import DamagedState, RunDirectoryError
from replay_service.keys import Keys
from replay_service.process_identity import ProcessIdentity
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.run_state import RunStateStore
from tests.damaging_client import connect_damaging
from tests.faults import no_memory

_DEADLINE_S = 120.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, which it may ill-treat."""
    running = EmbeddedRedis.start(tmp_path / "redis", server=find_server(), max_memory_mb=64)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def store(server: EmbeddedRedis, run_config: RunConfig) -> RunStateStore:
    """The state of the run in it, just initialised."""
    made = RunStateStore(connect(server.endpoint), Keys(run_config.run_id))
    made.initialise(run_config)
    return made


@contextmanager
def busy(server: EmbeddedRedis) -> Iterator[None]:
    """Redis runs a script that does not end, and has noticed."""
    admin = connect_damaging(server.endpoint)
    admin.execute_command("CONFIG", "SET", "lua-time-limit", "10")

    def run_for_ever() -> None:
        with pytest.raises(redis.exceptions.ResponseError):
            connect_damaging(server.endpoint, reply_timeout_s=_DEADLINE_S).execute_command(
                "EVAL", "while true do end", "0"
            )

    def is_busy() -> bool:
        try:
            admin.execute_command("GET", "x")
        except redis.exceptions.ResponseError as error:
            return str(error).startswith("BUSY")
        return False

    script = threading.Thread(target=run_for_ever)
    script.start()
    try:
        deadline = time.monotonic() + _DEADLINE_S
        while not is_busy():
            assert time.monotonic() < deadline
        yield
    finally:
        admin.execute_command("SCRIPT", "KILL")
        script.join()


def test_a_redis_that_is_busy_is_waited_for(server: EmbeddedRedis, store: RunStateStore, run_config: RunConfig) -> None:
    link = RedisLink(server.endpoint, run_config)
    with busy(server):
        assert not link.open()
        assert link.read() is None
        assert not link.learner_has_registered()
        assert not link.try_to(lambda: store.set_final_status("stopped"))
    assert link.open()
    assert link.read() is not None


def test_an_outage_is_told_once_however_often_it_is_met(
    server: EmbeddedRedis, store: RunStateStore, run_config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    link = RedisLink(server.endpoint, run_config)
    with caplog.at_level(logging.WARNING), no_memory(connect(server.endpoint)):
        assert [link.try_to(lambda: store.set_actors(run_config)) for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1
    assert link.try_to(lambda: store.set_actors(run_config))


def test_a_session_begins_with_the_places_of_its_actors(
    server: EmbeddedRedis, store: RunStateStore, run_config: RunConfig
) -> None:
    store.open_places(replace(run_config, actors=9))
    link = RedisLink(server.endpoint, run_config)
    with no_memory(connect(server.endpoint)):
        assert not link.open()
    assert link.open()
    snapshot = link.read()
    assert snapshot is not None
    assert (snapshot.state.actors, snapshot.state.actors_wanted) == (run_config.actors, run_config.actors)


def test_the_learner_that_has_accepted_its_settings_is_that_of_this_session(
    server: EmbeddedRedis, store: RunStateStore, run_config: RunConfig
) -> None:
    link = RedisLink(server.endpoint, run_config)
    assert link.open()
    assert not link.learner_has_registered()
    store.publish_process("actor-0", ProcessIdentity.own())
    assert not link.learner_has_registered()
    store.publish_process("learner", ProcessIdentity.own())
    assert link.learner_has_registered()

    resumed = RedisLink(server.endpoint, run_config)
    assert resumed.open()
    assert not resumed.learner_has_registered()  # that one is the learner of before
    store.publish_process("learner", replace(ProcessIdentity.own(), started_ticks=1))
    assert resumed.learner_has_registered()


def test_a_run_that_is_damaged_or_gone_is_an_error_and_no_hindrance_at_the_end(
    server: EmbeddedRedis, store: RunStateStore, run_config: RunConfig
) -> None:
    link = RedisLink(server.endpoint, run_config)
    assert link.read() is not None
    connect(server.endpoint).hset(Keys(run_config.run_id).counters, "env_steps", "many")
    with pytest.raises(DamagedState):
        link.read()
    assert not link.try_to(link.read)
    connect_damaging(server.endpoint).execute_command("FLUSHALL")
    with pytest.raises(RunDirectoryError, match="holds no run"):
        link.read()
    assert not link.try_to(link.read)
    assert link.last is not None  # what was read before is still shown in the end
