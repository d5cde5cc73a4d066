"""A turn depends on run seed, actor and turn alone, and a stop leaves no piece of another length behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from actors.environment import Environment, make_environment
from actors.lockstep import play_turn
from actors.policy import NumpyPolicy
from replay_service.experience import Trajectory
from tests.actors.test_recording import load, policy_file


@pytest.fixture
def environment() -> Iterator[Environment]:
    made = make_environment("door", max_episode_steps=30)
    yield made
    made.close()


@pytest.fixture
def policy(tmp_path: Path) -> NumpyPolicy:
    return load(policy_file(tmp_path / "p", seed=0, observation_dim=39, action_dim=28))


def turn_of(
    environment: Environment,
    policy: NumpyPolicy,
    turn: int,
    *,
    actor_id: int = 1,
    steps: int = 30,
    rollout_length: int = 12,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Trajectory]:
    return [
        trajectory
        for trajectory, _outcome in play_turn(
            environment, policy, run_seed=5, actor_id=actor_id, epoch=1, turn=turn, steps=steps,
            rollout_length=rollout_length, should_stop=should_stop,
        )
    ]  # fmt: skip


def same(one: list[Trajectory], other: list[Trajectory]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a.observations, b.observations) and np.array_equal(a.actions, b.actions)
        for a, b in zip(one, other, strict=True)
    )


def test_a_turn_is_the_same_whatever_was_played_before(environment: Environment, policy: NumpyPolicy) -> None:
    first = turn_of(environment, policy, 3)
    turn_of(environment, policy, 0, actor_id=2)
    assert same(turn_of(environment, policy, 3), first)
    fresh = make_environment("door", max_episode_steps=30)
    assert same(turn_of(fresh, policy, 3), first)
    fresh.close()
    assert not same(turn_of(environment, policy, 4), first)
    assert not same(turn_of(environment, policy, 3, actor_id=0), first)


def test_pieces_follow_each_other_to_the_end_of_the_episode(environment: Environment, policy: NumpyPolicy) -> None:
    pieces = turn_of(environment, policy, 3)
    assert [p.num_steps for p in pieces] == [12, 12, 6]
    assert [p.origin.first_step for p in pieces] == [0, 12, 24]
    assert {p.origin.episode for p in pieces} == {3}
    assert [p.ends_episode for p in pieces] == [False, False, True]
    for one, following in pairwise(pieces):
        assert np.array_equal(one.observations[-1], following.observations[0])


def test_a_turn_ends_with_the_budget(environment: Environment, policy: NumpyPolicy) -> None:
    pieces = turn_of(environment, policy, 3, steps=17)
    assert [p.num_steps for p in pieces] == [12, 5]
    assert not pieces[-1].ends_episode


def test_a_stop_drops_the_piece_that_was_begun(environment: Environment, policy: NumpyPolicy) -> None:
    calls = iter(range(1000))
    pieces = turn_of(environment, policy, 3, should_stop=lambda: next(calls) >= 15)
    assert same(pieces, turn_of(environment, policy, 3)[:1])
