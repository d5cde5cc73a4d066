from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from replay_service import trajectory_stream, wire
from replay_service.experience import ExperienceSpec, Trajectory
from replay_service.keys import Keys
from replay_service.records import unaccounted_steps
from replay_service.redis_client import Field, RedisClient
from replay_service.reports import ActorLedger, Reports
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import (
    BadEntry,
    Quarantine,
    StreamEntry,
    TrajectoryReader,
    TrajectoryWriter,
    parse_entry,
)
from tests.damaging_client import DamagingClient

if TYPE_CHECKING:
    from tests.conftest import MakeTrajectory


def entry_fields(trajectory: Trajectory, **changed: Field) -> dict[str, Field]:
    """Stream fields as append.lua writes them for that trajectory, with some exchanged."""
    origin = trajectory.origin
    return {
        "m": wire.encode_trajectory(trajectory),
        "a": origin.actor_id,
        "e": origin.epoch,
        "s": origin.sequence,
        "n": trajectory.num_steps,
        "f": 0,
        **changed,
    }


BAD_ENTRIES: dict[str, tuple[Callable[[Trajectory], dict[str, Field]], str]] = {
    "no fields of ours": (lambda _: {"hello": "world"}, "fields"),
    "no message": (lambda t: {k: v for k, v in entry_fields(t).items() if k != "m"}, "fields"),
    "no number of steps": (lambda t: {k: v for k, v in entry_fields(t).items() if k != "n"}, "fields"),
    "text for a number": (lambda t: entry_fields(t, f="first"), "fields"),
    "a long text for a number": (lambda t: entry_fields(t, n="x" * 100_000), "fields"),
    "a long text for the actor": (lambda t: entry_fields(t, a="x" * 100_000), "stream"),
    "a negative place": (lambda t: entry_fields(t, f=-1), "stream"),
    "garbage message": (lambda t: entry_fields(t, m=b"\xff\x00garbage"), "not msgpack|message"),
    "damaged message": (lambda t: entry_fields(t, m=wire.encode_trajectory(t)[:-1]), "not msgpack"),
    "another actor's name": (lambda t: entry_fields(t, a=5), "message claims"),
    "another epoch": (lambda t: entry_fields(t, e=9), "message claims"),
    "another sequence": (lambda t: entry_fields(t, s=9), "message claims"),
    "another length": (lambda t: entry_fields(t, n=t.num_steps + 1), "message claims"),
    "NaN": (lambda t: entry_fields(replace(t, rewards=np.full_like(t.rewards, np.nan))), "rewards: expected finite"),
    "infinity": (lambda t: entry_fields(replace(t, actions=t.actions / np.float32(0))), "actions: expected finite"),
    "a missing last observation": (
        lambda t: entry_fields(replace(t, observations=t.observations[:-1])),
        r"observations: expected \(6, 3\) float32, got \(5, 3\)",
    ),
    "another environment's actions": (
        lambda t: entry_fields(replace(t, actions=np.zeros((t.num_steps, 2), np.float32))),
        r"actions: expected \(5, 1\)",
    ),
    "no steps": (
        lambda t: entry_fields(
            replace(t, observations=t.observations[:1], actions=t.actions[:0], rewards=t.rewards[:0])
        ),
        "at least 1 step",
    ),
}


class TestBadEntries:
    @pytest.mark.parametrize("case", BAD_ENTRIES)
    def test_what_is_no_trajectory_of_this_run_is_handed_out_with_its_reason(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        redis_client: RedisClient,
        keys: Keys,
        make_trajectory: MakeTrajectory,
        case: str,
    ) -> None:
        spoil, reason = BAD_ENTRIES[case]
        with np.errstate(divide="ignore"):
            entry_id = redis_client.xadd(keys.online, spoil(make_trajectory(0, steps=5)))
        writer.append(make_trajectory(0), want_steps=0)
        bad, good = reader.read()
        assert isinstance(bad, BadEntry)
        assert isinstance(good, StreamEntry)
        assert bad.entry_id == entry_id.decode()
        assert re.search(reason, bad.reason), bad.reason
        assert len(bad.reason) < 500

    def test_more_steps_than_an_episode_has_are_refused(
        self, spec: ExperienceSpec, make_trajectory: MakeTrajectory
    ) -> None:
        too_long = make_trajectory(0, steps=spec.max_episode_steps + 1)
        fields = {k.encode(): v if isinstance(v, bytes) else str(v).encode() for k, v in entry_fields(too_long).items()}
        entry = parse_entry("1-0", fields, spec)
        assert isinstance(entry, BadEntry)
        assert entry.reason == "expected at most 20 steps, got 21"


