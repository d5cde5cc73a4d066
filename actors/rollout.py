"""Collect trajectories: the loop of environment and policy. Knows neither Redis nor metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from actors.environment import Environment
from actors.policy import NumpyPolicy
from replay_service.experience import FloatArray, Origin, Trajectory
from replay_service.trajectory_stream import EpisodeOutcome


class Rollout:
    """An episode in progress, from which trajectories are cut.

    A trajectory never crosses the end of an episode and is the work of one policy version; the next one begins where
    it stopped.
    """

    def __init__(
        self,
        environment: Environment,
        generator: np.random.Generator,
        *,
        actor_id: int,
        epoch: int,
        first_episode: int = 0,
        first_sequence: int = 0,
    ) -> None:
        self._environment = environment
        self._generator = generator
        self._actor_id = actor_id
        self._epoch = epoch
        self._sequence = first_sequence
        self._episode = first_episode
        self._step_in_episode = 0
        self._return = 0.0
        self._success: bool | None = None
        self._observation = environment.reset(seed=int(generator.integers(2**31)))

    def collect(
        self, policy: NumpyPolicy, max_steps: int, should_stop: Callable[[], bool]
    ) -> tuple[Trajectory, EpisodeOutcome | None]:
        """Take up to `max_steps` steps with sampled actions.

        Args:
            policy: acts in all of them.
            max_steps: upper bound, at least 1.
            should_stop: looked at before each step but the first; a true answer cuts the trajectory there.

        Returns:
            The trajectory, and the outcome of the episode when it ended with it.
        """
        action_dim = self._environment.spec.action_dim
        noise = self._generator.standard_normal((max_steps, action_dim), dtype=np.float32)
        observations: list[FloatArray] = [self._observation]
        actions: list[FloatArray] = []
        rewards: list[float] = []
        successes: list[bool | None] = []
        first_step = self._step_in_episode
        terminated = truncated = False
        for row in noise:
            action = policy.act(self._observation, row)
            step = self._environment.advance(action)
            self._observation = step.observation
            observations.append(step.observation)
            actions.append(action)
            rewards.append(step.reward)
            successes.append(step.success)
            terminated, truncated = step.terminated, step.truncated
            if terminated or truncated or should_stop():
                break
        stacked = np.stack(observations)
        paid = np.asarray(rewards, dtype=np.float32)
        judged = self._environment.judge(stacked[1:])
        if judged is not None:
            paid, successes = judged[0], judged[1].tolist()
        self._note(paid if judged is not None else rewards, successes)
        trajectory = Trajectory(
            observations=stacked,
            actions=np.stack(actions),
            rewards=paid,
            terminated=terminated,
            truncated=truncated,
            origin=Origin(self._actor_id, self._epoch, self._sequence, policy.version, self._episode, first_step),
        )
        self._sequence += 1
        return trajectory, self._close_episode() if trajectory.ends_episode else None

    def _note(self, rewards: Iterable[float], successes: Sequence[bool | None]) -> None:
        self._step_in_episode += len(successes)
        for reward in rewards:  # one after the other: a return must not depend on how an episode was cut
            self._return += float(reward)
        known = [success for success in successes if success is not None]
        if known:
            self._success = bool(self._success) or any(known)

    def _close_episode(self) -> EpisodeOutcome:
        outcome = EpisodeOutcome(self._return, self._success)
        self._episode += 1
        self._step_in_episode = 0
        self._return = 0.0
        self._success = None
        self._observation = self._environment.reset()
        return outcome
