"""Whether the experience that a run has stored is all that its actors took: episodes are followed step by step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from launcher.run_connection import redis_of
from launcher.run_directory import RunDirectory
from replay_service.config_file import load_run_config
from replay_service.experience import ExperienceSpec, Trajectory
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.trajectory_stream import StreamEntry, TrajectoryReader


def follow_episodes(client: RedisClient, stream: str, spec: ExperienceSpec) -> Counter[int]:
    """Each trajectory goes on where its actor's last one ended, from the first step on: none that it took is missing.

    Of actors that never began a second epoch, in a stream from which nothing was evicted.

    Returns:
        Steps by actor.
    """
    steps: Counter[int] = Counter()
    newest: dict[int, Trajectory] = {}
    reader = TrajectoryReader(client, stream, spec)
    while entries := list(reader.read(count=256)):
        for entry in entries:
            assert isinstance(entry, StreamEntry)
            now = entry.trajectory
            origin, before = now.origin, newest.get(now.origin.actor_id)
            if before is None:
                assert (origin.epoch, origin.sequence, origin.episode, origin.first_step) == (1, 0, 0, 0)
            else:
                last = before.origin
                assert (origin.epoch, origin.sequence) == (1, last.sequence + 1)
                if before.truncated or before.terminated:
                    assert (origin.episode, origin.first_step) == (last.episode + 1, 0)
                else:
                    assert (origin.episode, origin.first_step) == (last.episode, last.first_step + before.num_steps)
                    assert np.array_equal(now.observations[0], before.observations[-1])
            newest[origin.actor_id] = now
            steps[origin.actor_id] += now.num_steps
    return steps


def assert_every_step_was_stored(run_dir: Path) -> None:
    """No actor of a run that is down had to begin anew, and none has left a step out."""
    directory = RunDirectory(run_dir)
    config = load_run_config(directory.config)
    for log in sorted(directory.logs.glob("*.log")):
        assert "opens a new epoch" not in log.read_text(encoding="utf-8", errors="replace"), log
    with redis_of(directory, config) as client:
        keys = Keys(config.run_id)
        state, actors = Reports(client, keys).state_and_actors()
        assert [(actor.epoch, actor.restarts) for actor in actors] == [(1, 0)] * config.actors
        found = follow_episodes(client, keys.online, config.spec)
        assert found == {actor.actor_id: actor.stored_steps for actor in actors}
        assert found.total() == state.env_steps