class TestQuarantine:
    def append_nan(self, writer: TrajectoryWriter, trajectory: Trajectory) -> None:
        writer.append(replace(trajectory, rewards=np.full_like(trajectory.rewards, np.nan)), want_steps=0)

    def test_a_bad_message_moves_and_the_counters_follow(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        quarantine: Quarantine,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        ledger: Callable[[], ActorLedger],
        make_trajectory: MakeTrajectory,
    ) -> None:
        self.append_nan(writer, make_trajectory(0, steps=7))
        writer.append(make_trajectory(1, steps=5), want_steps=0)
        bad, _good = reader.read()
        assert isinstance(bad, BadEntry)
        assert quarantine.put(bad) == 7
        after = state.read()
        assert (after.env_steps, after.retained_steps) == (5, 5)
        assert (after.quarantined_steps, after.quarantined_messages) == (7, 1)
        assert (ledger().stored_steps, ledger().quarantined_steps) == (5, 7)
        ((_, kept),) = redis_client.xrange(keys.quarantine)
        assert kept[b"reason"].decode() == bad.reason
        assert kept[b"id"].decode() == bad.entry_id
        assert (kept[b"a"], kept[b"e"], kept[b"s"], kept[b"n"]) == (b"0", b"1", b"0", b"7")
        assert redis_client.xlen(keys.online) == 1

    def test_a_second_time_changes_nothing(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        quarantine: Quarantine,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        make_trajectory: MakeTrajectory,
    ) -> None:
        """A learner that crashed between quarantine and checkpoint reads nothing twice, but may ask twice."""
        self.append_nan(writer, make_trajectory(0, steps=7))
        (bad,) = reader.read()
        assert isinstance(bad, BadEntry)
        quarantine.put(bad)
        before = state.read()
        assert quarantine.put(bad) == 7  # the first answer may have been lost
        assert state.read() == before
        assert redis_client.xlen(keys.quarantine) == 1

    def test_an_entry_that_went_another_way_is_no_step(
        self, writer: TrajectoryWriter, reader: TrajectoryReader, quarantine: Quarantine, state: RunStateStore,
        redis_client: DamagingClient, keys: Keys, make_trajectory: MakeTrajectory,
    ) -> None:  # fmt: skip
        for sequence in (0, 1):
            self.append_nan(writer, make_trajectory(sequence, steps=7))
        first, second = reader.read()
        assert isinstance(first, BadEntry)
        assert isinstance(second, BadEntry)
        redis_client.xdel(keys.online, first.entry_id)
        before = state.read()
        assert quarantine.put(first) == 0  # nothing is in quarantine
        assert state.read() == before
        assert quarantine.put(second) == 7
        assert quarantine.put(first) == 0  # another one is

    def test_it_keeps_the_newest_so_that_nobody_fills_redis_with_bad_messages(
        self, reader: TrajectoryReader, quarantine: Quarantine, redis_client: RedisClient, keys: Keys,
        online_state: RunStateStore, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(trajectory_stream, "_QUARANTINE_LENGTH", 3)
        for number in range(10):
            # Redis trims whole nodes: a message as long as one has one to itself.
            redis_client.xadd(keys.online, {"m": b"\xff" * 5_000, "s": number})
        for bad in reader.read():
            assert isinstance(bad, BadEntry)
            quarantine.put(bad)
        assert [fields[b"s"] for _, fields in redis_client.xrange(keys.quarantine)] == [b"7", b"8", b"9"]
        assert online_state.read().quarantined_messages == 10

    @pytest.mark.parametrize(
        "fields",
        [
            {"hello": "world"},
            {"m": "noise", "n": "5"},
            {"m": "noise", "a": "0", "f": "0", "n": "1.5"},
            {"m": "noise", "a": "0", "f": "0", "n": "-5"},
            {"m": "noise", "a": "0", "f": "0", "n": "1e3"},
            {"m": "noise", "a": "nobody", "f": "0", "n": "5"},
        ],
        ids=str,
    )
    def test_a_strangers_entry_moves_without_touching_the_step_counts(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        quarantine: Quarantine,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        ledger: Callable[[], ActorLedger],
        make_trajectory: MakeTrajectory,
        fields: dict[str, Field],
    ) -> None:
        writer.append(make_trajectory(0, steps=5), want_steps=0)
        redis_client.xadd(keys.online, fields)
        _good, bad = reader.read()
        assert isinstance(bad, BadEntry)
        assert quarantine.put(bad) == 0
        after = state.read()
        assert (after.env_steps, after.retained_steps, after.quarantined_steps) == (5, 5, 0)
        assert after.quarantined_messages == 1
        assert ledger().stored_steps == 5
        assert redis_client.xlen(keys.online) == redis_client.xlen(keys.quarantine) == 1

    def test_produced_is_stored_plus_quarantined_for_every_actor(
        self,
        writer: TrajectoryWriter,
        reader: TrajectoryReader,
        quarantine: Quarantine,
        state: RunStateStore,
        redis_client: RedisClient,
        keys: Keys,
        spec: ExperienceSpec,
        make_trajectory: MakeTrajectory,
    ) -> None:
        other = TrajectoryWriter(redis_client, keys, spec, actor_id=1)
        other.register()
        writers, produced = {0: writer, 1: other}, {0: 0, 1: 0}
        for sequence in range(12):
            for actor_id, its_writer in writers.items():
                made = make_trajectory(sequence, steps=3 + actor_id, actor_id=actor_id)
                if sequence % (2 + actor_id) == 0:
                    self.append_nan(its_writer, made)
                else:
                    its_writer.append(made, want_steps=0)
                    its_writer.append(made, want_steps=0)
                produced[actor_id] += made.num_steps
            for entry in reader.read():
                if isinstance(entry, BadEntry):
                    quarantine.put(entry)
        ledgers = Reports(redis_client, keys).actors()
        assert {it.actor_id: it.stored_steps + it.quarantined_steps for it in ledgers} == produced
        assert [it.quarantined_steps for it in ledgers] == [6 * 3, 4 * 4]
        assert [it.duplicate_steps for it in ledgers] == [6 * 3, 8 * 4]
        assert unaccounted_steps(state.read(), ledgers) == 0
