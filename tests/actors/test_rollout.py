"""Rollouts in real environments: where trajectories begin and end, and what they carry."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from actors.actor import actor_generator
from actors.environment import Environment, make_environment
from actors.policy import NumpyPolicy
from actors.rollout import Rollout
from replay_service.experience import Trajectory
from replay_service.policy_weights import PolicySpec
from replay_service.trajectory_stream import EpisodeOutcome
from tests.policies import policy_weights

Collected = list[tuple[Trajectory, EpisodeOutcome | None]]


def never() -> bool:
    return False


def make_policy(environment: Environment, *, version: int = 1, bias: float = 0.0) -> NumpyPolicy:
    """A linear policy: the mean action is tanh of a small mix of observations, plus `bias`."""
    spec = PolicySpec(environment.spec.observation_dim, environment.spec.action_dim, ())
    return NumpyPolicy(policy_weights(spec, seed=version, scale=0.1, bias=bias, log_std=-1.0, version=version))


@pytest.fixture
def pendulum() -> Iterator[Environment]:
    environment = make_environment("Pendulum-v1", max_episode_steps=20)
    yield environment
    environment.close()


@pytest.fixture
def relocate() -> Iterator[Environment]:
    environment = make_environment("relocate", max_episode_steps=12)
    yield environment
    environment.close()


def start(environment: Environment, *, seed: int = 0, actor_id: int = 3, epoch: int = 2) -> Rollout:
    return Rollout(environment, actor_generator(seed, actor_id, epoch), actor_id=actor_id, epoch=epoch)


def collect(rollout: Rollout, policy: NumpyPolicy, lengths: list[int]) -> Collected:
    return [rollout.collect(policy, length, never) for length in lengths]


def assert_same(one: Trajectory, other: Trajectory) -> None:
    np.testing.assert_array_equal(one.observations, other.observations)
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.rewards, other.rewards)
    assert (one.terminated, one.truncated, one.origin) == (other.terminated, other.truncated, other.origin)


def test_trajectories_fit_the_spec_and_never_cross_the_end_of_an_episode(pendulum: Environment) -> None:
    found = collect(start(pendulum), make_policy(pendulum), [8] * 6)
    assert [t.num_steps for t, _ in found] == [8, 8, 4, 8, 8, 4]
    assert [t.problem(pendulum.spec) for t, _ in found] == [None] * 6
    assert [t.truncated for t, _ in found] == [False, False, True] * 2
    assert not any(t.terminated for t, _ in found)


def test_their_origin_says_where_they_stand(pendulum: Environment) -> None:
    rollout = start(pendulum)
    first = collect(rollout, make_policy(pendulum, version=1), [8, 8])
    later = collect(rollout, make_policy(pendulum, version=4), [8, 20])
    origins = [t.origin for t, _ in (*first, *later)]
    assert [o.sequence for o in origins] == [0, 1, 2, 3]
    assert [o.episode for o in origins] == [0, 0, 0, 1]
    assert [o.first_step for o in origins] == [0, 8, 16, 0]
    assert [o.policy_version for o in origins] == [1, 1, 4, 4]
    assert {(o.actor_id, o.epoch) for o in origins} == {(3, 2)}


def test_observations_chain_within_an_episode_and_not_across_its_end(pendulum: Environment) -> None:
    found = [t for t, _ in collect(start(pendulum), make_policy(pendulum), [7] * 9)]
    for one, other in pairwise(found):
        chained = np.array_equal(one.observations[-1], other.observations[0])
        assert chained is not one.ends_episode


def test_the_record_is_what_the_environment_did(relocate: Environment) -> None:
    trajectory, _ = start(relocate).collect(make_policy(relocate, bias=2.0), 12, never)
    assert (np.abs(trajectory.actions) > 1.0).any()  # kept as sampled; only the environment clips
    replay = make_environment("relocate", max_episode_steps=12)
    generator = actor_generator(0, 3, 2)
    np.testing.assert_array_equal(replay.reset(seed=int(generator.integers(2**31))), trajectory.observations[0])
    for t in range(12):
        step = replay.step(trajectory.actions[t])
        np.testing.assert_array_equal(step.observation, trajectory.observations[t + 1])
        assert (step.reward, step.truncated) == (trajectory.rewards[t], t == 11)
    replay.close()


def test_actions_are_samples_around_the_mean_action(pendulum: Environment) -> None:
    policy = make_policy(pendulum)
    rollout = start(pendulum)
    found = [t for t, _ in collect(rollout, policy, [20] * 50)]
    offsets = np.concatenate([t.actions - policy.mean(t.observations[:-1]) for t in found])
    # 1,000 samples with sigma = e^-1: five standard errors are 0.058 for the mean and 0.041 for the deviation.
    assert abs(float(offsets.mean())) < 0.058
    assert float(offsets.std()) == pytest.approx(np.exp(-1.0), abs=0.041)


def test_the_outcome_comes_with_the_last_trajectory_and_sums_the_whole_episode(pendulum: Environment) -> None:
    found = collect(start(pendulum), make_policy(pendulum), [8] * 6)
    assert [outcome is None for _, outcome in found] == [True, True, False] * 2
    for end in (2, 5):
        outcome = found[end][1]
        assert outcome is not None
        rewards = np.concatenate([t.rewards for t, _ in found[end - 2 : end + 1]])
        assert outcome.episode_return == pytest.approx(float(rewards.sum()), rel=1e-5)
        assert outcome.success is None  # the pendulum does not tell


def test_an_episode_succeeds_when_the_goal_was_met_at_any_step(relocate: Environment) -> None:
    rollout, policy = start(relocate), make_policy(relocate)
    assert rollout.collect(policy, 12, never)[1] == EpisodeOutcome(episode_return=-12.0, success=False)
    rollout.collect(policy, 4, never)
    env = relocate.env.unwrapped
    home = np.array(env.model.site_pos[env.target_obj_site_id])
    env.model.site_pos[env.target_obj_site_id] = env.data.xpos[env.obj_body_id]  # the goal comes to the ball
    solved, _ = rollout.collect(policy, 1, never)
    env.model.site_pos[env.target_obj_site_id] = home
    rest, outcome = rollout.collect(policy, 12, never)
    assert solved.rewards.tolist() == [0.0]
    assert rest.rewards.tolist() == [-1.0] * 7
    assert outcome == EpisodeOutcome(episode_return=-11.0, success=True)
    assert rollout.collect(policy, 12, never)[1] == EpisodeOutcome(episode_return=-12.0, success=False)


def test_a_terminal_state_ends_the_trajectory() -> None:
    environment = make_environment("InvertedPendulum-v5")
    rollout = start(environment)
    policy = make_policy(environment, bias=3.0)  # pushes to one side until the pole has fallen
    first, outcome = rollout.collect(policy, 1_000, never)
    assert (first.terminated, first.truncated) == (True, False)
    assert first.num_steps < 100
    assert outcome is not None
    second, _ = rollout.collect(policy, 1, never)
    assert (second.origin.episode, second.origin.first_step) == (1, 0)
    environment.close()


def test_a_stop_cuts_the_trajectory_after_at_least_one_step(pendulum: Environment) -> None:
    rollout, policy = start(pendulum), make_policy(pendulum)
    looks = iter([False, False, True])
    assert rollout.collect(policy, 10, lambda: next(looks))[0].num_steps == 3
    cut, outcome = rollout.collect(policy, 10, lambda: True)
    assert (cut.num_steps, cut.ends_episode, outcome) == (1, False, None)
    assert cut.origin.first_step == 3


def test_the_same_seed_gives_the_same_trajectories(pendulum: Environment) -> None:
    other_pendulum = make_environment("Pendulum-v1", max_episode_steps=20)
    runs = [collect(start(e), make_policy(e), [8] * 6) for e in (pendulum, other_pendulum)]
    for (one, one_outcome), (other, other_outcome) in zip(*runs, strict=True):
        assert_same(one, other)
        assert one_outcome == other_outcome
    other_pendulum.close()


@pytest.mark.parametrize("change", [{"seed": 1}, {"actor_id": 4}, {"epoch": 3}])
def test_seed_actor_and_epoch_each_give_another_trajectory(pendulum: Environment, change: dict[str, int]) -> None:
    policy = make_policy(pendulum)
    one, _ = start(pendulum).collect(policy, 5, never)
    other, _ = start(pendulum, **change).collect(policy, 5, never)
    assert not np.array_equal(one.observations[0], other.observations[0])
    assert not np.array_equal(one.actions, other.actions)
