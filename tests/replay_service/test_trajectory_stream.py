from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from replay_service import wire
from replay_service.errors import SpecMismatch, StaleEpoch
from replay_service.experience import ExperienceSpec, Origin
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import ActorLedger
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import (
    EpisodeOutcome,
    StoredEpisode,
    StreamEntry,
    TrajectoryReader,
    TrajectoryWriter,
)

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory


def entries_of(reader: TrajectoryReader) -> list[StreamEntry]:
    found = list(reader.read())
    assert all(isinstance(entry, StreamEntry) for entry in found), found
    return [entry for entry in found if isinstance(entry, StreamEntry)]


def sequences(reader: TrajectoryReader) -> list[int]:
    return [entry.trajectory.origin.sequence for entry in entries_of(reader)]


class TestAppend:
    def test_a_trajectory_is_stored_once_and_unchanged(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        state: RunStateStore,
        make_trajectory: MakeTrajectory,
    ) -> None:
        sent = make_trajectory(0, steps=5)
        admission = writer.append(sent, want_steps=0)
        (got,) = entries_of(reader)
        assert not admission.duplicate
        assert admission.resend_from is None
        assert wire.encode_trajectory(got.trajectory) == wire.encode_trajectory(sent)
        assert (state.read().env_steps, state.read().retained_steps) == (5, 5)

    def test_the_answer_carries_the_newest_policy_version(
        self, writer: TrajectoryWriter, redis_client: RedisClient, keys: Keys, make_trajectory: MakeTrajectory
    ) -> None:
        redis_client.hset(keys.run, "policy_version", 41)
        assert writer.append(make_trajectory(0), want_steps=0).policy_version == 41

    def test_a_message_sent_again_is_refused_as_a_duplicate_and_counted(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        state: RunStateStore,
        ledger: Callable[[], ActorLedger],
        make_trajectory: MakeTrajectory,
    ) -> None:
        for sequence in (0, 1):
            writer.append(make_trajectory(sequence, steps=5), want_steps=0)
        again = writer.append(make_trajectory(0, steps=5), want_steps=0)
        assert again.duplicate
        assert sequences(reader) == [0, 1]
        assert (state.read().env_steps, state.read().duplicate_steps) == (10, 5)
        assert (ledger().stored_steps, ledger().duplicate_steps) == (10, 5)

    def test_a_duplicate_still_admits_the_next_steps(
        self, writer: TrajectoryWriter, make_trajectory: MakeTrajectory
    ) -> None:
        """The answer to the first sending was lost: the actor must be able to go on with the second one."""
        writer.append(make_trajectory(0), want_steps=10)
        assert writer.append(make_trajectory(0), want_steps=10).lease_steps == 10

    def test_a_gap_is_answered_with_the_sequence_to_resend_from(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        state: RunStateStore,
        make_trajectory: MakeTrajectory,
    ) -> None:
        """As after a crash of Redis that lost the newest second of acknowledged messages."""
        writer.append(make_trajectory(0, steps=5), want_steps=0)
        early = writer.append(make_trajectory(2, steps=5), want_steps=0)
        assert early.resend_from == 1
        assert not early.duplicate
        assert state.read().env_steps == 5
        for sequence in (1, 2):
            assert writer.append(make_trajectory(sequence, steps=5), want_steps=0).resend_from is None
        assert sequences(reader) == [0, 1, 2]

    def test_an_older_incarnation_can_store_no_more(
        self,
        writer: TrajectoryWriter,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        spec: ExperienceSpec,
        make_trajectory: MakeTrajectory,
    ) -> None:
        successor = TrajectoryWriter(redis_client, keys, spec, actor_id=0)
        assert successor.register() == writer.epoch + 1
        with pytest.raises(StaleEpoch, match="epoch 1 has been replaced by epoch 2"):
            writer.append(make_trajectory(0, epoch=1), want_steps=0)
        with pytest.raises(StaleEpoch):
            writer.request(10)
        assert state.read().env_steps == 0

    def test_who_leaves_late_leaves_its_successor_s_lease_alone(
        self, writer: TrajectoryWriter, state: RunStateStore, redis_client: RedisClient, keys: Keys,
        spec: ExperienceSpec,
    ) -> None:  # fmt: skip
        assert writer.request(10).lease_steps == 10
        successor = TrajectoryWriter(redis_client, keys, spec, actor_id=0)
        successor.register()
        assert successor.request(10).lease_steps == 10
        assert writer.release() is None
        assert state.read().leased_steps == 10
        writer.epoch += 2  # as if Redis had lost its registration: nobody has come after it
        assert writer.release() == 10
        assert successor.request(10).lease_steps == 10
        assert successor.release() == 10

    def test_a_new_incarnation_begins_at_sequence_0(
        self, writer: TrajectoryWriter, reader: TrajectoryReader, make_trajectory: MakeTrajectory
    ) -> None:
        writer.append(make_trajectory(0, epoch=1), want_steps=0)
        writer.register()
        writer.append(make_trajectory(0, epoch=2), want_steps=0)
        origins = [entry.trajectory.origin for entry in entries_of(reader)]
        assert [(origin.epoch, origin.sequence) for origin in origins] == [(1, 0), (2, 0)]

    def test_an_actor_of_another_environment_is_turned_away(
        self,
        online_state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        spec: ExperienceSpec,
        make_trajectory: MakeTrajectory,
    ) -> None:
        stranger = TrajectoryWriter(redis_client, keys, replace(spec, observation_dim=4), actor_id=0)
        with pytest.raises(SpecMismatch, match=spec.fingerprint):
            stranger.register()
        with pytest.raises(SpecMismatch, match=spec.fingerprint):
            stranger.append(make_trajectory(0), want_steps=0)
        assert online_state.read().env_steps == 0

    def test_an_actor_of_a_run_that_does_not_exist_is_told_so(
        self, redis_client: RedisClient, keys: Keys, spec: ExperienceSpec
    ) -> None:
        with pytest.raises(SpecMismatch, match="no such run"):
            TrajectoryWriter(redis_client, keys, spec, actor_id=0).register()

    def test_restarts_are_counted_only_after_a_crash(
        self, writer: TrajectoryWriter, state: RunStateStore, ledger: Callable[[], ActorLedger]
    ) -> None:
        writer.register(replaces_crashed=False)
        writer.register(replaces_crashed=True)
        assert state.read().actor_restarts == 1
        assert ledger().restarts == 1

    @pytest.mark.parametrize(("success", "successes"), [(True, 1), (False, 0), (None, 0)])
    def test_the_end_of_an_episode_is_counted_with_its_outcome(
        self,
        writer: TrajectoryWriter,
        state: RunStateStore,
        ledger: Callable[[], ActorLedger],
        make_trajectory: MakeTrajectory,
        success: bool | None,
        successes: int,
    ) -> None:
        writer.append(make_trajectory(0), want_steps=0)
        assert state.read().episodes == 0
        outcome = EpisodeOutcome(episode_return=-12.25, success=success)
        writer.append(make_trajectory(1, truncated=True), want_steps=0, outcome=outcome)
        assert (state.read().episodes, state.read().successes) == (1, successes)
        assert (ledger().episodes, ledger().successes, ledger().last_return) == (1, successes, -12.25)

    def test_a_refused_duplicate_does_not_count_its_episode_again(
        self, writer: TrajectoryWriter, state: RunStateStore, make_trajectory: MakeTrajectory
    ) -> None:
        for _ in range(2):
            writer.append(make_trajectory(0, truncated=True), want_steps=0, outcome=EpisodeOutcome(0.0, success=True))
        assert (state.read().episodes, state.read().successes) == (1, 1)


