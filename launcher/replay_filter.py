"""Which trajectories or episodes of a replay buffer a command means; light enough for the command line to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from cyclopts import Parameter

from replay_service.config import RunConfig
from replay_service.errors import ConfigError
from replay_service.tasks import Task, find_task

if TYPE_CHECKING:
    from replay_service.episode_assembly import Stretch  # brings h5py along, which takes its time to load

Origin = Literal["online", "seed"]


@dataclass(frozen=True, slots=True)
class Worth:
    """What was achieved in some consecutive steps."""

    total: float
    """Undiscounted sum of rewards."""
    success_any: bool | None
    """Whether the goal was met at any step; None when the environment does not say."""
    success_final: bool | None
    """Whether it was met at the last step."""


def worth_of(stretch: Stretch, task: Task | None) -> Worth:
    """Add up a stretch's rewards and look for the goal in its observations."""
    total = sum(float(trajectory.rewards.sum(dtype=np.float64)) for trajectory in stretch.trajectories)
    if task is None:
        return Worth(total, None, None)
    successes = [task.success(trajectory.observations[1:]) for trajectory in stretch.trajectories]
    return Worth(total, any(bool(steps.any()) for steps in successes), bool(successes[-1][-1]))


@dataclass(frozen=True, kw_only=True)
class ReplayFilter:
    """Which trajectories, or which episodes; every condition must hold."""

    origin: Literal["online", "seed", "all"] = "online"
    """From the actors, from the offline dataset, or from both."""
    actor: Annotated[tuple[int, ...], Parameter(negative="")] = ()
    """Only of these actors."""
    min_version: int | None = None
    """Only of this policy version or a later one."""
    max_version: int | None = None
    """Only of this policy version or an earlier one."""
    min_return: float | None = None
    """Only with this undiscounted return or more."""
    max_return: float | None = None
    """Only with this undiscounted return or less."""
    success: Annotated[bool | None, Parameter(negative="--failure")] = None
    """Only where the goal was met at some step; --failure: only where it never was."""

    def check(self, run: RunConfig) -> None:
        """Refuse a condition that the run's data cannot answer.

        Raises:
            ConfigError: success was asked of an environment that has none.
        """
        if self.success is not None and find_task(run.env) is None:
            raise ConfigError(f"--success, --failure: environment {run.env} does not say what success is")

    @property
    def streams(self) -> tuple[Origin, ...]:
        """Streams to read, in order."""
        return ("seed", "online") if self.origin == "all" else (self.origin,)

    def admits(self, stretch: Stretch, worth: Worth) -> bool:
        """Whether all conditions hold; a stretch of several policy versions must lie in the range with each."""
        versions = [trajectory.origin.policy_version for trajectory in stretch.trajectories]
        return (
            (not self.actor or stretch.trajectories[0].origin.actor_id in self.actor)
            and (self.min_version is None or min(versions) >= self.min_version)
            and (self.max_version is None or max(versions) <= self.max_version)
            and (self.min_return is None or worth.total >= self.min_return)
            and (self.max_return is None or worth.total <= self.max_return)
            and (self.success is None or worth.success_any is self.success)
        )
