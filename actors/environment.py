"""Make an environment and step it: the only place that imports gymnasium.

The three hand tasks pay `success - 1` with success recomputed from the observation and never terminate
(`replay_service.tasks`); any other gymnasium environment is taken as it is. The policy acts in [-1, 1]; an action
space with other bounds is reached by rescaling.
"""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay_service.config_file import nearest
from replay_service.errors import EnvironmentUnknown
from replay_service.experience import ExperienceSpec, FloatArray
from replay_service.tasks import TASKS, Task, find_task

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    # gymnasium_robotics prints notices about its own versions at import; this project pays its own rewards.
    import gymnasium
    import gymnasium_robotics

gymnasium.register_envs(gymnasium_robotics)
gymnasium.logger.min_level = gymnasium.logger.ERROR
logging.getLogger("gymnasium").setLevel(logging.ERROR)

_DEFAULT_MAX_EPISODE_STEPS = 1_000


class Step(NamedTuple):
    """What one action led to."""

    observation: FloatArray
    """(O,) float32."""
    reward: float
    terminated: bool
    truncated: bool
    success: bool | None
    """Whether the goal is met now; None when the environment does not say."""


@dataclass(slots=True)
class Environment:
    """One environment with its time limit and, for the hand tasks, its binary reward."""

    env: Any  # gymnasium types an environment by its observation and action types, unknown before make()
    spec: ExperienceSpec
    task: Task | None
    action_low: npt.NDArray[np.float64]
    action_high: npt.NDArray[np.float64]
    _policy_range: bool = field(init=False)
    """Whether the environment's bounds are the policy's own."""

    def __post_init__(self) -> None:
        self._policy_range = bool((self.action_low == -1.0).all() and (self.action_high == 1.0).all())

    def reset(self, seed: int | None = None) -> FloatArray:
        """Begin an episode; a seed also restarts the environment's own generator. Returns (O,) float32."""
        observation, _info = self.env.reset(seed=seed)
        return np.array(observation, dtype=np.float32)  # a copy: it may be the buffer of the next one

    def step(self, action: FloatArray) -> Step:
        """Take one action, (A,) in the policy's range [-1, 1]; values outside are clipped here, not in the record."""
        step = self.advance(action)
        judged = self.judge(step.observation)
        if judged is None:
            return step
        rewards, successes = judged
        return step._replace(reward=float(rewards), success=bool(successes))

    def advance(self, action: FloatArray) -> Step:
        """The same without the judgement of the hand tasks, which `judge` passes on many observations at once."""
        bounded = np.minimum(np.maximum(action, -1.0), 1.0).astype(np.float64)
        if not self._policy_range:
            bounded = self.action_low + (bounded + 1.0) * 0.5 * (self.action_high - self.action_low)
        raw, reward, terminated, truncated, info = self.env.step(bounded)
        observation = np.array(raw, dtype=np.float32)  # a copy, as in `reset`
        if self.task is not None:
            return Step(observation, 0.0, False, bool(truncated), None)
        success = bool(info["success"]) if "success" in info else None
        return Step(observation, float(reward), bool(terminated), bool(truncated and not terminated), success)

    def judge(self, observations: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]] | None:
        """Rewards (...) float32 and successes (...) of the steps that led to observations (..., O).

        From the float32 observations, so that the stored data and the reward never disagree. None when the
        environment pays its own rewards: `advance` has told them.
        """
        if self.task is None:
            return None
        return self.task.rewards(observations), self.task.success(observations)

    def render(self) -> npt.NDArray[np.uint8]:
        """Draw it as it is now: (height, width, 3). It must have been made with `render_mode="rgb_array"`.

        Raises:
            EnvironmentUnknown: it draws nothing, or needs a package for it that is not installed.
        """
        modes = self.env.metadata.get("render_modes") or []
        if "rgb_array" not in modes:
            raise EnvironmentUnknown(f"environment {self.spec.env} has no picture: it draws {modes or 'nothing'}")
        try:
            return np.asarray(self.env.render(), dtype=np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise EnvironmentUnknown(f"environment {self.spec.env} cannot be drawn: {error}") from error

    def close(self) -> None:
        """Free the environment."""
        self.env.close()


def make_environment(env: str, *, max_episode_steps: int = 0, render_mode: str | None = None) -> Environment:
    """Make the environment of a task or a gymnasium id.

    Args:
        env: pen, door, relocate, or a gymnasium id.
        max_episode_steps: time limit in steps; 0 takes the environment's own.
        render_mode: of gymnasium, for an environment that is filmed; None never loads a renderer.

    Raises:
        EnvironmentUnknown: there is no such environment, it cannot be made, or its spaces are not flat boxes.
    """
    task = find_task(env)
    time_limit = max_episode_steps or (task.max_episode_steps if task else None)
    made = _make(task.env_id if task else env, time_limit, render_mode)
    observation_dim = _flat_box(made.observation_space, f"{env}: observation space")
    action_dim = _flat_box(made.action_space, f"{env}: action space")
    low, high = made.action_space.low.astype(np.float64), made.action_space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise EnvironmentUnknown(f"{env}: expected an action space with finite bounds, got {made.action_space}")
    spec = ExperienceSpec(env, observation_dim, action_dim, made.spec.max_episode_steps)
    return Environment(made, spec, task, low, high)


def _make(env_id: str, max_episode_steps: int | None, render_mode: str | None) -> Any:
    """An environment with a time limit: the given one, else its own, else the default."""
    try:
        # An environment need not know the argument, so it is passed only when it is wanted.
        options = {} if render_mode is None else {"render_mode": render_mode}
        made = gymnasium.make(env_id, disable_env_checker=True, max_episode_steps=max_episode_steps, **options)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise EnvironmentUnknown(f"environment {env_id!r} needs a package that is not installed: {error}") from error
    except gymnasium.error.Error as error:
        known = [*TASKS, *gymnasium.registry]
        raise EnvironmentUnknown(
            f"unknown environment {env_id!r} ({error}).{nearest(env_id, known)} "
            f"Expected one of {', '.join(TASKS)}, or a gymnasium id such as Pendulum-v1"
        ) from error
    except Exception as error:
        # Its own constructor failed, with whatever its authors raise.
        raise EnvironmentUnknown(f"environment {env_id!r} cannot be made: {type(error).__name__}: {error}") from error
    assert made.spec is not None
    if made.spec.max_episode_steps is None:
        return gymnasium.wrappers.TimeLimit(made, _DEFAULT_MAX_EPISODE_STEPS)
    return made


def _flat_box(space: Any, name: str) -> int:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise EnvironmentUnknown(f"{name}: expected a one-dimensional Box, got {space}")
    return int(space.shape[0])
