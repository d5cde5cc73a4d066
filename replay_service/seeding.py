"""Fill the seed stream from an offline dataset, exactly once."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from replay_service import wire
from replay_service.datasets import Episode, OfflineDataset
from replay_service.errors import DatasetError
from replay_service.experience import SEED_ACTOR_ID, Origin, Trajectory
from replay_service.keys import Keys
from replay_service.process import WaitNotice
from replay_service.redis_client import RedisClient

_MESSAGES_A_ROUND_TRIP = 64
_MESSAGE_BYTES = 4 * 2**20
"""About how long a message of a long episode is, of the 64 MiB that the wire allows."""

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


def seed(
    client: RedisClient,
    keys: Keys,
    dataset: OfflineDataset | None,
    *,
    before_each_request: Callable[[], None] = lambda: None,
) -> SeedInfo:
    """Write a dataset into the seed stream; a second call with the same dataset does nothing.

    A seeding that was interrupted is begun again from an empty stream, so no transition is ever doubled.

    Args:
        client: the run's Redis.
        keys: the run's keys.
        dataset: None for a run that starts with an empty buffer.
        before_each_request: is called before each of the round trips that data take.

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
    # What an earlier attempt sent may come late, after its answer was given up. So nothing is deleted: entries of this
    # attempt have larger ids and drop the older ones, and Redis refuses any that come behind them.
    newest = client.xrevrange(keys.seed, count=1)
    began_ms = max(int(time.time() * 1000), 1 + int(newest[0][0].partition(b"-")[0]) if newest else 0)
    episodes = dataset.episodes if dataset else ()
    if not episodes:
        client.delete(keys.seed)
    first, trajectories = 0, _trajectories(episodes)
    notice = WaitNotice("replay service")
    while batch := list(itertools.islice(trajectories, _MESSAGES_A_ROUND_TRIP)):
        with client.pipeline(transaction=False) as pipe:
            for trajectory in batch:
                sequence, steps = trajectory.origin.sequence, trajectory.num_steps
                fields = {"a": SEED_ACTOR_ID, "e": 0, "s": sequence, "n": steps, "f": first}
                message = wire.encode_trajectory(trajectory)
                place = f"{began_ms}-{sequence + 1}"
                pipe.xadd(keys.seed, {**fields, "m": message}, id=place, minid=f"{began_ms}", approximate=False)
                first += steps
            before_each_request()
            pipe.execute()
        notice.waiting(f"the offline data to be stored, {first:,} transitions so far,")
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


def _trajectories(episodes: Iterable[Episode]) -> Iterator[Trajectory]:
    """Every episode as one message, or as several where it is very long: a file that marks no ends is one episode."""
    sequence = 0
    for index, episode in enumerate(episodes):
        total = len(episode.rewards)
        bytes_a_step = episode.observations.itemsize * (episode.observations.shape[1] + episode.actions.shape[1] + 1)
        longest = max(1, _MESSAGE_BYTES // bytes_a_step)
        for first in range(0, total, longest):
            end = min(first + longest, total)
            yield Trajectory(
                observations=episode.observations[first : end + 1],
                actions=episode.actions[first:end],
                rewards=episode.rewards[first:end],
                terminated=episode.terminated and end == total,
                truncated=episode.truncated and end == total,
                origin=Origin(SEED_ACTOR_ID, 0, sequence, 0, index, first),
            )
            sequence += 1
