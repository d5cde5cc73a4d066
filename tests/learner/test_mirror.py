"""The replay mirror against a plain list of transitions, and n-step transitions against sums written out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from learner.mirror import ReplayMirror, Transitions, n_step_transitions
from replay_service.experience import SEED_ACTOR_ID, Origin, Trajectory

CPU = torch.device("cpu")
OBSERVATION_DIM, ACTION_DIM = 3, 2


def make_trajectory(
    num_steps: int, *, first_id: int = 0, terminated: bool = False, truncated: bool = False, seed: int = 0
) -> Trajectory:
    """Rewards are the ids `first_id`, `first_id + 1`, ... of the transitions; all other numbers follow from them."""
    ids = np.arange(first_id, first_id + num_steps + 1, dtype=np.float32)
    return Trajectory(
        observations=np.stack([ids, -ids, ids * 2], axis=1),
        actions=np.stack([ids[:-1] + 0.25, ids[:-1] + 0.5], axis=1),
        rewards=ids[:-1],
        terminated=terminated,
        truncated=truncated,
        origin=Origin(SEED_ACTOR_ID, 0, seed, 0, seed, 0),
    )


def transitions_of(num_steps: int, *, first_id: int = 0) -> Transitions:
    trajectory = make_trajectory(num_steps, first_id=first_id)
    return n_step_transitions(trajectory, n_step=1, discount=0.5, use_terminals=False)


def make_mirror(*, seed_steps: int = 0, capacity: int = 10, evict_seed: bool = False) -> ReplayMirror:
    return ReplayMirror(
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
        seed_steps=seed_steps,
        capacity=capacity,
        evict_seed=evict_seed,
        device=CPU,
    )


def contents(mirror: ReplayMirror) -> list[int]:
    """Ids of the transitions that can be sampled, oldest first; every field of each is checked against its id."""
    batch = mirror.gather(mirror._rows(torch.arange(mirror.size)))
    ids = batch.rewards
    torch.testing.assert_close(batch.observations, torch.stack([ids, -ids, ids * 2], dim=1))
    torch.testing.assert_close(batch.actions, torch.stack([ids + 0.25, ids + 0.5], dim=1))
    torch.testing.assert_close(batch.next_observations, torch.stack([ids + 1, -ids - 1, ids * 2 + 2], dim=1))
    torch.testing.assert_close(batch.discounts, torch.full_like(ids, 0.5))
    return [int(i) for i in ids]


def rows_by_id(mirror: ReplayMirror) -> dict[int, int]:
    """Transition id -> the row where it lies, for the online transitions."""
    logical = torch.arange(mirror.seed_size, mirror.size)
    rows = mirror._rows(logical)
    return dict(zip((int(i) for i in mirror.gather(rows).rewards), rows.tolist(), strict=True))


class TestNStepTransitions:
    @settings(max_examples=100, deadline=None)
    @given(
        st.integers(1, 9),
        st.integers(1, 5),
        st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        st.sampled_from([(False, False), (True, False), (False, True)]),
        st.booleans(),
        st.integers(0, 1000),
    )
    def test_follow_the_sums(
        self, steps: int, n_step: int, discount: float, ending: tuple[bool, bool], use_terminals: bool, seed: int
    ) -> None:
        draw = np.random.default_rng(seed)
        terminated, truncated = ending
        trajectory = Trajectory(
            observations=draw.normal(size=(steps + 1, OBSERVATION_DIM)).astype(np.float32),
            actions=draw.normal(size=(steps, ACTION_DIM)).astype(np.float32),
            rewards=draw.normal(size=steps).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            origin=Origin(0, 1, 0, 1, 0, 0),
        )
        found = n_step_transitions(trajectory, n_step=n_step, discount=discount, use_terminals=use_terminals)
        assert {array.dtype for array in found} == {np.dtype(np.float32)}
        assert [len(array) for array in found] == [steps] * 5
        for t in range(steps):
            reward, bootstrap, end = 0.0, 1.0, t
            while end < steps and end - t < n_step:
                reward += bootstrap * float(trajectory.rewards[end])
                bootstrap *= discount
                end += 1
            if use_terminals and terminated and end == steps:
                bootstrap = 0.0
            np.testing.assert_array_equal(found.observations[t], trajectory.observations[t])
            np.testing.assert_array_equal(found.actions[t], trajectory.actions[t])
            np.testing.assert_array_equal(found.next_observations[t], trajectory.observations[end])
            assert float(found.rewards[t]) == pytest.approx(reward, rel=1e-5, abs=1e-6)
            assert float(found.discounts[t]) == pytest.approx(bootstrap, rel=1e-6)

    @pytest.mark.parametrize(
        ("terminated", "truncated", "use_terminals", "last_discounts"),
        [
            (True, False, True, [0.0, 0.0]),  # both transitions reach the terminal state
            (True, False, False, [0.25, 0.5]),  # the hand tasks: terminals are ignored
            (False, True, True, [0.25, 0.5]),  # a time limit never stops the bootstrap
            (False, False, True, [0.25, 0.5]),  # the episode goes on in the next message
        ],
    )
    def test_only_a_used_terminal_stops_the_bootstrap(
        self, terminated: bool, truncated: bool, use_terminals: bool, last_discounts: list[float]
    ) -> None:
        trajectory = make_trajectory(3, terminated=terminated, truncated=truncated)
        found = n_step_transitions(trajectory, n_step=2, discount=0.5, use_terminals=use_terminals)
        assert found.discounts.tolist() == [0.25, *last_discounts]
        assert found.rewards.tolist() == [0.5, 2.0, 2.0]  # 0 + 1/2, 1 + 2/2, 2
        assert found.next_observations[:, 0].tolist() == [2.0, 3.0, 3.0]


@dataclass
class Entry:
    first_step: int
    ids: list[int]


@dataclass
class ListReplay:
    """What the mirror promises, with Python lists: `append.lua`'s stream, and the seed data before it."""

    capacity: int
    evict_seed: bool
    seed: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    appended: int = 0
    """Steps that were appended to the stream since the run began, and were not lost."""

    def append(self, ids: list[int]) -> int:
        first_step = self.appended
        self.entries.append(Entry(first_step, ids))
        self.appended += len(ids)
        while self.online_size > self.capacity:
            del self.entries[0]
        return first_step

    def lose_newest(self, count: int) -> None:
        lost = self.entries[len(self.entries) - count :]
        del self.entries[len(self.entries) - count :]
        self.appended = lost[0].first_step

    @property
    def online_size(self) -> int:
        return sum(len(entry.ids) for entry in self.entries)

    @property
    def sampled(self) -> list[int]:
        kept = len(self.seed) if not self.evict_seed else max(0, min(len(self.seed), self.capacity - self.appended))
        return self.seed[len(self.seed) - kept :] + [i for entry in self.entries for i in entry.ids]


