"""Outages of a real Redis: each is named, waited out, counted, and nothing is lost or doubled by it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from prometheus_client import CollectorRegistry
from redis._parsers.base import BaseParser

from replay_service import disk_space, patience
from replay_service.config import RunConfig
from replay_service.connection import connect
from replay_service.disk_space import wait_for_space
from replay_service.keys import Keys
from replay_service.outage import OUTAGE_REASONS, outage_of
from replay_service.patience import Patience
from replay_service.process import StopSignal, WaitNotice, run_role
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter
from replay_service.waits import WaitSeconds
from tests.clocks import LinesInTime, SharedTime
from tests.conftest import PATIENCE_S
from tests.faults import Fault, fill, full_disk, no_memory, paused, small_disk, wait_until_written

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory, WaitUntil

MESSAGES = 20


class Server:
    """A Redis of the test's own, which it may ill-treat."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running = EmbeddedRedis.start(folder, server=find_server(), max_memory_mb=64)
        self.admin: Any = connect(self.running.endpoint)

    @contextmanager
    def gone(self) -> Iterator[None]:
        os.kill(self.running.process.pid, signal.SIGKILL)
        self.running.process.wait()
        yield
        self.running = EmbeddedRedis.start(
            self.folder, server=find_server(), max_memory_mb=64, previous=self.running.endpoint
        )

    def stop(self) -> None:
        self.admin.close()
        self.running.process.kill()
        self.running.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    begun = Server(tmp_path / "redis")
    yield begun
    begun.stop()


class Actor:
    """Sends messages one after the other in a thread, patiently, as the real one does."""

    def __init__(self, server: Server, run: RunConfig, make: MakeTrajectory) -> None:
        keys = Keys(run.run_id)
        self.state = RunStateStore(server.admin, keys)
        self.state.initialise(run)
        self.state.set_phase(Phase.ONLINE)
        self.reports = Reports(server.admin, keys)
        self.registry = CollectorRegistry()
        registered = TrajectoryWriter(server.admin, keys, run.spec, actor_id=0)
        registered.register()
        self._client = connect(server.running.endpoint, reply_timeout_s=0.5)
        writer = TrajectoryWriter(self._client, keys, run.spec, actor_id=0)
        writer.epoch = registered.epoch
        self.stop = StopSignal()
        waiting = Patience("actor 0", self.stop, waits=WaitSeconds.register(self.registry, "actor"))
        self.sent = 0
        self.may_send = threading.Event()

        def work() -> None:
            for sequence in range(MESSAGES):
                self.may_send.wait()
                waiting.until_answered(partial(writer.append, make(sequence), want_steps=0))
                self.sent += 1

        self.thread = threading.Thread(target=work, daemon=True)

    def waited(self, reason: str) -> float:
        value = self.registry.get_sample_value("awac_wait_seconds_total", {"role": "actor", "reason": reason})
        assert value is not None
        return value

    def close(self) -> None:
        self.stop.set()
        self.may_send.set()
        self.thread.join(PATIENCE_S)
        self._client.close()


