"""What crosses the wire as experience: the environment's spec and trajectories.

Dimensions, here and in the whole project: B batch, T time (steps of a trajectory), O observation, A action.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

WIRE_VERSION = 2
"""Schema version of every message; a reader refuses any other."""

SEED_ACTOR_ID = -1
"""`actor_id` of trajectories that come from a dataset."""


@dataclass(frozen=True, slots=True)
class ExperienceSpec:
    """What every trajectory of a run must look like; its fingerprint travels with each append."""

    env: str
    """Task name or gymnasium id."""
    observation_dim: int
    action_dim: int
    max_episode_steps: int
    """Time limit of an episode, in environment steps; also the longest trajectory an actor may send."""

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any field or with the wire version."""
        text = json.dumps({**asdict(self), "wire_version": WIRE_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who produced a trajectory, and where it stands in that producer's sequence."""

    actor_id: int
    """Index of the actor, or `SEED_ACTOR_ID` for a dataset's trajectories."""
    epoch: int
    """Incarnation of the actor: 1 at its first registration, one more after each restart."""
    sequence: int
    """Number of the message within the epoch, from 0, without gaps."""
    policy_version: int
    """Version of the weights that chose the actions; 0 for a dataset."""
    episode: int
    """Number of the episode within the epoch, from 0; in lock-step, the turn."""
    first_step: int
    """Step within the episode at which this trajectory begins."""


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Consecutive steps of one episode, by one actor, under one policy version.

    Observations have one row more than the other arrays: the last row is the observation after the last action,
    so no `next_observations` travel. `terminated` and `truncated` speak of the last step and are never merged;
    when both are false the episode goes on in the actor's next trajectory.
    """

    observations: FloatArray
    """(T+1, O) float32."""
    actions: FloatArray
    """(T, A) float32, in the policy's range; not clipped."""
    rewards: FloatArray
    """(T,) float32."""
    terminated: bool
    """The environment reached a terminal state after the last step: do not bootstrap."""
    truncated: bool
    """The time limit cut the episode after the last step: bootstrap from the last observation."""
    origin: Origin

    @property
    def num_steps(self) -> int:
        """T, the number of environment steps."""
        return int(self.rewards.shape[0])

    @property
    def ends_episode(self) -> bool:
        """Whether the episode ends with this trajectory."""
        return self.terminated or self.truncated

    def problem(self, spec: ExperienceSpec) -> str | None:
        """Say what is wrong with this trajectory under `spec`, or None when nothing is.

        Returns:
            A sentence with what was expected and what came; it is the reason written beside a quarantined message.
        """
        steps = self.num_steps
        if steps < 1:
            return "expected at least 1 step, got 0"
        if self.origin.actor_id != SEED_ACTOR_ID and steps > spec.max_episode_steps:
            return f"expected at most {spec.max_episode_steps} steps, got {steps}"
        expected_shapes = {
            "observations": (steps + 1, spec.observation_dim),
            "actions": (steps, spec.action_dim),
            "rewards": (steps,),
        }
        for name, expected in expected_shapes.items():
            array: FloatArray = getattr(self, name)
            if array.shape != expected or array.dtype != np.float32:
                return f"{name}: expected {expected} float32, got {array.shape} {array.dtype}"
            if not np.isfinite(array).all():
                return f"{name}: expected finite values, got NaN or infinity"
        return None