class TestEviction:
    """Capacity of the run is 100 transitions."""

    def test_whole_entries_leave_oldest_first(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        state: RunStateStore,
        make_trajectory: MakeTrajectory,
    ) -> None:
        for sequence, steps in enumerate((20, 15, 20, 20, 20)):
            writer.append(make_trajectory(sequence, steps=steps), want_steps=0)
        assert state.read().retained_steps == 95
        writer.append(make_trajectory(5, steps=6), want_steps=0)
        assert state.read().retained_steps == 81
        writer.append(make_trajectory(6, steps=20), want_steps=0)
        assert state.read().retained_steps == 86
        assert sequences(reader) == [2, 3, 4, 5, 6]

    def test_exactly_the_capacity_is_kept(
        self, writer: TrajectoryWriter, state: RunStateStore, make_trajectory: MakeTrajectory
    ) -> None:
        for sequence in range(7):
            writer.append(make_trajectory(sequence, steps=20), want_steps=0)
        assert (state.read().retained_steps, state.read().env_steps) == (100, 140)

    def test_what_was_evicted_stays_counted(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        state: RunStateStore,
        ledger: Callable[[], ActorLedger],
        make_trajectory: MakeTrajectory,
    ) -> None:
        for sequence in range(6):
            writer.append(make_trajectory(sequence, steps=20), want_steps=0)
        assert state.read().env_steps == ledger().stored_steps == 120
        assert [entry.first_step for entry in entries_of(reader)] == [20, 40, 60, 80, 100]

    @pytest.mark.parametrize("length", [b"a lot", b"1.5", b"-5", b"1e3", b"nan", b""])
    def test_a_strangers_entry_that_is_evicted_does_not_spoil_the_counts(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        make_trajectory: MakeTrajectory,
        length: bytes,
    ) -> None:
        redis_client.xadd(keys.online, {"n": length, "a": "0", "f": "0", "m": "noise"})
        for sequence in range(6):
            writer.append(make_trajectory(sequence, steps=20), want_steps=0)
        assert state.read().retained_steps == 100
        assert sequences(reader) == [1, 2, 3, 4, 5]


