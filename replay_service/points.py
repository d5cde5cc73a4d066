"""What a run logs over time, as points: names in groups, and all three x axes with every one of them.

group     from                     what
--------  -----------------------  ------------------------------------------------------------
eval      evaluator                success, return and length of the evaluated policy
learner   learner                  means over gradient steps; `docs/awac.md` explains each
actor     ledgers of the actors    training episodes, with exploration
replay    learner                  transitions that batches are drawn from, and their mixture
weights   service                  policy version, and how far actors are behind it
perf      learner                  rates, and the share of time that the learner waits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from replay_service.reports import ActorLedger, Evaluation, LearnerReport, staying
from replay_service.run_state import RunState

_EVALUATION_FIELDS = ("success_any", "success_final", "success_fraction", "episode_return", "episode_length")
_GROUP_OF_REPORTED = {
    "grad_steps_per_second": "perf",
    "waiting_ratio": "perf",
    "seed_transitions": "replay",
    "online_transitions": "replay",
    "offline_ratio": "replay",
}
"""Groups of what the learner reports beside the means over gradient steps, whose group is `learner`."""


@dataclass(frozen=True, slots=True)
class Point:
    """Values that belong to one moment of a run."""

    env_steps: int
    grad_steps: int
    unix_seconds: float
    values: Mapping[str, float]
    """`group/name` -> value."""


def evaluation_point(evaluation: Evaluation) -> Point:
    """An evaluation, at the steps behind the policy that was judged."""
    found = {name: getattr(evaluation, name) for name in _EVALUATION_FIELDS}
    values = {f"eval/{name}": float(value) for name, value in found.items() if value is not None}
    return Point(evaluation.env_steps, evaluation.grad_steps, evaluation.unix_seconds, values)


def learner_point(report: LearnerReport, before: LearnerReport | None) -> Point:
    """A report of the learner; env steps a second follow from the report before it."""
    values = {f"{_GROUP_OF_REPORTED.get(name, 'learner')}/{name}": value for name, value in report.metrics.items()}
    if before is not None and report.unix_seconds > before.unix_seconds and report.env_steps >= before.env_steps:
        seconds = report.unix_seconds - before.unix_seconds
        values["perf/env_steps_per_second"] = (report.env_steps - before.env_steps) / seconds
    return Point(report.env_steps, report.grad_steps, report.unix_seconds, values)


def run_point(state: RunState, actors: list[ActorLedger], *, unix_seconds: float) -> Point:
    """The run as a whole: what its actors have come to, and how far they are behind the newest policy."""
    values = {"weights/policy_version": float(state.policy_version)}
    if state.episodes:
        values["actor/success_rate"] = state.successes / state.episodes
        values["actor/episodes"] = float(state.episodes)
    present = staying(actors, state, unix_seconds=unix_seconds)
    returns = [actor.last_return for actor in present if actor.last_return is not None]
    if returns:
        values["actor/episode_return"] = sum(returns) / len(returns)
    acting = [actor.policy_version for actor in present if actor.policy_version]
    if acting:
        values["weights/policy_lag_max"] = float(state.policy_version - min(acting))
    return Point(state.env_steps, state.grad_steps, unix_seconds, values)
