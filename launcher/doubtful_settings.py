"""Settings that are in order each by itself and together do not do what they say: told before a run begins."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.experiment import ExperimentConfig
from learner.config import LearnerConfig
from replay_service.config import RunConfig
from replay_service.service import resolve_sources
from replay_service.tasks import find_task

_WORTH_TELLING = 0.1
"""Share of the transitions from which shortened returns are told."""
_MEMORY_FOR_TRANSITIONS = 0.8
"""Share of Redis's memory that may be theirs; the rest goes to what it holds besides, and to how it holds it."""
_MESSAGE_BYTES = 100
"""About what a message takes in Redis besides its numbers."""


def doubts(config: ExperimentConfig) -> Iterator[str]:
    """Yield a sentence for each doubtful combination of settings; none for the presets on what they are made for."""
    run, learner = config.run, config.learner
    yield from _about_offline_data(config)
    yield from _about_memory(run)
    shortened = (learner.n_step - 1) / run.rollout_length
    if run.rollout_length < run.environment.max_episode_steps and shortened > _WORTH_TELLING:
        yield (
            f"rollout_length {run.rollout_length} with learner.n_step {learner.n_step}: no return reaches beyond the "
            f"end of a message, so {min(1.0, shortened):.0%} of the online transitions have fewer rewards before the "
            "bootstrap"
        )
    if find_task(run.env):
        worst = -1.0 / (1.0 - learner.discount) if learner.discount < 1.0 else float("-inf")
        if learner.min_target is not None and learner.min_target > 0.999 * worst:
            yield (
                f"learner.min_target {learner.min_target:g} with learner.discount {learner.discount:g}: returns down "
                f"to {worst:.4g} are possible, so targets are cut"
            )
    elif learner.max_q is not None or learner.max_target is not None:
        yield (
            "learner.max_q and learner.max_target hold values at or below "
            f"{min(bound for bound in (learner.max_q, learner.max_target) if bound is not None):g}, which is right for "
            "the rewards of the hand tasks; for rewards above 0 say none"
        )
    if run.lockstep:
        if learner.publish_every_grad_steps != LearnerConfig().publish_every_grad_steps:
            yield "learner.publish_every_grad_steps has no effect in lock-step: each turn publishes one version"
        if run.max_env_steps_ahead:
            yield "max_env_steps_ahead has no effect in lock-step: actors are one turn ahead"


def _about_memory(run: RunConfig) -> Iterator[str]:
    if run.redis_url:
        return  # its limit is the user's own affair
    steps = max(1, min(run.rollout_length, run.environment.max_episode_steps))
    observations, actions = run.environment.observation_dim, run.environment.action_dim
    message_bytes = 4 * ((steps + 1) * observations + steps * (actions + 1)) + _MESSAGE_BYTES
    kept = min(run.replay.capacity, run.num_env_steps)
    needed_mb = kept * message_bytes / steps / 2**20
    if needed_mb > _MEMORY_FOR_TRANSITIONS * run.replay.max_memory_mb:
        yield (
            f"replay.capacity {run.replay.capacity:,} with replay.max_memory_mb {run.replay.max_memory_mb:,}: "
            f"{kept:,} transitions take about {needed_mb:,.0f} MiB, and a Redis that is full refuses them, so the run "
            "would stand still"
        )


def _about_offline_data(config: ExperimentConfig) -> Iterator[str]:
    run, learner = config.run, config.learner
    if not resolve_sources(run):
        if learner.offline_fraction is not None:
            yield "learner.offline_fraction has no effect without a dataset"
        if learner.normalise_observations:
            yield "learner.normalise_observations has no effect without a dataset, whose observations give the scale"
    elif learner.offline_fraction is not None and run.replay.evict_seed:
        yield (
            f"learner.offline_fraction {learner.offline_fraction:g} with replay.evict_seed: once the buffer is full, "
            "its offline part shrinks to nothing while that share is still drawn from it; --replay.no-evict-seed "
            "keeps it"
        )
