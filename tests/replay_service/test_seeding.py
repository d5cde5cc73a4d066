from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis

from replay_service.datasets import Episode, OfflineDataset
from replay_service.errors import DatasetError, WireError
from replay_service.experience import SEED_ACTOR_ID, ExperienceSpec
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.run_state import RunStateStore
from replay_service.seeding import SeedInfo, seed, seed_info
from replay_service.trajectory_stream import StreamEntry, TrajectoryReader

EPISODES = 70
"""More than go into one round trip."""


def make_episode(index: int, spec: ExperienceSpec) -> Episode:
    random = np.random.default_rng(index)
    steps = 1 + index % 25  # demonstrations may be longer than the environment's 20 steps
    return Episode(
        observations=random.standard_normal((steps + 1, spec.observation_dim), dtype=np.float32),
        actions=random.standard_normal((steps, spec.action_dim), dtype=np.float32),
        rewards=random.standard_normal(steps, dtype=np.float32),
        terminated=index % 2 == 0,
        truncated=index % 2 == 1,
    )


@pytest.fixture
def dataset(spec: ExperienceSpec) -> OfflineDataset:
    return OfflineDataset(episodes=tuple(make_episode(index, spec) for index in range(EPISODES)), sources=("here",))


def total_steps(dataset: OfflineDataset) -> int:
    return sum(len(episode.rewards) for episode in dataset.episodes)


def read_all(client: RedisClient, keys: Keys, spec: ExperienceSpec) -> list[StreamEntry]:
    entries = list(TrajectoryReader(client, keys.seed, spec).read(count=1_000))
    assert all(isinstance(entry, StreamEntry) for entry in entries)
    return [entry for entry in entries if isinstance(entry, StreamEntry)]


def test_every_episode_arrives_once_unchanged_and_in_order(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, spec: ExperienceSpec, dataset: OfflineDataset
) -> None:
    info = seed(redis_client, keys, dataset)
    assert info == seed_info(redis_client, keys) == SeedInfo(dataset.fingerprint, total_steps(dataset), EPISODES)
    assert state.read().seed_steps == info.steps
    first_step = 0
    entries = read_all(redis_client, keys, spec)
    for index, (entry, episode) in enumerate(zip(entries, dataset.episodes, strict=True)):
        got = entry.trajectory
        assert (got.origin.actor_id, got.origin.sequence, entry.first_step) == (SEED_ACTOR_ID, index, first_step)
        assert np.array_equal(got.observations, episode.observations)
        assert np.array_equal(got.actions, episode.actions)
        assert np.array_equal(got.rewards, episode.rewards)
        assert (got.terminated, got.truncated) == (episode.terminated, episode.truncated)
        first_step += got.num_steps


def test_a_second_seeding_with_the_same_dataset_does_nothing(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, dataset: OfflineDataset
) -> None:
    first = seed(redis_client, keys, dataset)
    before = redis_client.xrange(keys.seed)
    assert seed(redis_client, keys, dataset) == first
    assert redis_client.xrange(keys.seed) == before


def test_another_dataset_is_refused_and_the_first_one_stays(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, dataset: OfflineDataset
) -> None:
    first = seed(redis_client, keys, dataset)
    for other in (replace(dataset, episodes=dataset.episodes[1:]), None):
        with pytest.raises(DatasetError, match=f"seeded with dataset {dataset.fingerprint}, now"):
            seed(redis_client, keys, other)
    assert seed_info(redis_client, keys) == first
    assert redis_client.xlen(keys.seed) == EPISODES


def test_an_interrupted_seeding_is_begun_again_from_an_empty_stream(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, spec: ExperienceSpec, dataset: OfflineDataset
) -> None:
    doubles: Any = dataset.episodes[-1].rewards.astype(np.float64)
    broken = replace(dataset.episodes[-1], rewards=doubles)  # fails in the second round trip
    with pytest.raises(WireError):
        seed(redis_client, keys, replace(dataset, episodes=(*dataset.episodes[:-1], broken)))
    assert redis_client.xlen(keys.seed) == 64
    assert seed_info(redis_client, keys) is None
    seed(redis_client, keys, dataset)
    assert [entry.trajectory.origin.sequence for entry in read_all(redis_client, keys, spec)] == list(range(EPISODES))
    assert state.read().seed_steps == total_steps(dataset)


