"""Exactly-once delivery against a real Redis that forgets, fails in the middle, or does not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from actors.outbox import LostMessages, Outbox
from replay_service.experience import ExperienceSpec, Trajectory
from replay_service.keys import Keys
from replay_service.records import unaccounted_steps
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import (
    Admission,
    EpisodeOutcome,
    StreamEntry,
    TrajectoryReader,
    TrajectoryWriter,
)
from tests.clocks import Clock

MakeTrajectory = Callable[..., Trajectory]

OUTCOME = EpisodeOutcome(episode_return=-3.0, success=True)


class UnreliableWriter(TrajectoryWriter):
    """A real writer whose connection breaks on command: before a message is sent, or after it was stored."""

    def __init__(self, client: RedisClient, keys: Keys, spec: ExperienceSpec) -> None:
        super().__init__(client, keys, spec, actor_id=0)
        self.break_before: set[int] = set()
        self.break_after: set[int] = set()

    def append(self, trajectory: Trajectory, **options: Any) -> Admission:
        sequence = trajectory.origin.sequence
        if sequence in self.break_before:
            self.break_before.remove(sequence)
            raise redis.exceptions.ConnectionError("reset by peer")
        admission = super().append(trajectory, **options)
        if sequence in self.break_after:
            self.break_after.remove(sequence)
            raise redis.exceptions.TimeoutError("no answer")
        return admission


@pytest.fixture
def unreliable_writer(
    redis_client: RedisClient, keys: Keys, spec: ExperienceSpec, online_state: RunStateStore
) -> UnreliableWriter:
    writer = UnreliableWriter(redis_client, keys, spec)
    writer.register()
    return writer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(unreliable_writer: UnreliableWriter, clock: Clock) -> Outbox:
    return Outbox(unreliable_writer, resend_window_s=5.0, clock=clock)


@pytest.fixture
def stored(redis_client: RedisClient, keys: Keys, spec: ExperienceSpec) -> Callable[[], list[int]]:
    """Sequence numbers in the stream, in its order; every entry is checked."""

    def read() -> list[int]:
        sequences = []
        for entry in TrajectoryReader(redis_client, keys.online, spec).read(count=1_000):
            assert isinstance(entry, StreamEntry)
            sequences.append(entry.trajectory.origin.sequence)
        return sequences

    return read


@pytest.fixture
def take_snapshot(redis_client: RedisClient, keys: Keys) -> Callable[[], Callable[[], None]]:
    """Remember the run's keys; what it returns puts them back, as a crash does that loses Redis's last second."""
    raw: Any = redis_client  # DUMP and RESTORE are nothing that the project itself uses

    def take() -> Callable[[], None]:
        names = (*keys.state, keys.online, keys.actor(0), keys.actors)
        remembered = {name: raw.dump(name) for name in names}

        def roll_back() -> None:
            for name, value in remembered.items():
                raw.delete(name)
                if value is not None:
                    raw.restore(name, 0, value)

        return roll_back

    return take


def deliver(outbox: Outbox, make_trajectory: MakeTrajectory, *sequences: int) -> list[Admission]:
    return [outbox.deliver(make_trajectory(s), OUTCOME, want_steps=5) for s in sequences]


def test_delivers_and_asks_for_the_next_steps(
    outbox: Outbox, make_trajectory: MakeTrajectory, stored: Callable[[], list[int]], online_state: RunStateStore
) -> None:
    admissions = deliver(outbox, make_trajectory, 0, 1)
    assert stored() == [0, 1]
    assert [a.lease_steps for a in admissions] == [5, 5]
    state = online_state.read()
    assert (state.env_steps, state.leased_steps, state.episodes, state.successes) == (10, 5, 2, 2)
    assert outbox.resent_messages == 0


def test_a_message_whose_answer_was_lost_is_stored_once(
    outbox: Outbox, unreliable_writer: UnreliableWriter, make_trajectory: MakeTrajectory,
    stored: Callable[[], list[int]], online_state: RunStateStore,
) -> None:  # fmt: skip
    unreliable_writer.break_after = {1}
    deliver(outbox, make_trajectory, 0)
    with pytest.raises(redis.exceptions.TimeoutError):
        deliver(outbox, make_trajectory, 1)
    assert [a.duplicate for a in deliver(outbox, make_trajectory, 1, 2)] == [True, False]
    assert stored() == [0, 1, 2]
    state = online_state.read()
    assert (state.env_steps, state.duplicate_steps, state.episodes) == (15, 5, 3)


def test_what_redis_lost_is_sent_again_in_order_and_counted_once(
    outbox: Outbox, make_trajectory: MakeTrajectory, stored: Callable[[], list[int]], online_state: RunStateStore,
    take_snapshot: Callable[[], Callable[[], None]], redis_client: RedisClient, keys: Keys,
) -> None:  # fmt: skip
    deliver(outbox, make_trajectory, 0, 1)
    roll_back = take_snapshot()
    deliver(outbox, make_trajectory, 2, 3, 4)
    roll_back()
    assert stored() == [0, 1]
    admission = deliver(outbox, make_trajectory, 5)[0]
    assert admission.resend_from is None
    assert stored() == [0, 1, 2, 3, 4, 5]
    assert outbox.resent_messages == 3
    state = online_state.read()
    assert (state.env_steps, state.episodes, state.successes, state.duplicate_steps) == (30, 6, 6, 0)
    assert unaccounted_steps(state, Reports(redis_client, keys).actors()) == 0


def test_who_only_asks_sends_what_redis_lost_before_it_is_given_steps(
    outbox: Outbox, unreliable_writer: UnreliableWriter, make_trajectory: MakeTrajectory,
    stored: Callable[[], list[int]], online_state: RunStateStore, take_snapshot: Callable[[], Callable[[], None]],
    redis_client: RedisClient, keys: Keys,
) -> None:  # fmt: skip
    redis_client.hset(keys.run, "num_env_steps", 10)
    deliver(outbox, make_trajectory, 0)
    roll_back = take_snapshot()  # with a lease for the second message
    outbox.deliver(make_trajectory(1), OUTCOME, want_steps=0)
    assert outbox.request(5).wait_reason == "budget"
    roll_back()
    unreliable_writer.break_before = {1}
    with pytest.raises(redis.exceptions.ConnectionError):
        outbox.request(5)
    admission = outbox.request(5)
    assert (admission.lease_steps, admission.wait_reason) == (0, "budget")
    assert stored() == [0, 1]
    assert outbox.resent_messages == 1
    state = online_state.read()
    assert (state.env_steps, state.leased_steps) == (10, 0)


def test_a_second_failure_while_sending_again_loses_nothing(
    outbox: Outbox, unreliable_writer: UnreliableWriter, make_trajectory: MakeTrajectory,
    stored: Callable[[], list[int]], online_state: RunStateStore, take_snapshot: Callable[[], Callable[[], None]],
) -> None:  # fmt: skip
    roll_back = take_snapshot()
    deliver(outbox, make_trajectory, 0, 1, 2)
    roll_back()
    unreliable_writer.break_before = {1}
    with pytest.raises(redis.exceptions.ConnectionError):
        deliver(outbox, make_trajectory, 3)
    unreliable_writer.break_after = {2}
    with pytest.raises(redis.exceptions.TimeoutError):
        deliver(outbox, make_trajectory, 3)
    deliver(outbox, make_trajectory, 3)
    assert stored() == [0, 1, 2, 3]
    assert online_state.read().env_steps == 20


def test_messages_sent_again_can_be_lost_again(
    outbox: Outbox, clock: Clock, make_trajectory: MakeTrajectory, stored: Callable[[], list[int]],
    take_snapshot: Callable[[], Callable[[], None]],
) -> None:  # fmt: skip
    roll_back = take_snapshot()
    deliver(outbox, make_trajectory, 0, 1)
    for sequence in (2, 3):
        roll_back()
        clock.now += 30.0  # an outage that lasts longer than messages are kept
        deliver(outbox, make_trajectory, sequence)
    assert stored() == [0, 1, 2, 3]


@pytest.mark.parametrize(("age_s", "is_kept"), [(4.9, True), (5.1, False)])
def test_acknowledged_messages_are_kept_for_the_window_and_no_longer(
    outbox: Outbox, clock: Clock, make_trajectory: MakeTrajectory, stored: Callable[[], list[int]],
    take_snapshot: Callable[[], Callable[[], None]], age_s: float, is_kept: bool,
) -> None:  # fmt: skip
    roll_back = take_snapshot()
    deliver(outbox, make_trajectory, 0)
    clock.now += age_s
    deliver(outbox, make_trajectory, 1)
    roll_back()
    if is_kept:
        deliver(outbox, make_trajectory, 2)
        assert stored() == [0, 1, 2]
    else:
        with pytest.raises(LostMessages, match="asks for messages 0 to 1; kept are 1 of them"):
            deliver(outbox, make_trajectory, 2)
        assert stored() == []  # nothing is stored out of order
        assert [sent.trajectory.origin.sequence for sent in outbox.kept] == [1]  # for the next epoch


def test_memory_is_bounded_whatever_the_window(
    outbox: Outbox, make_trajectory: MakeTrajectory, take_snapshot: Callable[[], Callable[[], None]]
) -> None:
    roll_back = take_snapshot()
    deliver(outbox, make_trajectory, *range(300))
    roll_back()
    with pytest.raises(LostMessages, match="kept are 256 of them"):
        deliver(outbox, make_trajectory, 300)
