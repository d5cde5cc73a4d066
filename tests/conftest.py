"""What every test may use: a private Redis, and a small run in it under a name of its own.

Nothing is ever flushed: each test has its own run id, so tests can share a server, in any order.
"""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from hypothesis import settings

from replay_service.config import EnvironmentConfig, ReplayConfig, RunConfig
from replay_service.connection import RedisEndpoint, connect
from replay_service.experience import ExperienceSpec, Origin, Trajectory
from replay_service.keys import Keys
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.redis_client import RedisClient
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.run_state import Phase, RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter
from tests.policies import policy_weights

PATIENCE_S = 120.0
"""How long a test waits for what another process or thread does. On a machine that is busy with other things a learner
has taken 38 s and an actor 87 s to come back; this bounds only what hangs."""

# A shell that starts the tests in the background makes them ignore Ctrl-C, and what they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server of this test session (of this worker, under xdist); it dies with the session."""
    running = EmbeddedRedis.start(tmp_path_factory.mktemp("redis"), server=find_server(), max_memory_mb=512)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def redis_endpoint(redis_server: EmbeddedRedis) -> RedisEndpoint:
    return redis_server.endpoint


@pytest.fixture
def redis_client(redis_endpoint: RedisEndpoint) -> Iterator[RedisClient]:
    client = connect(redis_endpoint)
    yield client
    client.close()


@pytest.fixture
def keys() -> Keys:
    """Keys of a run that no other test knows."""
    return Keys(f"test-{secrets.token_hex(8)}")


@pytest.fixture
def run_config(keys: Keys) -> RunConfig:
    """A run of a few hundred steps in an environment that every gymnasium has, with its shape filled in."""
    return RunConfig(
        env="Pendulum-v1",
        dataset=("none",),
        actors=2,
        num_offline_steps=20,
        num_env_steps=200,
        initial_env_steps=20,
        max_env_steps_ahead=40,
        rollout_length=10,
        run_id=keys.run_id,
        environment=EnvironmentConfig(max_episode_steps=20, observation_dim=3, action_dim=1),
        replay=ReplayConfig(capacity=100),
    )


@pytest.fixture
def spec(run_config: RunConfig) -> ExperienceSpec:
    return run_config.spec


@pytest.fixture
def state(redis_client: RedisClient, keys: Keys, run_config: RunConfig) -> RunStateStore:
    """The shared state of `run_config`, just initialised: phase `seeding`, all counters 0."""
    store = RunStateStore(redis_client, keys)
    store.initialise(run_config)
    return store


@pytest.fixture
def online_state(state: RunStateStore) -> RunStateStore:
    """The same in phase `online`, so that actors are admitted."""
    state.set_phase(Phase.ONLINE)
    return state


@pytest.fixture
def writer(online_state: RunStateStore, redis_client: RedisClient, keys: Keys, spec: ExperienceSpec
           ) -> TrajectoryWriter:  # fmt: skip
    """Actor 0 of the run, registered: epoch 1."""
    registered = TrajectoryWriter(redis_client, keys, spec, actor_id=0)
    registered.register()
    return registered


class MakeTrajectory(Protocol):
    """Signature of the `make_trajectory` fixture."""

    def __call__(
        self,
        sequence: int = ...,
        *,
        steps: int = ...,
        actor_id: int = ...,
        epoch: int = ...,
        policy_version: int = ...,
        terminated: bool = ...,
        truncated: bool = ...,
    ) -> Trajectory:
        """Make a trajectory that fits the run."""


@pytest.fixture
def make_trajectory(spec: ExperienceSpec) -> MakeTrajectory:
    """Make trajectories that fit the run, with contents that tell one sequence number from another."""

    def make(
        sequence: int = 0,
        *,
        steps: int = 5,
        actor_id: int = 0,
        epoch: int = 1,
        policy_version: int = 1,
        terminated: bool = False,
        truncated: bool = False,
    ) -> Trajectory:
        random = np.random.default_rng([actor_id + 1, epoch, sequence])
        return Trajectory(
            observations=random.standard_normal((steps + 1, spec.observation_dim), dtype=np.float32),
            actions=random.standard_normal((steps, spec.action_dim), dtype=np.float32),
            rewards=random.standard_normal(steps, dtype=np.float32),
            terminated=terminated,
            truncated=truncated,
            origin=Origin(actor_id, epoch, sequence, policy_version, episode=sequence, first_step=0),
        )

    return make


class MakePolicyWeights(Protocol):
    """Signature of the `make_policy_weights` fixture."""

    def __call__(self, version: int = ..., *, hidden_sizes: tuple[int, ...] = ..., env_steps: int = ...
                 ) -> PolicyWeights:  # fmt: skip
        """Make one version of a policy that fits the run."""


@pytest.fixture
def make_policy_weights(spec: ExperienceSpec) -> MakePolicyWeights:
    """Make versions of a policy that fits the run, each with other numbers."""

    def make(version: int = 1, *, hidden_sizes: tuple[int, ...] = (4, 5), env_steps: int = 0) -> PolicyWeights:
        policy_spec = PolicySpec(spec.observation_dim, spec.action_dim, hidden_sizes)
        return policy_weights(policy_spec, seed=version, version=version, env_steps=env_steps)

    return make


class WaitUntil(Protocol):
    """Signature of the `wait_until` fixture."""

    def __call__(self, condition: Callable[[], bool], what: str) -> None:
        """Return once the condition holds; fail the test when it does not come true."""


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """Wait for what another process does; a bound against hanging, never a measurement."""

    def wait(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {PATIENCE_S:.0f} s in vain: {what}")
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def process_is_running() -> Callable[[int], bool]:
    """Whether a process id belongs to a living process; one that waits to be buried by its parent is dead."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")

    def is_running(pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return status.rpartition(")")[2].split()[0] not in ("Z", "X")

    return is_running
