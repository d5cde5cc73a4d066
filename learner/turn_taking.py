"""Lockstep: what has arrived goes into the replay mirror turn by turn, in an order that does not depend on arrival."""

from __future__ import annotations

from collections.abc import Callable

from learner.checkpoint import Progress
from replay_service.config import RunConfig
from replay_service.errors import AwacError, LockstepBroken
from replay_service.experience import Trajectory
from replay_service.lockstep import Turns

_ACTORS_NAMED = 8


def refuse_missing_steps(steps: int, *, why: str) -> None:
    """End a run in lock-step that has lost environment steps: it would wait for their turn for ever.

    Args:
        steps: in quarantine.
        why: the reason that they are there for.

    Raises:
        LockstepBroken: there are any.
    """
    if steps:
        raise LockstepBroken(
            f"lock-step needs every trajectory of a turn, but {steps} env steps are in quarantine ({why}): their turn "
            "can never be completed; start over with --restart-behavior restart, which keeps the old run aside"
        )


class TurnTaking:
    """Holds trajectories back until every actor has played the turn they belong to.

    Args:
        run: whose actors and whose budget make the turns.
        insert: stores a trajectory, given the number of its first environment step.
    """

    def __init__(self, run: RunConfig, insert: Callable[[Trajectory, int], None]) -> None:
        self._insert = insert
        self._turns = Turns(
            actors=run.actors, num_env_steps=run.num_env_steps, max_episode_steps=run.spec.max_episode_steps
        )

    def add(self, trajectory: Trajectory) -> None:
        """Hold a trajectory until its turn."""
        self._turns.add(trajectory)

    def take(self, progress: Progress) -> bool:
        """Store the next turn, if every actor has played it; `env_steps` of the progress follows."""
        taken = self._turns.take(progress.env_steps)
        for trajectory in taken or ():
            self._insert(trajectory, progress.env_steps)
            progress.env_steps += trajectory.num_steps
        return taken is not None

    def retake(self, progress: Progress) -> None:
        """Store again the turns that a checkpoint had taken in; what came behind them waits for its turn.

        Raises:
            AwacError: the stream has lost some of them. No way out is named, and the exit code is that of a crash:
                actors that live send them again, and the learner that is started next may find them.
        """
        goal, progress.env_steps = progress.env_steps, 0
        while progress.env_steps < goal:
            if not self.take(progress):
                raise AwacError(
                    f"the checkpoint has taken in {goal} env steps, but the stream holds only "
                    f"{progress.env_steps} of them: turn {self.next_turn} is incomplete"
                )

    @property
    def next_turn(self) -> int:
        """Number of the turn that is taken next."""
        return self._turns.next_turn

    def awaited(self, progress: Progress) -> str:
        """What the next turn waits for, in words."""
        missing = ", ".join(str(actor) for actor in self._turns.missing(progress.env_steps)[:_ACTORS_NAMED])
        return f"the episodes of turn {self.next_turn} (actors {missing})"
