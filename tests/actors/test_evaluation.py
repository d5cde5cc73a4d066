"""Success metrics on literal tables, and evaluations of a policy in real environments."""

from __future__ import annotations

import pytest

from actors.environment import Environment, make_environment
from actors.evaluation import EpisodeScore, Score, evaluate, run_episode, summarise
from actors.policy import NumpyPolicy
from replay_service.policy_weights import PolicySpec
from tests.policies import policy_weights


def make_policy(environment: Environment, *, log_std: float = -1.0) -> NumpyPolicy:
    spec = PolicySpec(environment.spec.observation_dim, environment.spec.action_dim, ())
    return NumpyPolicy(policy_weights(spec, scale=0.1, bias=0.0, log_std=log_std))


class TestSummarise:
    def test_a_literal_table(self) -> None:
        scores = [
            EpisodeScore(episode_return=-10.0, length=10, success_steps=0, success_final=False),
            EpisodeScore(episode_return=-4.0, length=10, success_steps=6, success_final=True),
            EpisodeScore(episode_return=-7.0, length=10, success_steps=3, success_final=False),  # met, then lost
            EpisodeScore(episode_return=-9.0, length=10, success_steps=1, success_final=True),
        ]
        assert summarise(scores) == Score(
            success_any=0.75, success_final=0.5, success_fraction=0.25, episode_return=-7.5, episode_length=10.0
        )

    def test_the_fraction_is_of_steps_and_not_a_mean_over_episodes(self) -> None:
        scores = [EpisodeScore(0.0, 1, 1, True), EpisodeScore(-9.0, 9, 0, False)]
        found = summarise(scores)
        assert (found.success_fraction, found.success_any, found.episode_length) == (0.1, 0.5, 5.0)

    def test_there_is_no_success_where_the_environment_tells_none(self) -> None:
        found = summarise([EpisodeScore(-300.0, 200, None, None), EpisodeScore(-100.0, 200, None, None)])
        assert found == Score(None, None, None, -200.0, 200.0)


class TestEvaluate:
    def test_gives_the_same_scores_for_the_same_seeds_whatever_was_played_before(self) -> None:
        first, second = (make_environment("Pendulum-v1", max_episode_steps=30) for _ in range(2))
        policy = make_policy(first)
        run_episode(second, policy, seed=99)
        scores = [evaluate(e, policy, episodes=3, first_seed=7) for e in (first, second, first)]
        assert scores[0] is not None
        assert scores[0] == scores[1] == scores[2]
        assert scores[0] != evaluate(first, policy, episodes=3, first_seed=8)
        for environment in (first, second):
            environment.close()

    def test_plays_one_seed_an_episode_from_the_first_on(self) -> None:
        environment = make_environment("Pendulum-v1", max_episode_steps=30)
        policy = make_policy(environment)
        each = [run_episode(environment, policy, seed) for seed in (7, 8, 9)]
        assert len({score.episode_return for score in each}) == 3
        assert evaluate(environment, policy, episodes=3, first_seed=7) == summarise(each)
        environment.close()

    def test_takes_the_mean_action(self) -> None:
        environment = make_environment("Pendulum-v1", max_episode_steps=30)
        policies = [make_policy(environment, log_std=log_std) for log_std in (-6.0, 2.0)]
        assert len({run_episode(environment, policy, seed=1) for policy in policies}) == 1
        environment.close()

    def test_counts_solved_steps_of_a_hand_task(self) -> None:
        environment = make_environment("pen", max_episode_steps=15)
        policy = make_policy(environment)
        # Pen targets are random: some are met from the start, by a hand that hardly moves, and most never.
        scores = [run_episode(environment, policy, seed) for seed in range(40)]
        for score in scores:
            assert score.length == 15
            assert score.success_steps == 15 + score.episode_return  # reward = success - 1
            assert score.success_final is not None
        assert {bool(score.success_steps) for score in scores} == {True, False}
        environment.close()

    def test_stops_between_episodes(self) -> None:
        environment = make_environment("Pendulum-v1", max_episode_steps=5)
        policy = make_policy(environment)
        asked = iter([False, False, True])
        assert evaluate(environment, policy, episodes=9, first_seed=0, should_stop=lambda: next(asked)) is None
        with pytest.raises(StopIteration):
            next(asked)
        environment.close()
