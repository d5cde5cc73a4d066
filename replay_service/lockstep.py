"""Lock-step: the rule by which actors and learner take turns, so that a run is the same every time.

Turn t begins when policy version t + 1 is published. Every actor plays one episode with exactly that version, from a
start and with noise that depend on (run seed, actor, turn) alone. When all episodes of the turn are stored, the
learner takes them in by actor, does the gradient steps that they owe, and publishes version t + 2. Whoever dies
repeats its part of the turn to the last bit, so a run that was killed and resumed ends in the same policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from replay_service.experience import Trajectory


def turn_of_version(policy_version: int) -> int:
    """The turn that is played with a policy version, from 0."""
    return policy_version - 1


def steps_of_turn(*, actor_id: int, env_steps: int, num_env_steps: int, max_episode_steps: int) -> int:
    """Most steps that an actor takes in a turn: an episode, as long as the budget reaches in the order of actors.

    Args:
        actor_id: from 0.
        env_steps: online steps of all turns before.
        num_env_steps: budget of the run.
        max_episode_steps: time limit of an episode.

    Returns:
        From 0 to `max_episode_steps`.
    """
    left = num_env_steps - env_steps - actor_id * max_episode_steps
    return max(0, min(max_episode_steps, left))


class Turns:
    """The learner's side: trajectories as they come in, handed on turn by turn, in the order of actors and steps.

    Args:
        actors: number of actors of the run.
        num_env_steps: budget of the run.
        max_episode_steps: time limit of an episode.
    """

    def __init__(self, *, actors: int, num_env_steps: int, max_episode_steps: int) -> None:
        self._actors = actors
        self._num_env_steps = num_env_steps
        self._max_episode_steps = max_episode_steps
        self._waiting: dict[int, dict[tuple[int, int], Trajectory]] = {}
        self.next_turn = 0

    def add(self, trajectory: Trajectory) -> None:
        """Take in one trajectory; what was played twice, after a crash of Redis, is the same and kept once."""
        origin = trajectory.origin
        if origin.episode >= self.next_turn:
            of_turn = self._waiting.setdefault(origin.episode, {})
            of_turn.setdefault((origin.actor_id, origin.first_step), trajectory)

    def missing(self, env_steps: int) -> tuple[int, ...]:
        """Actors whose episode of the next turn is not complete.

        Args:
            env_steps: online steps of all turns before.
        """
        return tuple(actor for actor in range(self._actors) if not self._is_complete(actor, env_steps))

    def take(self, env_steps: int) -> Sequence[Trajectory] | None:
        """The trajectories of the next turn, by actor and step, or None while any is missing.

        Args:
            env_steps: online steps of all turns before.
        """
        if self.missing(env_steps) or env_steps >= self._num_env_steps:
            return None
        of_turn = self._waiting.pop(self.next_turn, {})
        self.next_turn += 1
        return [of_turn[place] for place in sorted(of_turn)]

    def _is_complete(self, actor: int, env_steps: int) -> bool:
        allowed = steps_of_turn(
            actor_id=actor,
            env_steps=env_steps,
            num_env_steps=self._num_env_steps,
            max_episode_steps=self._max_episode_steps,
        )
        of_turn = self._waiting.get(self.next_turn, {})
        at = 0
        while at < allowed:
            trajectory = of_turn.get((actor, at))
            if trajectory is None:
                return False
            if trajectory.ends_episode:
                return True
            at += trajectory.num_steps
        return True
