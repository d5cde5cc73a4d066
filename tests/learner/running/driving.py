"""Learners in threads, the actors that feed them, and what is looked at in their run."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from learner.checkpoint import CheckpointStore, Progress
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.networks import PublicationStamp, export_policy
from learner.update import LearnerState, make_state
from replay_service import wire
from replay_service.config import RunConfig
from replay_service.datasets import Episode, OfflineDataset
from replay_service.experience import Origin, Trajectory
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.process import StopSignal
from replay_service.rate_limiter import env_steps_allowed, updates_allowed
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter
from tests.conftest import PATIENCE_S

CPU = torch.device("cpu")
CONFIG = LearnerConfig(
    policy_hidden_sizes=(8,),
    critic_hidden_sizes=(8,),
    batch_size=16,
    offline_batch_size=8,
    publish_every_grad_steps=10,
    evaluate_every_env_steps=0,
    report_every_s=0.2,
    threads=1,
)
EPISODE_STEPS = 20
SEED_REWARD = -1.0
"""Of every offline step; the online ones pay another."""

WaitUntil = Callable[[Callable[[], bool], str], None]


def offline_data() -> OfflineDataset:
    draw = np.random.default_rng(0)
    episodes = tuple(
        Episode(
            observations=draw.standard_normal((EPISODE_STEPS + 1, 3), dtype=np.float32),
            actions=draw.uniform(-1, 1, (EPISODE_STEPS, 2)).astype(np.float32),
            rewards=np.full(EPISODE_STEPS, SEED_REWARD, dtype=np.float32),
            terminated=False,
            truncated=True,
        )
        for _ in range(3)
    )
    return OfflineDataset(episodes=episodes, sources=("synthetic",))


class RunningLearner:
    """A learner in a thread, with a stop signal of its own."""

    def __init__(self, learner: Learner, stop: StopSignal) -> None:
        self.learner = learner
        self.stop_signal = stop
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.learner.run()
        except Exception as error:
            self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end; raises what it raised."""
        self._thread.join(PATIENCE_S)
        assert not self.is_alive, "the learner did not end"
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ask for an orderly end, and wait for it."""
        self.stop_signal.set()
        self.join()


StartLearner = Callable[..., RunningLearner]


class StopAtGradStep(StopSignal):
    """A stop that comes exactly when so many gradient steps have been done."""

    def __init__(self, grad_step: int) -> None:
        super().__init__()
        self._grad_step = grad_step
        self.state: LearnerState | None = None

    def is_set(self) -> bool:
        if self.state is not None and self.state.grad_steps >= self._grad_step:
            self.set()
        return super().is_set()


class SyntheticActor:
    """An actor whose environment is a random generator: it asks for steps, and stores what it is admitted for.

    Its episodes are as long as they may be. It waits for no policy, so in lock-step its episodes lie ready for their
    turns.
    """

    def __init__(self, client: RedisClient, run: RunConfig, *, actor_id: int = 0) -> None:
        self._run = run
        self._writer = TrajectoryWriter(client, Keys(run.run_id), run.spec, actor_id=actor_id)
        self._writer.register()
        self._draw = np.random.default_rng(self._writer.epoch)
        self._sequence = self._played_steps = 0

    def request(self) -> int:
        """Steps that it may store now, of one episode."""
        left = EPISODE_STEPS - self._played_steps % EPISODE_STEPS
        return self._writer.request(min(self._run.rollout_length, left)).lease_steps

    def append(self, steps: int, *, broken: bool = False) -> None:
        rewards = np.full(steps, np.nan if broken else -0.5, dtype=np.float32)
        episode, first_step = divmod(self._played_steps, EPISODE_STEPS)
        trajectory = Trajectory(
            observations=self._draw.standard_normal((steps + 1, 3), dtype=np.float32),
            actions=self._draw.uniform(-1, 1, (steps, 2)).astype(np.float32),
            rewards=rewards,
            terminated=False,
            truncated=first_step + steps == EPISODE_STEPS,
            origin=Origin(0, self._writer.epoch, self._sequence, 1, episode, first_step),
        )
        self._writer.append(trajectory, want_steps=0)
        self._sequence += 1
        self._played_steps += steps


class Drive:
    """Acts until the run is finished, and looks at both sides of the limiter after every step."""

    def __init__(self, client: RedisClient, run: RunConfig, wait_until: WaitUntil) -> None:
        self._client = client
        self._run = run
        self._wait_until = wait_until
        self._store = RunStateStore(client, Keys(run.run_id))
        self.actor = SyntheticActor(client, run)
        self.last_state = self._store.read()

    def until_finished(self, learner: RunningLearner) -> RunState:
        return self.until(learner, lambda state: state.phase is Phase.FINISHED)

    def until_stopped(self, learner: RunningLearner) -> None:
        def step() -> bool:
            self.act()
            return not learner.is_alive

        self._wait_until(step, "the learner to stop")

    def until(self, learner: RunningLearner, done: Callable[[RunState], bool]) -> RunState:
        def step() -> bool:
            self.act()
            self.last_state = self._checked_state()
            assert learner.is_alive, f"the learner ended: {learner.error}"
            return done(self.last_state)

        self._wait_until(step, "the run to go on")
        return self.last_state

    def act(self) -> None:
        """Store whatever the limiter admits now."""
        lease = self.actor.request()
        if lease:
            self.actor.append(lease)

    def _checked_state(self) -> RunState:
        run, state = self._run, self._store.read()
        owed = updates_allowed(
            env_steps=state.env_steps,
            online_grad_steps=0,
            utd_ratio=run.utd_ratio,
            initial_env_steps=run.initial_env_steps,
        )
        assert state.online_grad_steps <= owed
        assert state.env_steps + state.leased_steps <= env_steps_allowed(
            online_grad_steps=state.online_grad_steps,
            utd_ratio=run.utd_ratio,
            initial_env_steps=run.initial_env_steps,
            tolerance=run.tolerance_env_steps,
        )
        return state


DriveRun = Callable[[RunConfig], Drive]


def weights_digest(policy: PolicyWeights | None) -> str:
    assert policy is not None
    arrays = (*policy.weights, *policy.biases, policy.log_std)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def saved(run: RunConfig, folder: Path) -> tuple[Progress, str]:
    """Progress and policy digest of the newest checkpoint."""
    state = make_state(CONFIG, run.spec, seed=12345, device=CPU)
    progress = CheckpointStore(folder, spec=run.spec, config=CONFIG).restore(state)
    assert progress is not None
    return progress, weights_digest(export_policy(state.policy, PublicationStamp(1, 0, 0, 0.0)))


def evaluation_requests(client: RedisClient, keys: Keys) -> list[PolicyWeights]:
    return [wire.decode_policy_weights(fields[b"m"]) for _, fields in client.xrange(keys.evaluation_requests)]


def count_reports(client: RedisClient, keys: Keys) -> int:
    """Reports so far; a finished learner adds one when it is up."""
    return len(list(Reports(client, keys).learner_reports()))


def wait_for_phase(state: RunStateStore, phase: Phase, wait_until: WaitUntil) -> None:
    wait_until(lambda: state.read().phase is phase, f"phase {phase}")
