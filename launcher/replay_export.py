"""Write episodes of a run's streams as a Minari dataset, to be looked at or given to `--dataset` again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actors.environment import make_environment
from launcher.replay_contents import Skipped, read_stream, stream_key
from launcher.replay_filter import ReplayFilter, worth_of
from launcher.whole_file import require_writable_beside
from replay_service.config import RunConfig
from replay_service.datasets import DatasetCard, Episode, check_minari_name, write_minari
from replay_service.episode_assembly import Stretch, assemble
from replay_service.experience import FloatArray
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.tasks import find_task


class Exported(NamedTuple):
    """What was written."""

    episodes: int
    steps: int
    incomplete: int
    """Episodes of which a part is missing: evicted, damaged, or not played to the end."""
    damaged: int
    """Messages that could not be read."""


def export_episodes(
    client: RedisClient, run: RunConfig, chosen: ReplayFilter, output: Path, *, whole_only: bool
) -> Exported:
    """Join the trajectories of each episode and write those that a filter admits.

    What is left of an incomplete episode is an episode of its own, truncated where it stops. Actions are written as
    the environment carried them out: clipped, and in its own bounds.

    Args:
        client: the run's Redis.
        run: its configuration.
        chosen: the filter, applied to episodes as a whole.
        output: Minari directory to write; its name ends in a version.
        whole_only: leave incomplete episodes out.

    Raises:
        ConfigError: the filter asks what the data cannot answer, or the output cannot be written.
        DatasetError: no episode fits, the output's name is unfit or in use, or it finds no room.
        EnvironmentUnknown: the run's environment cannot be made here; Minari wants its description.
    """
    check_minari_name(output)
    require_writable_beside(output)
    chosen.check(run)
    environment = make_environment(run.env, max_episode_steps=run.environment.max_episode_steps)
    env_spec = environment.env.spec.to_json()
    environment.close()
    skipped, incomplete = Skipped(), 0

    def episodes() -> Iterator[Episode]:
        nonlocal incomplete
        for stretch in _stretches(client, run, chosen, skipped):
            if not (whole_only and not stretch.is_whole):
                incomplete += not stretch.is_whole
                yield _as_carried_out(stretch.episode(), run)

    conditions = {name: value for name, value in asdict(chosen).items() if value not in (None, ())}
    card = DatasetCard(
        observation_dim=run.environment.observation_dim,
        action_dim=run.environment.action_dim,
        env_spec=env_spec,
        algorithm="AWAC",
        description=f"Episodes of run {run.run_id} in {run.env}, from its replay buffer; an episode of which a part "
        "is missing is truncated where it stops.",
        provenance={
            "run_id": run.run_id,
            "env": run.env,
            "preset": run.preset,
            "seed": run.seed,
            "filter": conditions,
            "whole_only": whole_only,
            "program": f"awac-online {version('awac-online')}",
        },
        action_bounds=(run.environment.action_low, run.environment.action_high),
    )
    count, steps = write_minari(output, episodes(), card)
    return Exported(count, steps, incomplete, skipped.count)


def _stretches(client: RedisClient, run: RunConfig, chosen: ReplayFilter, skipped: Skipped) -> Iterator[Stretch]:
    keys, task = Keys(run.run_id), find_task(run.env)
    for origin in chosen.streams:
        entries = read_stream(client, stream_key(keys, origin), run.spec, skipped)
        for stretch in assemble(entry.trajectory for entry in entries):
            if chosen.admits(stretch, worth_of(stretch, task)):
                yield stretch


def _as_carried_out(episode: Episode, run: RunConfig) -> Episode:
    bounded: FloatArray = np.clip(episode.actions, -1.0, 1.0)
    if run.environment.action_low:
        low = np.asarray(run.environment.action_low, dtype=np.float32)
        high = np.asarray(run.environment.action_high, dtype=np.float32)
        if not ((low == -1.0).all() and (high == 1.0).all()):  # to the last bit where nothing is to be done
            bounded = low + (bounded + np.float32(1.0)) * np.float32(0.5) * (high - low)
    return replace(episode, actions=bounded)
