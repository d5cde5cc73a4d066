"""The paper's three binary tasks: which environment, which horizon, and what counts as success.

Success is recomputed from the observation, with the thresholds of the AWAC authors' environments
(`hand_manipulation_suite/{pen,door,relocate}_v0.py` in anair13/mj_envs); the reward is `success - 1`, paid at every
step, with no termination, so a solved episode must hold its goal. The observation layouts are those of
`gymnasium_robotics` 1.4 (`AdroitHand*-v1`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replay_service.experience import FloatArray

AnyFloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

_PEN_POSITION_TOLERANCE_M = 0.075
_PEN_MIN_ALIGNMENT = 0.95
_DOOR_MIN_HINGE_RAD = 1.35
_RELOCATE_TOLERANCE_M = 0.1


def _pen_success(observations: AnyFloatArray) -> BoolArray:
    distance = np.linalg.norm(observations[..., 39:42], axis=-1)
    alignment = np.sum(observations[..., 33:36] * observations[..., 36:39], axis=-1)
    return np.asarray((distance < _PEN_POSITION_TOLERANCE_M) & (alignment > _PEN_MIN_ALIGNMENT))


def _door_success(observations: AnyFloatArray) -> BoolArray:
    return np.asarray(observations[..., 28] >= _DOOR_MIN_HINGE_RAD)


def _relocate_success(observations: AnyFloatArray) -> BoolArray:
    return np.asarray(np.linalg.norm(observations[..., 36:39], axis=-1) < _RELOCATE_TOLERANCE_M)


@dataclass(frozen=True, slots=True)
class Task:
    """One binary hand task."""

    name: str
    env_id: str
    """gymnasium id of the environment."""
    observation_dim: int
    action_dim: int
    max_episode_steps: int
    success: Callable[[AnyFloatArray], BoolArray]
    """(..., O) observations -> (...) whether the goal is met there."""

    def rewards(self, observations: AnyFloatArray) -> FloatArray:
        """Binary rewards of the steps that led to `observations` (T, O): (T,) float32, 0 on success, else -1."""
        return np.asarray(self.success(observations), dtype=np.float32) - np.float32(1.0)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("pen", "AdroitHandPen-v1", 45, 24, 200, _pen_success),
        Task("door", "AdroitHandDoor-v1", 39, 28, 200, _door_success),
        Task("relocate", "AdroitHandRelocate-v1", 39, 30, 200, _relocate_success),
    )
}


def find_task(env: str) -> Task | None:
    """The binary task of that name, or None when `env` is an ordinary gymnasium id.

    Only the short names select the binary tasks: `AdroitHandPen-v1` is the package's own dense task.
    """
    return TASKS.get(env)