def go_through(fault: Fault, reason: str, words: str, server: Server, run: RunConfig, make: MakeTrajectory,
               wait_until: WaitUntil, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    """Bring a fault about while an actor sends; it waits, says for what, goes on by itself; the ledger is exact."""
    caplog.set_level(logging.INFO)
    actor = Actor(server, run, make)
    actor.thread.start()
    try:
        with fault():
            actor.may_send.set()
            wait_until(lambda: actor.waited(reason) > 1.0, f"the actor to count its wait as {reason}")
            assert actor.thread.is_alive()
            assert actor.sent < MESSAGES
        actor.thread.join(PATIENCE_S)
        assert actor.sent == MESSAGES
    finally:
        actor.close()
    said = [record.getMessage() for record in caplog.records]
    assert any(text.startswith("actor 0 waits for Redis") and words in text for text in said), said
    assert any("Redis answers again" in text for text in said)
    state, (ledger,) = actor.reports.state_and_actors()
    assert state.env_steps == ledger.stored_steps == 5 * MESSAGES
    assert ledger.next_sequence == MESSAGES
    for other in OUTAGE_REASONS:
        if other not in (reason, "redis_loading", "redis_gone", "redis_silent"):
            assert actor.waited(other) == 0


def test_no_memory(server: Server, run_config: RunConfig, make_trajectory: MakeTrajectory, wait_until: WaitUntil,
                   caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    go_through(lambda: no_memory(server.admin), "redis_memory", "--replay.max-memory-mb", server, run_config,
               make_trajectory, wait_until, caplog)  # fmt: skip


def test_a_paused_server(server: Server, run_config: RunConfig, make_trajectory: MakeTrajectory,
                         wait_until: WaitUntil, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    pid = server.running.process.pid
    go_through(lambda: paused(pid), "redis_silent", "paused or overloaded", server, run_config, make_trajectory,
               wait_until, caplog)  # fmt: skip


def test_a_server_that_was_killed(server: Server, run_config: RunConfig, make_trajectory: MakeTrajectory,
                                  wait_until: WaitUntil, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    go_through(server.gone, "redis_gone", "nobody listens there", server, run_config, make_trajectory, wait_until,
               caplog)  # fmt: skip


def test_a_full_disk_and_a_kill_after_it(
    tmp_path: Path, run_config: RunConfig, make_trajectory: MakeTrajectory, wait_until: WaitUntil,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with small_disk(tmp_path / "disk") as disk:
        server = Server(disk / "redis")
        try:
            go_through(lambda: full_disk(server.admin, disk), "redis_disk", "its disk is full", server, run_config,
                       make_trajectory, wait_until, caplog)  # fmt: skip
            before = RunStateStore(server.admin, Keys(run_config.run_id)).read()
            wait_until_written(server.admin)
            with server.gone():
                pass
            assert RunStateStore(server.admin, Keys(run_config.run_id)).read() == before
        finally:
            server.stop()


def test_a_server_that_starts_while_its_disk_is_full_says_so(tmp_path: Path) -> None:
    from replay_service.errors import RedisUnavailable

    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with pytest.raises(RedisUnavailable, match="No space left"):
            EmbeddedRedis.start(disk / "redis", server=find_server(), max_memory_mb=64)


def test_a_request_without_a_reply_is_told_while_it_lasts(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    """The process cannot speak while it waits for a socket; ten seconds must not pass in silence all the same."""
    monkeypatch.setattr(patience, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(patience, "_NOTICE_PERIOD_S", 0.2)
    caplog.set_level(logging.INFO)
    client = connect(server.running.endpoint)  # 30 s for a reply
    client.ping()
    thread = threading.Thread(target=lambda: Patience("learner", StopSignal()).until_answered(client.ping), daemon=True)
    with paused(server.running.process.pid):
        thread.start()
        wait_until(lambda: len(caplog.records) >= 2, "two lines in the log")
        assert thread.is_alive()
    thread.join(PATIENCE_S)
    for record in caplog.records[:2]:
        assert record.getMessage().startswith("learner waits for Redis to reply (it is paused or overloaded")
    client.close()


CODES = {
    "MISCONF Errors writing to the AOF file: No space left on device": "redis_disk",
    "NOREPLICAS Not enough good replicas to write.": "redis_read_only",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "redis_read_only",
    "READONLY You can't write against a read only replica.": "redis_read_only",
    "BUSY Redis is busy running a script.": "redis_busy",
    "OOM command not allowed when used memory > 'maxmemory'.": "redis_memory",
    "LOADING Redis is loading the dataset in memory": "redis_loading",
}


def as_told(reply: str) -> Exception:
    """An error as redis-py makes it of Redis's reply."""
    error: Exception = BaseParser.parse_error(reply)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(("reply", "reason"), CODES.items(), ids=lambda value: value.partition(" ")[0])
def test_an_outage_is_the_same_in_a_pipeline_and_at_the_end_of_a_transaction(reply: str, reason: str) -> None:
    pipe: Any = redis.Redis().pipeline()
    inside = as_told(reply)
    pipe.annotate_exception(inside, 1, ("XADD", "{night}:evaluations", "*", "json", "{}"))
    assert "Command # 1" in str(inside)
    aborted = as_told(f"EXECABORT Transaction discarded because of: {reply}")
    assert isinstance(aborted, redis.exceptions.ExecAbortError)
    for error in (as_told(reply), inside, aborted):
        outage = outage_of(error)
        assert outage is not None, error
        assert outage.reason == reason


def test_what_no_waiting_mends_is_no_outage() -> None:
    for error in (
        redis.exceptions.ResponseError("WRONGTYPE"),
        redis.exceptions.ResponseError("BUSYGROUP Consumer Group name already exists"),
        as_told("EXECABORT Transaction discarded because of previous errors."),
        redis.exceptions.NoPermissionError("NOPERM"),
        redis.exceptions.AuthenticationError("WRONGPASS"),
        redis.exceptions.DataError("ours"),
    ):
        assert outage_of(error) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (redis.exceptions.AuthenticationError("WRONGPASS"), "refused the credentials"),
        (redis.exceptions.NoPermissionError("no rights"), "for want of rights"),
    ],
)
def test_a_refusal_ends_a_role_with_a_message_and_code_2(
    error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert run_role(main) == 2
    assert words in capsys.readouterr().err


class TestFullDiskOfARole:
    def test_a_file_is_written_once_there_is_room(self, tmp_path: Path, wait_until: WaitUntil) -> None:
        registry = CollectorRegistry()
        waits = WaitSeconds.register(registry, "learner")
        written: list[str | None] = []

        def count() -> float:
            return registry.get_sample_value("awac_wait_seconds_total", {"role": "learner", "reason": "disk"}) or 0.0

        with small_disk(tmp_path / "disk") as disk:
            filler = fill(disk)

            def write() -> str:
                (disk / "checkpoint").write_bytes(bytes(100_000))
                return "written"

            thread = threading.Thread(
                target=lambda: written.append(wait_for_space(write, "learner", stop=StopSignal(), waits=waits)),
                daemon=True,
            )
            thread.start()
            wait_until(lambda: count() > 0, "the wait to be counted")
            assert written == []
            filler.unlink()
            thread.join(PATIENCE_S)
        assert written == ["written"]

    def test_the_wait_is_told_at_least_every_ten_seconds(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        clock, stop = SharedTime(), StopSignal()
        monkeypatch.setattr(disk_space, "WaitNotice", partial(WaitNotice, clock=clock.monotonic))
        monkeypatch.setattr(stop, "wait", clock.sleep)

        def write() -> str:
            if clock.now < 60.0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return "written"

        with LinesInTime(clock.monotonic) as lines:
            assert wait_for_space(write, "learner", stop=stop) == "written"
        assert lines.longest_silence() <= 10.0

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_a_stop_ends_the_wait_with_nothing_written_and_says_so(
        self, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
    ) -> None:
        stop, ended = StopSignal(), threading.Event()

        def wait() -> None:
            if wait_for_space(lambda: Path("/dev/full").write_bytes(b"x"), "learner", stop=stop) is None:
                ended.set()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        wait_until(lambda: bool(caplog.records), "the wait to be told")
        assert thread.is_alive()
        stop.set()
        thread.join(PATIENCE_S)
        assert ended.is_set()
        began, left = (record.getMessage() for record in caplog.records)
        assert began.startswith("learner waits for room on the disk: [Errno 28]")
        assert left == "learner ends without having written: the disk is full"

    def test_another_error_is_not_waited_for(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            wait_for_space(lambda: (tmp_path / "none" / "x").write_bytes(b""), "learner", stop=StopSignal())