class MirrorMachine(RuleBasedStateMachine):
    """Random appends, losses of Redis's newest entries and restarts of the learner, against `ListReplay`."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: Iterator[int] = itertools.count()

    @initialize(
        capacity=st.integers(4, 24),
        evict_seed=st.booleans(),
        seed_lengths=st.lists(st.integers(1, 9), max_size=4),
    )
    def begin(self, capacity: int, evict_seed: bool, seed_lengths: list[int]) -> None:
        self.seed_lengths = seed_lengths
        self.model = ListReplay(capacity, evict_seed)
        for length in seed_lengths:
            self.model.seed += self.take_ids(length)
        self.mirror = self.filled_mirror()

    def take_ids(self, count: int) -> list[int]:
        return list(itertools.islice(self.ids, count))

    def filled_mirror(self) -> ReplayMirror:
        """A mirror as the learner fills it at its start: all seed data, then what the stream retains."""
        model = self.model
        mirror = make_mirror(seed_steps=len(model.seed), capacity=model.capacity, evict_seed=model.evict_seed)
        begin = 0
        for length in self.seed_lengths:
            mirror.insert_seed(transitions_of(length, first_id=model.seed[begin]))
            begin += length
        for entry in model.entries:
            mirror.insert_online(transitions_of(len(entry.ids), first_id=entry.ids[0]), first_step=entry.first_step)
        return mirror

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        ids = self.take_ids(data.draw(st.integers(1, self.model.capacity), label="steps"))
        first_step = self.model.append(ids)
        self.mirror.insert_online(transitions_of(len(ids), first_id=ids[0]), first_step=first_step)

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data())
    def redis_loses_its_newest_entries_and_is_filled_again(self, data: st.DataObject) -> None:
        self.model.lose_newest(data.draw(st.integers(1, len(self.model.entries)), label="lost"))
        self.append(data)  # the mirror hears of the loss only by the position of the next entry

    @rule()
    def the_learner_starts_again(self) -> None:
        before = rows_by_id(self.mirror)
        self.mirror = self.filled_mirror()
        assert rows_by_id(self.mirror) == before

    @invariant()
    def holds_what_the_lists_hold_in_their_order(self) -> None:
        assert self.mirror.check_valid() is None
        assert contents(self.mirror) == self.model.sampled
        assert self.mirror.online_size == self.model.online_size
        assert self.mirror.seed_size == len(self.model.sampled) - self.model.online_size
        if self.model.evict_seed:
            assert self.mirror.size <= self.model.capacity


def test_the_mirror_follows_a_list_of_trajectories() -> None:
    run_state_machine_as_test(MirrorMachine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))


class TestReplayMirror:
    def test_evicts_whole_trajectories_as_the_stream_does(self) -> None:
        mirror = make_mirror(capacity=10)
        for first, count in ((0, 4), (4, 3), (7, 3)):
            mirror.insert_online(transitions_of(count, first_id=first), first_step=first)
        assert contents(mirror) == list(range(10))
        mirror.insert_online(transitions_of(1, first_id=10), first_step=10)
        assert contents(mirror) == list(range(4, 11))  # one step too many costs all four of the oldest

    def test_seed_data_leave_first_when_they_share_the_capacity(self) -> None:
        mirror = make_mirror(seed_steps=6, capacity=8, evict_seed=True)
        mirror.insert_seed(transitions_of(6, first_id=100))
        mirror.insert_online(transitions_of(5), first_step=0)
        assert contents(mirror) == [103, 104, 105, 0, 1, 2, 3, 4]
        mirror.insert_online(transitions_of(5, first_id=5), first_step=5)
        assert contents(mirror) == [5, 6, 7, 8, 9]

    def test_seed_data_stay_when_they_do_not(self) -> None:
        mirror = make_mirror(seed_steps=2, capacity=4)
        mirror.insert_seed(transitions_of(2, first_id=100))
        for first in (0, 4, 8):
            mirror.insert_online(transitions_of(4, first_id=first), first_step=first)
        assert contents(mirror) == [100, 101, 8, 9, 10, 11]

    def test_of_a_trajectory_longer_than_the_capacity_the_end_is_kept_until_the_next_comes(self) -> None:
        mirror = make_mirror(capacity=4)
        mirror.insert_online(transitions_of(7), first_step=0)
        assert contents(mirror) == [3, 4, 5, 6]
        assert mirror.check_valid() is None
        mirror.insert_online(transitions_of(2, first_id=7), first_step=7)
        assert contents(mirror) == [7, 8]
        assert mirror.check_valid() is None

    def test_a_quarantined_entry_leaves_a_gap_in_the_positions_and_nothing_else(self) -> None:
        mirror = make_mirror(capacity=10)
        mirror.insert_online(transitions_of(3), first_step=0)
        mirror.insert_online(transitions_of(2, first_id=8), first_step=8)  # five steps were taken out
        assert contents(mirror) == [0, 1, 2, 8, 9]

    def test_a_loss_behind_a_quarantined_entry_takes_back_only_what_was_lost(self) -> None:
        mirror = make_mirror(capacity=20)
        mirror.insert_online(transitions_of(3), first_step=0)
        mirror.insert_online(transitions_of(2, first_id=8), first_step=8)  # five steps were taken out
        mirror.insert_online(transitions_of(4, first_id=20), first_step=3)  # Redis fell back to its first entry
        assert contents(mirror) == [0, 1, 2, 20, 21, 22, 23]

    def test_refuses_more_seed_data_than_it_was_made_for(self) -> None:
        mirror = make_mirror(seed_steps=4)
        mirror.insert_seed(transitions_of(3))
        with pytest.raises(ValueError, match="expected 4 seed transitions in all, got at least 5"):
            mirror.insert_seed(transitions_of(2))

    def test_is_not_changed_through_the_arrays_that_it_was_given(self) -> None:
        mirror = make_mirror(capacity=5)
        trajectory = make_trajectory(3)
        mirror.insert_online(n_step_transitions(trajectory, n_step=1, discount=0.5, use_terminals=False), first_step=0)
        trajectory.observations[:] = 99.0
        trajectory.actions[:] = 99.0
        trajectory.rewards[:] = 99.0
        assert contents(mirror) == [0, 1, 2]


def filled(*, seed_steps: int, online_steps: int) -> ReplayMirror:
    """Online ids are 0, 1, ...; seed ids begin at 1000. The ring has gone round, so rows are not in order."""
    mirror = make_mirror(seed_steps=seed_steps, capacity=max(1, online_steps))
    if seed_steps:
        mirror.insert_seed(transitions_of(seed_steps, first_id=1000))
    if online_steps:
        mirror.insert_online(transitions_of(online_steps // 2 + 1, first_id=500), first_step=0)
        mirror.insert_online(transitions_of(online_steps, first_id=0), first_step=online_steps // 2 + 1)
    return mirror


class TestSample:
    def test_draws_uniformly_from_seed_and_online_data_together(self) -> None:
        mirror = filled(seed_steps=30, online_steps=50)
        draws = 80_000
        batch = mirror.sample(draws, torch.Generator().manual_seed(0), offline_fraction=None)
        ids, counts = np.unique(batch.rewards.numpy(), return_counts=True)
        assert ids.tolist() == [*range(50), *range(1000, 1030)]
        expected = draws / 80
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # With the seed fixed this passes always or never; over random seeds a fair sampler would exceed 154, the
        # chi-square quantile of 79 degrees of freedom, once in a million. One row drawn 25 % too often adds 60.
        assert chi_square < 154.0

    @pytest.mark.parametrize(
        ("batch_size", "offline_fraction", "from_seed"),
        [(100, 0.5, 50), (100, 0.0, 0), (100, 1.0, 100), (7, 0.25, 2), (1024, 0.1, 102), (3, 0.5, 2), (1, 0.4, 0)],
    )
    def test_takes_exactly_the_offline_fraction(self, batch_size: int, offline_fraction: float, from_seed: int) -> None:
        mirror = filled(seed_steps=30, online_steps=50)
        for seed in range(5):
            draw = torch.Generator().manual_seed(seed)
            batch = mirror.sample(batch_size, draw, offline_fraction=offline_fraction)
            assert len(batch.rewards) == batch_size
            assert int((batch.rewards >= 1000).sum()) == from_seed

    def test_draws_uniformly_within_each_side_of_the_fraction(self) -> None:
        mirror = filled(seed_steps=4, online_steps=10)
        batch = mirror.sample(40_000, torch.Generator().manual_seed(1), offline_fraction=0.5)
        ids, counts = np.unique(batch.rewards.numpy(), return_counts=True)
        assert ids.tolist() == [*range(10), *range(1000, 1004)]
        # Five standard deviations: over random seeds one of the 14 counts falls outside 8 times in a million.
        np.testing.assert_allclose(counts[:10], 2_000, atol=5 * (20_000 * 0.1 * 0.9) ** 0.5)
        np.testing.assert_allclose(counts[10:], 5_000, atol=5 * (20_000 * 0.25 * 0.75) ** 0.5)

    @pytest.mark.parametrize("offline_fraction", [None, 0.5])
    @pytest.mark.parametrize(("seed_steps", "online_steps"), [(5, 0), (0, 5)])
    def test_takes_the_whole_batch_from_one_side_while_the_other_is_empty(
        self, seed_steps: int, online_steps: int, offline_fraction: float | None
    ) -> None:
        mirror = filled(seed_steps=seed_steps, online_steps=online_steps)
        batch = mirror.sample(200, torch.Generator().manual_seed(0), offline_fraction=offline_fraction)
        first = 1000 if seed_steps else 0
        assert set(batch.rewards.tolist()) == set(range(first, first + 5))

    def test_is_a_function_of_the_generator(self) -> None:
        mirror = filled(seed_steps=30, online_steps=50)
        one, same, other = (
            mirror.sample(64, torch.Generator().manual_seed(seed), offline_fraction=None).rewards for seed in (7, 7, 8)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_refuses_an_empty_mirror(self) -> None:
        with pytest.raises(ValueError, match="the mirror is empty"):
            make_mirror().sample(1, torch.Generator(), offline_fraction=None)
