"""Turns are handed on complete and in order, whatever the order of arrival."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.config import EnvironmentConfig, ReplayConfig, RunConfig
from replay_service.errors import ConfigError
from replay_service.experience import Origin, Trajectory
from replay_service.lockstep import Turns, steps_of_turn

LIMIT = 10


def piece(actor: int, turn: int, first: int, steps: int, *, ends: bool) -> Trajectory:
    return Trajectory(
        observations=np.zeros((steps + 1, 1), dtype=np.float32),
        actions=np.zeros((steps, 1), dtype=np.float32),
        rewards=np.zeros(steps, dtype=np.float32),
        terminated=False,
        truncated=ends,
        origin=Origin(actor, 1, 0, turn + 1, turn, first),
    )


def played(actors: int, lengths: list[list[int]], budget: int, chunk: int) -> list[list[Trajectory]]:
    """The pieces of each turn, by actor and step, as actors make them until the budget is done."""
    turns: list[list[Trajectory]] = []
    total = 0
    for turn, of_turn in enumerate(lengths):
        pieces: list[Trajectory] = []
        for actor in range(actors):
            allowed = steps_of_turn(actor_id=actor, env_steps=total, num_env_steps=budget, max_episode_steps=LIMIT)
            length = min(allowed, of_turn[actor])
            for first in range(0, length, chunk):
                steps = min(chunk, length - first)
                ends = first + steps == of_turn[actor]
                pieces.append(piece(actor, turn, first, steps, ends=ends))
        if not pieces:
            break
        turns.append(pieces)
        total += sum(p.num_steps for p in pieces)
    return turns


@given(st.data())
def test_any_order_of_arrival_gives_the_same_turns(data: st.DataObject) -> None:
    actors = data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.lists(st.integers(1, LIMIT), min_size=actors, max_size=actors), max_size=6))
    budget, chunk = data.draw(st.integers(1, 150)), data.draw(st.integers(1, LIMIT))
    expected = played(actors, lengths, budget, chunk)
    arrivals = [p for turn in expected for p in turn]
    arrivals = data.draw(st.permutations(arrivals + data.draw(st.lists(st.sampled_from(arrivals), max_size=3)
                                                              if arrivals else st.just([]))))  # fmt: skip
    turns = Turns(actors=actors, num_env_steps=budget, max_episode_steps=LIMIT)
    total, found = 0, []
    for trajectory in arrivals:
        turns.add(trajectory)
        while (taken := turns.take(total)) is not None:
            found.append(taken)
            total += sum(p.num_steps for p in taken)
    assert [[p.origin for p in turn] for turn in found] == [[p.origin for p in turn] for turn in expected]
    assert total <= budget
    assert turns.next_turn == len(expected)


def test_names_the_actors_that_are_missing() -> None:
    turns = Turns(actors=3, num_env_steps=100, max_episode_steps=LIMIT)
    turns.add(piece(1, 0, 0, 4, ends=False))
    turns.add(piece(2, 0, 0, 7, ends=True))
    assert turns.missing(0) == (0, 1)
    turns.add(piece(1, 0, 4, 6, ends=True))
    assert turns.missing(0) == (0,)
    assert turns.missing(92) == (0,)  # eight steps are left: they are the first actor's, cut by the budget
    assert turns.missing(100) == ()


@pytest.mark.parametrize(
    ("actor", "env_steps", "expected"), [(0, 0, 10), (1, 0, 10), (2, 0, 5), (3, 0, 0), (0, 21, 4), (0, 25, 0)]
)
def test_the_budget_is_dealt_out_in_the_order_of_actors(actor: int, env_steps: int, expected: int) -> None:
    assert steps_of_turn(actor_id=actor, env_steps=env_steps, num_env_steps=25, max_episode_steps=10) == expected


def test_lockstep_needs_a_buffer_for_the_whole_run_and_has_room_for_a_turn() -> None:
    with pytest.raises(ConfigError, match=r"replay\.capacity \(with lockstep\)"):
        RunConfig(lockstep=True, num_env_steps=5_000, replay=ReplayConfig(capacity=4_000))
    config = RunConfig(
        lockstep=True, actors=7, utd_ratio=0.5, environment=EnvironmentConfig(max_episode_steps=300), rollout_length=50
    )
    assert config.tolerance_env_steps >= 7 * 300 + 2
