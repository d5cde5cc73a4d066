"""Snapshots of runs as they could be, for tests of what displays make of them."""

from __future__ import annotations

from dataclasses import replace

from launcher.rates import Rates
from launcher.snapshot import RedisMemory, Snapshot
from replay_service.reports import ActorLedger, Evaluation, LearnerReport
from replay_service.run_state import Phase, RunState

NOW = 1_000.0

STATE = replace(
    RunState.from_hash({}),
    phase=Phase.ONLINE,
    env_steps=42_000,
    grad_steps=45_600,
    online_grad_steps=40_600,
    initial_env_steps=1_000,
    tolerance_env_steps=1_000,
    utd_ratio=1.0,
    num_env_steps=1_000_000,
    num_offline_steps=5_000,
    policy_version=411,
    episodes=210,
    successes=126,
    seed_steps=5_000,
    retained_steps=42_000,
    leased_steps=200,
)


def evaluation(version: int, env_steps: int, success: float | None) -> Evaluation:
    return Evaluation(version, env_steps, 5_000 + env_steps, success, success, success, -80.0, 200.0, 50, 3.0, 0.0)


def actor(index: int, *, version: int = 411, seen_s: float = NOW, restarts: int = 0) -> ActorLedger:
    return ActorLedger(
        actor_id=index,
        epoch=1 + restarts,
        next_sequence=10,
        stored_steps=2_000 + index,
        duplicate_steps=0,
        quarantined_steps=0,
        lease=200,
        episodes=10,
        successes=index % 11,
        restarts=restarts,
        policy_version=version,
        last_return=-55.0,
        last_seen_ms=int(1000 * seen_s),
    )


def reports(*, seconds: int = 300, waiting: float = 0.0) -> tuple[LearnerReport, ...]:
    """One every 2 s until now, of a run at 100 steps a second on both sides."""
    metrics = {"waiting_ratio": waiting, "offline_ratio": 0.106}
    return tuple(
        LearnerReport(45_600 - 100 * ago, 42_000 - 100 * ago, NOW - ago, metrics) for ago in range(seconds, -1, -2)
    )


def snapshot(state: RunState = STATE, *, actors: int = 2, waiting: float = 0.0) -> Snapshot:
    history = reports(waiting=waiting)
    return Snapshot(
        state=state,
        report=history[-1],
        actors=[actor(index, version=411 - index % 3) for index in range(actors)],
        evaluations=[evaluation(version, 5_000 * version, 0.1 * version) for version in range(8)],
        unix_seconds=NOW,
        reports=history,
        publications={version: NOW - 1.5 * (411 - version) - 0.4 for version in range(400, 412)},
        memory=RedisMemory(312 * 2**20, 4096 * 2**20),
    )


def rates(actors: int = 2) -> Rates:
    return Rates(env_rate=100.0, grad_rate=101.0, actor_rates={index: 4.0 + index / 10 for index in range(actors)})