class TestReader:
    def test_entries_come_in_the_order_of_appending_across_actors(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        redis_client: RedisClient,
        keys: Keys,
        spec: ExperienceSpec,
        make_trajectory: MakeTrajectory,
    ) -> None:
        other = TrajectoryWriter(redis_client, keys, spec, actor_id=1)
        other.register()
        for sequence in range(3):
            writer.append(make_trajectory(sequence, steps=3), want_steps=0)
            other.append(make_trajectory(sequence, steps=4, actor_id=1), want_steps=0)
        found = entries_of(reader)
        assert [entry.trajectory.origin.actor_id for entry in found] == [0, 1, 0, 1, 0, 1]
        assert [entry.first_step for entry in found] == [0, 3, 7, 10, 14, 17]

    def test_each_entry_is_read_once(
        self, writer: TrajectoryWriter, reader: TrajectoryReader, make_trajectory: MakeTrajectory
    ) -> None:
        assert sequences(reader) == []
        writer.append(make_trajectory(0), want_steps=0)
        assert sequences(reader) == [0]
        writer.append(make_trajectory(1), want_steps=0)
        assert sequences(reader) == [1]
        assert sequences(reader) == []

    def test_a_new_reader_goes_on_at_a_saved_cursor(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        redis_client: RedisClient,
        keys: Keys,
        spec: ExperienceSpec,
        make_trajectory: MakeTrajectory,
    ) -> None:
        for sequence in range(5):
            writer.append(make_trajectory(sequence), want_steps=0)
        assert len(list(reader.read(count=2))) == 2
        resumed = TrajectoryReader(redis_client, keys.online, spec, cursor=reader.cursor)
        assert sequences(resumed) == [2, 3, 4]

    def test_the_cursor_covers_only_what_was_yielded(
        self, writer: TrajectoryWriter, reader: TrajectoryReader, make_trajectory: MakeTrajectory
    ) -> None:
        for sequence in range(3):
            writer.append(make_trajectory(sequence), want_steps=0)
        first = next(reader.read())
        assert reader.cursor == first.entry_id
        assert sequences(reader) == [1, 2]

    def test_a_blocking_read_of_an_empty_stream_ends_by_itself(
        self, online_state: RunStateStore, reader: TrajectoryReader
    ) -> None:
        assert list(reader.read(block_ms=1)) == []


def test_the_origin_of_a_message_is_what_the_stream_is_stamped_with(
    writer: TrajectoryWriter, redis_client: RedisClient, keys: Keys, make_trajectory: MakeTrajectory
) -> None:
    sent = replace(make_trajectory(0), origin=Origin(0, 1, 0, policy_version=6, episode=4, first_step=10))
    writer.append(sent, want_steps=0)
    ((_, fields),) = redis_client.xrange(keys.online)
    assert fields.keys() == {b"m", b"a", b"e", b"s", b"n", b"f"}
    assert (fields[b"a"], fields[b"e"], fields[b"s"], fields[b"n"], fields[b"f"]) == (b"0", b"1", b"0", b"5", b"0")


def test_a_registration_that_is_repeated_because_its_answer_was_lost_counts_once(
    writer: TrajectoryWriter, online_state: RunStateStore
) -> None:
    first = writer.register(replaces_crashed=True, registration="a")
    assert writer.register(replaces_crashed=True, registration="a") == first
    assert online_state.read().actor_restarts == 1
    assert writer.register(registration="b") == first + 1


def test_a_registration_tells_how_much_of_the_newest_episode_is_stored(
    writer: TrajectoryWriter, make_trajectory: MakeTrajectory
) -> None:
    assert writer.stored_episode is None

    def append(sequence: int, *, epoch: int, first_step: int, steps: int, outcome: EpisodeOutcome | None) -> None:
        made = make_trajectory(sequence, steps=steps, epoch=epoch, truncated=outcome is not None)
        piece = replace(made, origin=replace(made.origin, episode=4, first_step=first_step))
        writer.append(piece, want_steps=0, outcome=outcome)

    append(0, epoch=1, first_step=0, steps=5, outcome=None)
    append(1, epoch=1, first_step=5, steps=7, outcome=None)
    for _ in range(2):  # also when the answer was lost, and when this incarnation has stored nothing either
        writer.register(registration="second")
        assert writer.stored_episode == StoredEpisode(4, 12, ended=False)
    append(0, epoch=2, first_step=12, steps=3, outcome=EpisodeOutcome(-15.0, success=False))
    writer.register()
    assert writer.stored_episode == StoredEpisode(4, 15, ended=True)