def test_what_an_earlier_attempt_sent_and_comes_late_is_refused(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, spec: ExperienceSpec, dataset: OfflineDataset
) -> None:
    doubles: Any = dataset.episodes[-1].rewards.astype(np.float64)
    broken = replace(dataset.episodes[-1], rewards=doubles)
    with pytest.raises(WireError):
        seed(redis_client, keys, replace(dataset, episodes=(*dataset.episodes[:-1], broken)))
    newest = redis_client.xrevrange(keys.seed, count=1)[0][0].decode()
    began, _, number = newest.partition("-")
    seed(redis_client, keys, dataset)
    with pytest.raises(redis.exceptions.ResponseError, match="equal or smaller"):
        redis_client.xadd(keys.seed, {"m": b"late"}, id=f"{began}-{int(number) + 1}")
    assert len(read_all(redis_client, keys, spec)) == EPISODES


def test_a_first_request_that_was_given_up_and_comes_after_the_end_changes_nothing(
    state: RunStateStore, redis_client: Any, keys: Keys, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_its_way: list[Any] = []

    def give_up(pipe: Any) -> None:
        on_its_way.extend(words for words, _options in pipe.command_stack)
        raise redis.exceptions.TimeoutError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(redis.client.Pipeline, "execute", give_up)
        with pytest.raises(redis.exceptions.TimeoutError):
            seed(redis_client, keys, dataset)
    time.sleep(0.01)
    info = seed(redis_client, keys, dataset)
    before = redis_client.xrange(keys.seed)
    assert on_its_way
    for words in on_its_way:
        with pytest.raises(redis.exceptions.ResponseError, match="equal or smaller"):
            redis_client.execute_command(*words)
    assert redis_client.xrange(keys.seed) == before
    assert seed_info(redis_client, keys) == info


def test_a_run_without_a_dataset_is_complete_with_nothing(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, dataset: OfflineDataset
) -> None:
    assert seed_info(redis_client, keys) is None
    assert seed(redis_client, keys, None) == SeedInfo("", 0, 0)
    assert seed(redis_client, keys, None) == seed_info(redis_client, keys) == SeedInfo("", 0, 0)
    assert redis_client.xlen(keys.seed) == 0
    with pytest.raises(DatasetError, match=rf"seeded with dataset \(none\), now {dataset.fingerprint}"):
        seed(redis_client, keys, dataset)


def test_a_very_long_episode_travels_in_several_messages_and_ends_but_once(
    state: RunStateStore, redis_client: RedisClient, keys: Keys, spec: ExperienceSpec
) -> None:
    steps = 400_000  # 4 * (observation + action + 1) bytes each
    random = np.random.default_rng(0)
    long = Episode(
        observations=random.standard_normal((steps + 1, spec.observation_dim), dtype=np.float32),
        actions=random.standard_normal((steps, spec.action_dim), dtype=np.float32),
        rewards=random.standard_normal(steps, dtype=np.float32),
        terminated=False,
        truncated=True,
    )
    info = seed(redis_client, keys, OfflineDataset(episodes=(long, make_episode(3, spec)), sources=("here",)))
    assert (info.steps, info.episodes) == (steps + 4, 2)
    *parts, last = read_all(redis_client, keys, spec)
    assert len(parts) > 1
    assert (last.trajectory.origin.episode, last.trajectory.num_steps) == (1, 4)
    assert [part.trajectory.truncated for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.trajectory.origin.sequence for part in parts] == list(range(len(parts)))
    found = np.concatenate([part.trajectory.observations[:-1] for part in parts])
    np.testing.assert_array_equal(found, long.observations[:-1])
    np.testing.assert_array_equal(np.concatenate([part.trajectory.actions for part in parts]), long.actions)
    for one, other in itertools.pairwise(parts):
        np.testing.assert_array_equal(one.trajectory.observations[-1], other.trajectory.observations[0])
        assert other.trajectory.origin.first_step == one.trajectory.origin.first_step + one.trajectory.num_steps
