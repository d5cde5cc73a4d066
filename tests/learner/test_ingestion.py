"""What the mirror holds once it is filled from Redis: the transitions that the learner's settings ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.checkpoint import Progress
from learner.config import LearnerConfig
from learner.ingestion import Ingestion
from learner.startup import fill_mirror
from replay_service.config import ReplayConfig, RunConfig
from replay_service.datasets import Episode, OfflineDataset
from replay_service.errors import ConfigError
from replay_service.experience import FloatArray, Trajectory
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.seeding import SeedInfo, seed
from replay_service.trajectory_stream import TrajectoryReader, TrajectoryWriter
from tests.conftest import MakeTrajectory
from tests.learner.conftest import OpenSession

CONFIG = LearnerConfig(policy_hidden_sizes=(4,), critic_hidden_sizes=(4,), n_step=3, discount=0.5)
SEED_STEPS, CAPACITY = 12, 15


def rows_of(played: Episode | Trajectory, config: LearnerConfig) -> list[FloatArray]:
    """[s, a, R, discount, s'] of every step."""
    rows, steps = [], len(played.rewards)
    for t in range(steps):
        end = min(t + config.n_step, steps)
        reward = sum(config.discount ** (i - t) * float(played.rewards[i]) for i in range(t, end))
        is_terminal = played.terminated and end == steps
        discount = 0.0 if config.use_terminals and is_terminal else config.discount ** (end - t)
        action = played.actions[t]
        if config.clip_stored_actions:
            action = np.array([max(-1.0, min(1.0, float(a))) for a in action])
        rows.append(np.hstack([played.observations[t], action, reward, discount, played.observations[end]]))
    return rows


@pytest.mark.parametrize("evict_seed", [False, True])
@pytest.mark.parametrize(("use_terminals", "clip_stored_actions"), [(True, True), (False, False)])
def test_the_settings_reach_every_transition(
    open_session: OpenSession,
    redis_client: RedisClient,
    keys: Keys,
    run_config: RunConfig,
    writer: TrajectoryWriter,
    make_trajectory: MakeTrajectory,
    use_terminals: bool,
    clip_stored_actions: bool,
    evict_seed: bool,
) -> None:
    config = replace(CONFIG, use_terminals=use_terminals, clip_stored_actions=clip_stored_actions)
    run = replace(run_config, replay=ReplayConfig(capacity=CAPACITY, evict_seed=evict_seed))
    draw = np.random.default_rng(0)
    offline = Episode(
        observations=draw.standard_normal((SEED_STEPS + 1, 3), dtype=np.float32),
        actions=2.0 * draw.standard_normal((SEED_STEPS, 1), dtype=np.float32),
        rewards=draw.standard_normal(SEED_STEPS, dtype=np.float32),
        terminated=True,
        truncated=False,
    )
    online = [
        replace(trajectory, actions=3.0 * trajectory.actions)
        for trajectory in (make_trajectory(0, steps=5), make_trajectory(1, steps=4, terminated=True))
    ]
    played: list[Episode | Trajectory] = [offline, *online]
    assert min(np.abs(each.actions).max() for each in played) > 1.0  # or clipping would not be seen
    seeded = seed(redis_client, keys, OfflineDataset((offline,), ("synthetic",)))
    for trajectory in online:
        writer.append(trajectory, want_steps=0)

    progress = Progress()
    mirror, _ = fill_mirror(open_session(run, config), progress, seeded)
    assert progress.stream_position == 9
    expected = [row for each in played for row in rows_of(each, config)]
    if evict_seed:
        expected = expected[-CAPACITY:]
    batch = mirror.gather(mirror._rows(torch.arange(mirror.size)))
    found = np.hstack([field.numpy().reshape(len(field), -1) for field in batch])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_seeding_that_begins_anew_under_the_reader_is_not_mixed_with_the_one_before(
    open_session: OpenSession, redis_client: RedisClient, keys: Keys, run_config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("learner.ingestion._ENTRIES_A_READ", 2)
    draw = np.random.default_rng(0)
    data = OfflineDataset(
        tuple(
            Episode(
                observations=draw.standard_normal((4, 3), dtype=np.float32),
                actions=draw.uniform(-1, 1, (3, 1)).astype(np.float32),
                rewards=np.full(3, number, dtype=np.float32),
                terminated=False,
                truncated=True,
            )
            for number in range(5)
        ),
        ("synthetic",),
    )
    seeded = seed(redis_client, keys, data)
    plain_read, reads = Ingestion.read_seed, []

    def read_and_seed_again(ingestion: Ingestion, reader: TrajectoryReader) -> int:
        reads.append(plain_read(ingestion, reader))
        if len(reads) == 1:
            redis_client.delete(keys.seed_info)
            seed(redis_client, keys, data)
        return reads[-1]

    monkeypatch.setattr(Ingestion, "read_seed", read_and_seed_again)
    mirror, _ = fill_mirror(open_session(run_config, CONFIG), Progress(), seeded)
    assert reads == [6, -1, 6, 6, 3, 0]
    actions = mirror.gather(mirror._rows(torch.arange(mirror.size))).actions
    np.testing.assert_allclose(actions.numpy(), np.concatenate([e.actions for e in data.episodes]))


@pytest.mark.parametrize(("grad_steps", "raised"), [(0, ConfigError), (7, torch.OutOfMemoryError)])
def test_a_gpu_without_room_is_refused_at_the_start_and_tried_again_after_a_crash(
    open_session: OpenSession, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch,
    grad_steps: int, raised: type[Exception],
) -> None:  # fmt: skip
    def no_room(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("learner.startup.ReplayMirror", no_room)
    with pytest.raises(raised, match="CUDA out of memory"):
        fill_mirror(open_session(run_config, CONFIG), Progress(offline_grad_steps=grad_steps), SeedInfo("", 0, 0))
