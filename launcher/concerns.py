"""What a user should look at: judged from one snapshot, in words, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.snapshot import Snapshot
from launcher.wording import age, counted, mebibytes, percent
from replay_service.run_state import Phase
from replay_service.weights_channel import EVALUATION_BACKLOG

_MEMORY_RATIO = 0.85
_SILENT_LEARNER_S = 60.0
_OLD_WEIGHTS_S = 300.0
_DROP = 0.2
_STARVED_RATIO = 0.9
_LONG_QUEUE = 5
_LEARNED_BY_GRAD_STEPS = 1000
"""A critic that has had no gradient in so many will hardly have one later."""


def concerns(snapshot: Snapshot) -> list[str]:
    """Warnings about a run, one short line each."""
    return [*_about_redis(snapshot), *_about_actors(snapshot), *_about_learner(snapshot), *_about_results(snapshot)]


def _about_redis(snapshot: Snapshot) -> Iterator[str]:
    memory = snapshot.memory
    if memory is not None and memory.ratio is not None and memory.ratio > _MEMORY_RATIO:
        yield (
            f"Redis uses {mebibytes(memory.used_bytes)} of {mebibytes(memory.limit_bytes)} MiB; "
            "at the limit it refuses writes"
        )
    state = snapshot.state
    if state.quarantined_messages:
        messages, steps = counted(state.quarantined_messages, "message"), counted(state.quarantined_steps, "step")
        yield f"in quarantine: {messages} ({steps})"


def _about_actors(snapshot: Snapshot) -> Iterator[str]:
    state = snapshot.state
    if state.phase is not Phase.FINISHED:
        silent = [actor.actor_id for actor in snapshot.staying if not snapshot.is_alive(actor)]
        if silent:
            named = ", ".join(map(str, silent[:8])) + (", ..." if len(silent) > 8 else "")
            yield f"silent: {len(silent)} of {counted(len(snapshot.staying), 'actor')} ({named})"
    if state.actor_restarts:
        yield f"actors crashed and were replaced: {counted(state.actor_restarts, 'restart')}"


def _about_learner(snapshot: Snapshot) -> Iterator[str]:
    state, report = snapshot.state, snapshot.report
    if state.learner_restarts:
        yield f"the learner crashed and was replaced: {counted(state.learner_restarts, 'restart')}"
    if report is None or state.phase not in (Phase.PRETRAINING, Phase.ONLINE):
        return
    silence = snapshot.unix_seconds - report.unix_seconds
    if silence > _SILENT_LEARNER_S:
        yield f"the learner has not reported for {age(silence)}"
        return
    unlearned = int(report.metrics.get("unlearned_critics", 0.0))
    if unlearned and report.grad_steps >= _LEARNED_BY_GRAD_STEPS:
        yield (
            f"{counted(unlearned, 'critic')} without any gradient so far: all values at the clamp max_q; another seed, "
            "or --learner.max-q none --learner.max-target 0"
        )
    if state.phase is not Phase.ONLINE:
        return
    waiting = report.metrics.get("waiting_ratio", 0.0)
    is_collecting_first_steps = state.env_steps < state.initial_env_steps
    if waiting > _STARVED_RATIO and not is_collecting_first_steps:
        yield f"the learner is starved: it waits {percent(waiting)} of the time; more actors would help"
    weight_age = snapshot.weight_age_s(state.policy_version)
    if weight_age is not None and weight_age > _OLD_WEIGHTS_S and not is_collecting_first_steps:
        yield f"no policy was published for {age(weight_age)}"


def _about_results(snapshot: Snapshot) -> Iterator[str]:
    waiting, missed = snapshot.state.evaluations_waiting, snapshot.state.evaluations_missed
    if waiting > _LONG_QUEUE:
        dropped = f", the oldest beyond {EVALUATION_BACKLOG} are dropped" if waiting > EVALUATION_BACKLOG else ""
        yield f"{waiting} evaluations wait{dropped}; evaluate less often or over fewer episodes"
    if missed:
        yield f"{counted(missed, 'evaluation')} asked for and never made"
    handed_over = [e for e in snapshot.evaluations if e.env_steps == 0 and e.policy_version > 0]
    if not handed_over or not snapshot.evaluations:
        return
    before, now = handed_over[-1].success_any, snapshot.evaluations[-1].success_any
    if before is not None and now is not None and before - now >= _DROP:
        yield f"success fell from {percent(before)} after pretraining to {percent(now)}"
