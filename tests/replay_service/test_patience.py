from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import pytest
import redis
from prometheus_client import CollectorRegistry

from replay_service import patience
from replay_service.connection import CONNECT_TIMEOUT_S, REPLY_TIMEOUT_S, RedisEndpoint, connect
from replay_service.outage import outage_of
from replay_service.patience import Patience
from replay_service.process import StopSignal, WaitNotice
from replay_service.waits import WaitSeconds
from tests.clocks import LinesInTime, SharedTime


class Flaky:
    """A request that fails a given number of times before it is answered."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"


def counted_seconds(registry: CollectorRegistry) -> dict[str, float]:
    """Seconds waited, by reason."""
    return {
        sample.labels["reason"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "awac_wait_seconds_total"
    }


@pytest.fixture
def stop() -> StopSignal:
    return StopSignal()


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.ConnectionError("refused"),
        redis.exceptions.TimeoutError("slow"),
        redis.exceptions.BusyLoadingError("loading"),
        redis.exceptions.ReadOnlyError("replica"),
        redis.exceptions.OutOfMemoryError("full"),
        redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        redis.exceptions.ResponseError("BUSY Redis is busy running a script."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_outage_is_waited_out_and_the_wait_is_reported(stop: StopSignal, error: Exception) -> None:
    ask, registry = Flaky(2, error), CollectorRegistry()
    waits = WaitSeconds.register(registry, "learner")
    assert Patience("tester", stop, waits=waits).until_answered(ask) == "answer"
    assert ask.calls == 3
    outage = outage_of(error)
    assert outage is not None
    counted = counted_seconds(registry)
    assert counted.pop(outage.reason) >= 0.3, "pauses of 0.1 and 0.2 s"
    assert set(counted.values()) == {0.0}


def test_an_answer_at_once_costs_no_wait_and_no_line_in_the_log(
    stop: StopSignal, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    waits = WaitSeconds.register(registry, "learner")
    assert Patience("tester", stop, waits=waits).until_answered(lambda: 5) == 5
    assert set(counted_seconds(registry).values()) == {0.0}
    assert caplog.records == []


def test_the_log_tells_of_the_outage_and_of_its_end_once_each(
    stop: StopSignal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Patience("actor 3", stop).until_answered(Flaky(2, redis.exceptions.ConnectionError("refused")))
    began, ended = (record.getMessage() for record in caplog.records)
    assert began.startswith("actor 3 waits for Redis to answer (nobody listens there")
    assert began.endswith(": refused")
    assert ended.startswith("actor 3: Redis answers again after")


class TestLog:
    """What goes into the log in the course of time, which passes only when the waiting and its watch both sleep."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> SharedTime:
        caplog.set_level(logging.INFO)
        clock = SharedTime(threads=2)
        monkeypatch.setattr(patience, "time", clock)
        monkeypatch.setattr(patience, "WaitNotice", partial(WaitNotice, clock=clock.monotonic))
        return clock

    @pytest.mark.parametrize("requests", [1, 40])
    def test_many_requests_that_take_long_together_are_not_called_a_silent_redis_and_one_is(
        self, clock: SharedTime, stop: StopSignal, caplog: pytest.LogCaptureFixture, requests: int
    ) -> None:
        patient = Patience("replay service", stop)

        def ask() -> None:
            for _ in range(requests):
                patient.asks_again()
                clock.sleep(20.0 / requests)

        patient.until_answered(ask)
        assert ("waits for Redis to reply" in caplog.text) == (requests == 1)

    @pytest.mark.parametrize(
        ("refusals", "then_s"),
        [(0, 0.0), (0, CONNECT_TIMEOUT_S), *((refusals, REPLY_TIMEOUT_S) for refusals in range(12))],
    )
    def test_a_wait_is_told_at_least_every_ten_seconds_however_long_each_try_takes(
        self, clock: SharedTime, stop: StopSignal, refusals: int, then_s: float
    ) -> None:
        """The first tries fail at once; the others time out, as where nobody listens, leads or replies."""
        tries = 0

        def ask() -> str:
            nonlocal tries
            tries += 1
            if clock.now >= 60.0:
                return "answer"
            clock.sleep(0.0 if tries <= refusals else then_s)
            raise redis.exceptions.TimeoutError("no answer")

        with LinesInTime(clock.monotonic) as lines:
            assert Patience("actor 3", stop).until_answered(ask) == "answer"
        assert lines.longest_silence() <= 10.0


def test_a_stop_ends_the_wait_without_an_answer(stop: StopSignal) -> None:
    stop.set()
    ask = Flaky(1_000_000, redis.exceptions.ConnectionError("refused"))
    assert Patience("tester", stop).until_answered(ask) is None
    assert ask.calls == 1


def test_delivery_may_go_on_for_a_while_after_a_stop(stop: StopSignal) -> None:
    stop.set()
    ask = Flaky(2, redis.exceptions.ConnectionError("refused"))
    assert Patience("tester", stop).until_answered(ask, after_stop_s=60.0) == "answer"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("ours"),
        redis.exceptions.ResponseError("WRONGTYPE"),
        redis.exceptions.NoPermissionError("denied"),
        redis.exceptions.AuthenticationError("WRONGPASS"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_no_waiting_mends_is_raised_at_once(stop: StopSignal, error: Exception) -> None:
    ask = Flaky(1_000_000, error)
    stop.set()  # so that a fault of ours ends the test rather than waiting for ever
    with pytest.raises(type(error)):
        Patience("tester", stop).until_answered(ask)
    assert ask.calls == 1


def test_a_server_that_refuses_the_password_is_not_waited_for(stop: StopSignal, redis_endpoint: RedisEndpoint) -> None:
    client = connect(replace(redis_endpoint, password="wrong"))
    stop.set()
    with pytest.raises(redis.exceptions.AuthenticationError):
        Patience("tester", stop).until_answered(client.ping)
    client.close()
