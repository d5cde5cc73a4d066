"""A seeded run, learners of it, and a drive through its phases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from learner.config import LearnerConfig
from learner.learner import Learner
from learner.session import Session
from replay_service.config import EnvironmentConfig, ReplayConfig, RunConfig
from replay_service.connection import RedisEndpoint
from replay_service.keys import Keys
from replay_service.process import StopSignal
from replay_service.redis_client import RedisClient
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import seed
from tests.conftest import PATIENCE_S
from tests.learner.running.driving import (
    CONFIG,
    CPU,
    EPISODE_STEPS,
    Drive,
    DriveRun,
    RunningLearner,
    StartLearner,
    StopAtGradStep,
    WaitUntil,
    offline_data,
)


@pytest.fixture
def run_config(keys: Keys) -> RunConfig:
    return RunConfig(
        env="synthetic",
        dataset=("none",),
        num_offline_steps=30,
        num_env_steps=120,
        initial_env_steps=20,
        max_env_steps_ahead=30,
        rollout_length=10,
        run_id=keys.run_id,
        environment=EnvironmentConfig(max_episode_steps=EPISODE_STEPS, observation_dim=3, action_dim=2),
        replay=ReplayConfig(capacity=1_000, evict_seed=False),
    )


@pytest.fixture
def seeded_state(state: RunStateStore, redis_client: RedisClient, keys: Keys) -> RunStateStore:
    """The run as the replay service opens it: seeded, in phase `pretraining`."""
    seed(redis_client, keys, offline_data())
    state.set_phase(Phase.PRETRAINING)
    return state


@pytest.fixture
def start_learner(redis_endpoint: RedisEndpoint, run_config: RunConfig, tmp_path: Path) -> Iterator[StartLearner]:
    """Start learners of the run; all share one checkpoint folder, and none outlives the test."""
    started: list[RunningLearner] = []

    def start(
        *,
        run: RunConfig = run_config,
        config: LearnerConfig = CONFIG,
        stop_at_grad_step: int | None = None,
        checkpoint_dir: Path = tmp_path / "checkpoints",
        prepare: Callable[[Learner], None] = lambda _: None,
        exit_when_finished: bool = False,
    ) -> RunningLearner:
        stop = StopSignal() if stop_at_grad_step is None else StopAtGradStep(stop_at_grad_step)
        session = Session.open(run, config, redis_endpoint, checkpoint_dir=checkpoint_dir, device=CPU, stop=stop)
        learner = Learner(session, exit_when_finished=exit_when_finished)
        if isinstance(stop, StopAtGradStep):
            stop.state = learner.session.state
        prepare(learner)
        started.append(RunningLearner(learner, stop))
        return started[-1]

    yield start
    for running in started:
        running.stop_signal.set()
        running._thread.join(PATIENCE_S)
        running.learner.session.client.close()


@pytest.fixture
def drive(redis_client: RedisClient, wait_until: WaitUntil) -> DriveRun:
    return lambda run: Drive(redis_client, run, wait_until)
