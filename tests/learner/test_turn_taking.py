from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.checkpoint import Progress
from learner.turn_taking import TurnTaking
from replay_service.config import RunConfig
from replay_service.errors import AwacError, UserError
from replay_service.experience import Origin, Trajectory

EPISODE_STEPS = 20


def episode(actor_id: int, turn: int) -> Trajectory:
    return Trajectory(
        observations=np.zeros((EPISODE_STEPS + 1, 3), dtype=np.float32),
        actions=np.zeros((EPISODE_STEPS, 1), dtype=np.float32),
        rewards=np.zeros(EPISODE_STEPS, dtype=np.float32),
        terminated=False,
        truncated=True,
        origin=Origin(actor_id, 1, turn, turn + 1, episode=turn, first_step=0),
    )


class TestRetake:
    """Two actors; a checkpoint had taken in two turns, 80 environment steps."""

    def take_again(self, run: RunConfig, stream: list[tuple[int, int]]) -> tuple[Progress, list[tuple[int, int, int]]]:
        """Returns the progress, and (actor, turn, first step) of what was stored."""
        stored: list[tuple[int, int, int]] = []

        def insert(trajectory: Trajectory, first_step: int) -> None:
            stored.append((trajectory.origin.actor_id, trajectory.origin.episode, first_step))

        in_turns = replace(run, lockstep=True, actors=2, num_env_steps=100)
        turns, progress = TurnTaking(in_turns, insert), Progress(env_steps=80)
        for actor_id, turn in stream:
            turns.add(episode(actor_id, turn))
        turns.retake(progress)
        return progress, stored

    def test_stores_those_turns_in_their_order_and_none_behind_them(self, run_config: RunConfig) -> None:
        stream = [(1, 0), (0, 0), (1, 1), (1, 2), (0, 1), (0, 2)]
        progress, stored = self.take_again(run_config, stream)
        assert stored == [(0, 0, 0), (1, 0, 20), (0, 1, 40), (1, 1, 60)]
        assert progress.env_steps == 80

    def test_of_a_turn_that_the_stream_has_lost_is_an_error_that_a_restart_may_mend(
        self, run_config: RunConfig
    ) -> None:
        lost = r"taken in 80 env steps, but the stream holds only 40 of them: turn 1 is incomplete"
        with pytest.raises(AwacError, match=lost) as raised:
            self.take_again(run_config, [(0, 0), (1, 0), (0, 1)])
        # The exit code of a mistake of the user's would keep the launcher from starting the learner again.
        assert not isinstance(raised.value, UserError)
