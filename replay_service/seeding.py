"""Fill the seed stream from an offline dataset, exactly once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from replay_service import wire
from replay_service.datasets import Episode, OfflineDataset
from replay_service.errors import DatasetError
from replay_service.experience import SEED_ACTOR_ID, Origin, Trajectory
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient

_EPISODES_A_ROUND_TRIP = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SeedInfo:
    """What the seed stream holds."""

    fingerprint: str
    """Of the dataset; '' when the run has none."""
    steps: int
    episodes: int


def seed_info(client: RedisClient, keys: Keys) -> SeedInfo | None:
    """What the completely filled seed stream holds, or None while it is not complete."""
    values = client.hgetall(keys.seed_info)
    if values.get(b"complete") != b"1":
        return None
    return SeedInfo(values[b"fingerprint"].decode(), int(values[b"steps"]), int(values[b"episodes"]))


def seed(client: RedisClient, keys: Keys, dataset: OfflineDataset | None) -> SeedInfo:
    """Write a dataset into the seed stream; a second call with the same dataset does nothing.

    A seeding that was interrupted is begun again from an empty stream, so no transition is ever doubled.

    Args:
        client: the run's Redis.
        keys: the run's keys.
        dataset: None for a run that starts with an empty buffer.

    Raises:
        DatasetError: the stream holds another dataset.
    """
    fingerprint = dataset.fingerprint if dataset else ""
    present = seed_info(client, keys)
    if present is not None:
        if present.fingerprint != fingerprint:
            raise DatasetError(
                f"this run was seeded with dataset {present.fingerprint or '(none)'}, now {fingerprint or '(none)'} is "
                "given: a run keeps its dataset; choose another run directory"
            )
        return present
    client.delete(keys.seed, keys.seed_info)
    episodes = dataset.episodes if dataset else ()
    first = 0
    for begin in range(0, len(episodes), _EPISODES_A_ROUND_TRIP):
        with client.pipeline(transaction=False) as pipe:
            for index in range(begin, min(begin + _EPISODES_A_ROUND_TRIP, len(episodes))):
                trajectory = _trajectory(episodes[index], index)
                fields = {"a": SEED_ACTOR_ID, "e": 0, "s": index, "n": trajectory.num_steps, "f": first}
                pipe.xadd(keys.seed, {**fields, "m": wire.encode_trajectory(trajectory)})
                first += trajectory.num_steps
            pipe.execute()
    info = SeedInfo(fingerprint, first, len(episodes))
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(
            keys.seed_info,
            mapping={"fingerprint": fingerprint, "steps": info.steps, "episodes": info.episodes, "complete": 1},
        )
        pipe.hset(keys.run, "seed_steps", info.steps)
        pipe.execute()
    _log.info("seeded %d transitions of %d episodes", info.steps, info.episodes)
    return info


def _trajectory(episode: Episode, index: int) -> Trajectory:
    return Trajectory(
        observations=episode.observations,
        actions=episode.actions,
        rewards=episode.rewards,
        terminated=episode.terminated,
        truncated=episode.truncated,
        origin=Origin(SEED_ACTOR_ID, 0, index, 0, index, 0),
    )
