"""Episodes are put together from their parts exactly, whatever lies between them and whatever is missing."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay_service.episode_assembly import Stretch, assemble
from replay_service.experience import Origin, Trajectory

WIDTH = 2


def cut_episode(actor: int, episode: int, parts: list[int], *, truncated: bool = True) -> list[Trajectory]:
    """An episode with contents of its own, cut into parts of these lengths; only the last one may end it."""
    steps = sum(parts)
    draw = np.random.default_rng([actor, episode])
    observations = draw.standard_normal((steps + 1, WIDTH)).astype(np.float32)
    actions = draw.standard_normal((steps, 1)).astype(np.float32)
    rewards = draw.standard_normal(steps).astype(np.float32)
    found, first = [], 0
    for number, length in enumerate(parts):
        kept = slice(first, first + length)
        is_last = number == len(parts) - 1
        found.append(
            Trajectory(
                observations[first : first + length + 1],
                actions[kept],
                rewards[kept],
                terminated=False,
                truncated=truncated and is_last,
                origin=Origin(actor, 1, number, 1 + number, episode, first),
            )
        )
        first += length
    return found


def shape(stretch: Stretch) -> tuple[int, int, int, int, bool]:
    """Actor, episode, first step, steps, whole."""
    origin = stretch.trajectories[0].origin
    steps = sum(t.num_steps for t in stretch.trajectories)
    return origin.actor_id, origin.episode, origin.first_step, steps, stretch.is_whole


def test_the_parts_of_two_actors_are_told_apart() -> None:
    a, b = cut_episode(0, 0, [3, 2]), cut_episode(1, 0, [1, 1, 4])
    stretches = list(assemble([a[0], b[0], b[1], a[1], b[2]]))
    assert [shape(s) for s in stretches] == [(0, 0, 0, 5, True), (1, 0, 0, 6, True)]
    episode = stretches[0].episode()
    np.testing.assert_array_equal(episode.observations, np.concatenate([a[0].observations, a[1].observations[1:]]))
    np.testing.assert_array_equal(episode.actions, np.concatenate([a[0].actions, a[1].actions]))
    np.testing.assert_array_equal(episode.rewards, np.concatenate([a[0].rewards, a[1].rewards]))
    assert (episode.terminated, episode.truncated) == (False, True)


def test_a_missing_part_divides_an_episode() -> None:
    parts = cut_episode(0, 4, [2, 3, 4, 1])
    assert [shape(s) for s in assemble([parts[0], parts[2], parts[3]])] == [(0, 4, 0, 2, False), (0, 4, 5, 5, False)]
    assert [shape(s) for s in assemble(parts[1:])] == [(0, 4, 2, 8, False)]


def test_an_episode_that_stops_is_truncated_there() -> None:
    unfinished, next_one = cut_episode(0, 0, [2, 2], truncated=False), cut_episode(0, 1, [3])
    stretches = list(assemble([*unfinished, *next_one]))
    assert [shape(s) for s in stretches] == [(0, 0, 0, 4, False), (0, 1, 0, 3, True)]
    assert stretches[0].episode().truncated
    assert len(stretches[0].episode().observations) == 5


def test_a_terminated_episode_stays_one() -> None:
    (whole,) = cut_episode(0, 0, [4], truncated=False)
    (stretch,) = assemble([replace(whole, terminated=True)])
    assert stretch.is_whole
    assert (stretch.episode().terminated, stretch.episode().truncated) == (True, False)


def test_parts_of_a_new_incarnation_are_not_joined_to_the_old_one() -> None:
    first, second = cut_episode(0, 0, [2, 2])
    second = replace(second, origin=replace(second.origin, epoch=2))
    assert [shape(s)[3] for s in assemble([first, second])] == [2, 2]


def test_parts_that_do_not_meet_are_not_joined() -> None:
    first, second = cut_episode(0, 0, [2, 2])
    moved = replace(second, observations=second.observations + np.float32(1.0))
    assert [shape(s)[3] for s in assemble([first, moved])] == [2, 2]


@given(
    cuts=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_any_interleaving_of_whole_episodes_gives_each_back(cuts: list[list[int]], seed: int) -> None:
    episodes = [cut_episode(index % 3, index, parts) for index, parts in enumerate(cuts)]
    queues = {actor: [t for parts in episodes[actor::3] for t in parts] for actor in range(3)}
    order = random.Random(seed)
    stream: list[Trajectory] = []
    while any(queues.values()):
        stream.append(queues[order.choice([actor for actor, left in queues.items() if left])].pop(0))
    found = {s.trajectories[0].origin.episode: s for s in assemble(stream)}
    assert sorted(found) == list(range(len(cuts)))
    for index, parts in enumerate(episodes):
        assert found[index].is_whole
        np.testing.assert_array_equal(found[index].episode().rewards, np.concatenate([t.rewards for t in parts]))
