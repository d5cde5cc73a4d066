"""Judge a policy: its mean action, on fixed seeds, by every success metric in use. Pure but for the environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actors.environment import Environment, Step
from actors.policy import NumpyPolicy


@dataclass(frozen=True, slots=True)
class EpisodeScore:
    """One evaluation episode."""

    episode_return: float
    length: int
    success_steps: int | None
    """Steps at which the goal was met; None when the environment has no notion of it."""
    success_final: bool | None
    """Whether the goal was met at the last step."""


@dataclass(frozen=True, slots=True)
class Score:
    """Means over the episodes of an evaluation; None where the environment has no success."""

    success_any: float | None
    """Share of episodes in which the goal was met at any step (Cal-QL, WSRL)."""
    success_final: float | None
    """Share of episodes in which the goal was met at the last step (rlkit's `final/goal_achieved`)."""
    success_fraction: float | None
    """Share of all steps at which the goal was met (RLPD, JSRL)."""
    episode_return: float
    episode_length: float


def run_episode(
    environment: Environment, policy: NumpyPolicy, seed: int, watch: Callable[[Step | None], None] = lambda _step: None
) -> EpisodeScore:
    """Play one episode with the mean action from a seeded start.

    Args:
        environment: where.
        policy: who.
        seed: of the start.
        watch: called after the reset with None, and after each step with it; a film looks at the environment there.
    """
    observation = environment.reset(seed=seed)
    watch(None)
    total, length, success_steps = 0.0, 0, 0
    while True:
        step = environment.step(policy.mean(observation))
        watch(step)
        observation = step.observation
        total += step.reward
        length += 1
        success_steps += bool(step.success)
        if step.terminated or step.truncated:
            known = step.success is not None
            return EpisodeScore(total, length, success_steps if known else None, step.success)


def evaluate(
    environment: Environment,
    policy: NumpyPolicy,
    *,
    episodes: int,
    first_seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Score | None:
    """Play `episodes` episodes with seeds `first_seed`, `first_seed + 1`, ...

    Returns:
        The means, or None when a stop was asked for before the last episode.
    """
    scores: list[EpisodeScore] = []
    for index in range(episodes):
        if should_stop():
            return None
        scores.append(run_episode(environment, policy, first_seed + index))
    return summarise(scores)


def summarise(scores: list[EpisodeScore]) -> Score:
    """Means of the episode scores (at least one)."""
    steps = sum(score.length for score in scores)
    known = [score for score in scores if score.success_steps is not None]
    has_success = len(known) == len(scores)
    return Score(
        success_any=float(np.mean([bool(s.success_steps) for s in scores])) if has_success else None,
        success_final=float(np.mean([bool(s.success_final) for s in scores])) if has_success else None,
        success_fraction=sum(s.success_steps or 0 for s in scores) / steps if has_success else None,
        episode_return=float(np.mean([s.episode_return for s in scores])),
        episode_length=steps / len(scores),
    )
