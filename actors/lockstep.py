"""An actor's turn in lock-step: one episode, from a start and with noise that depend on nothing but the turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from actors.environment import Environment
from actors.policy import NumpyPolicy
from actors.rollout import Rollout
from replay_service.experience import Trajectory
from replay_service.trajectory_stream import EpisodeOutcome

_TURN_STREAM = 3  # first word of the spawn key of every turn's generator


def turn_generator(run_seed: int, actor_id: int, turn: int) -> np.random.Generator:
    """The generator of one actor's turn: a function of (run seed, actor, turn) alone."""
    return np.random.default_rng(np.random.SeedSequence(run_seed, spawn_key=(_TURN_STREAM, actor_id, turn)))


def play_turn(
    environment: Environment,
    policy: NumpyPolicy,
    *,
    run_seed: int,
    actor_id: int,
    epoch: int,
    turn: int,
    steps: int,
    rollout_length: int,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Trajectory, EpisodeOutcome | None]]:
    """Play an episode and yield it in trajectories of `rollout_length` steps, or fewer at its end.

    A stop drops the trajectory that was begun: its end would otherwise depend on the moment of the stop.

    Args:
        environment: is reset.
        policy: acts in all steps.
        run_seed: of the run.
        actor_id: of this actor.
        epoch: of this incarnation; the content does not depend on it.
        turn: becomes the trajectories' episode.
        steps: most steps of the turn.
        rollout_length: most steps of a trajectory.
        should_stop: looked at in every step.
    """
    generator = turn_generator(run_seed, actor_id, turn)
    rollout = Rollout(environment, generator, actor_id=actor_id, epoch=epoch, first_episode=turn)
    left = steps
    while left > 0:
        wanted = min(rollout_length, left)
        trajectory, outcome = rollout.collect(policy, wanted, should_stop)
        if trajectory.num_steps < wanted and not trajectory.ends_episode:
            return
        left -= trajectory.num_steps
        yield trajectory, outcome
        if trajectory.ends_episode:
            return
