"""Prometheus metrics of the replay service: the run as a whole, read from Redis at each scrape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from replay_service.keys import Keys
from replay_service.redis_client import RedisClient
from replay_service.reports import Evaluation, Reports
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.weights_channel import PublicationTimes

_COUNTERS = (
    ("awac_replay_env_steps", "appended_steps", "Online environment steps stored, later quarantined ones included."),
    ("awac_replay_episodes", "episodes", "Training episodes ended."),
    ("awac_replay_successes", "successes", "Training episodes that met the goal at any step."),
    ("awac_replay_duplicate_steps", "duplicate_steps", "Steps refused because they were stored already."),
    ("awac_replay_quarantined_steps", "quarantined_steps", "Steps taken out of the stream as malformed."),
    ("awac_replay_quarantined_messages", "quarantined_messages", "Messages put into quarantine."),
    ("awac_replay_actor_restarts", "actor_restarts", "Crashed actors that were replaced."),
    ("awac_replay_learner_restarts", "learner_restarts", "Learners that were started again after a crash."),
    ("awac_replay_evaluation_requests", "evaluations_requested", "Policy versions that the evaluator was asked for."),
    ("awac_replay_evaluations", "evaluations_done", "Requests that were evaluated, or never will be."),
    (
        "awac_replay_evaluations_missed",
        "evaluations_missed",
        "Of these, the ones dropped from a full queue or damaged.",
    ),
)
_GAUGES = (
    ("awac_replay_retained_transitions", "retained_steps", "Online transitions in the stream."),
    ("awac_replay_seed_transitions", "seed_steps", "Offline transitions in the seed stream."),
    ("awac_replay_leased_steps", "leased_steps", "Steps that actors were admitted for and have not stored."),
    ("awac_replay_grad_steps", "grad_steps", "Gradient steps as the learner last reported them."),
    ("awac_replay_policy_version", "policy_version", "Newest published policy version."),
    ("awac_replay_budget_steps", "num_env_steps", "Online environment steps that the run is given."),
    ("awac_replay_ahead_steps", "env_steps_ahead", "Environment steps that the learner owes updates for."),
    ("awac_replay_tolerance_steps", "tolerance_env_steps", "Most steps that the limiter lets actors be ahead."),
    ("awac_replay_utd_ratio_setting", "utd_ratio", "Gradient steps per environment step that the limiter holds."),
    ("awac_replay_capacity_transitions", "replay_capacity", "Online transitions that the stream may hold."),
)


@dataclass(frozen=True, slots=True)
class RunReading:
    """What one scrape shows."""

    state: RunState
    memory_bytes: int
    memory_limit_bytes: int = 0
    """0: no limit."""
    oldest_unix_seconds: float | None = None
    """When the oldest trajectory of the online stream was stored; None while there is none."""
    published_unix_seconds: float | None = None
    """When the newest policy version was published; None before the first."""
    offline_evaluation: Evaluation | None = None
    """The evaluation of the policy that was handed over to the online phase."""


class RunReader:
    """Reads a run for a scrape. Not safe for several threads at once: the collector's lock sees to it."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._state = RunStateStore(client, keys)
        self._reports = Reports(client, keys)
        self._publications = PublicationTimes(client, keys)
        self._evaluation_cursor = "0-0"
        self._offline_evaluation: Evaluation | None = None

    def read(self) -> RunReading:
        """One reading; what was read before is not read again."""
        state = self._state.read()
        memory = self._client.info("memory")
        oldest = self._client.xrange(self._keys.online, count=1)
        for cursor, evaluation in self._reports.evaluations(self._evaluation_cursor):
            self._evaluation_cursor = cursor
            if evaluation.env_steps == 0 and evaluation.policy_version > 0:
                self._offline_evaluation = evaluation
        return RunReading(
            state=state,
            memory_bytes=int(memory["used_memory"]),
            memory_limit_bytes=int(memory.get("maxmemory", 0)),
            oldest_unix_seconds=int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else None,
            published_unix_seconds=self._publications.read().get(state.policy_version),
            offline_evaluation=self._offline_evaluation,
        )


class RunCollector:
    """Turns one reading of the run into metrics."""

    def __init__(self, read: Callable[[], RunReading]) -> None:
        self._read = read
        self._lock = threading.Lock()

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering does not ask Redis."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read once and yield every metric; nothing at all while Redis does not answer."""
        try:
            with self._lock:
                reading = self._read()
        except Exception:
            return  # a scrape during an outage shows a gap, which is the truth
        yield from _metrics_of(reading)


def _metrics_of(reading: RunReading) -> Iterator[Metric]:
    state = reading.state
    for name, field, text in _COUNTERS:
        yield CounterMetricFamily(name, text, value=getattr(state, field))
    for name, field, text in _GAUGES:
        yield GaugeMetricFamily(name, text, value=getattr(state, field))
    for name, value, text in (
        ("awac_replay_redis_memory_bytes", reading.memory_bytes, "Memory that Redis uses for data."),
        (
            "awac_replay_redis_memory_limit_bytes",
            reading.memory_limit_bytes or None,
            "Memory at which Redis refuses writes; absent without a limit.",
        ),
        (
            "awac_replay_utd_ratio",
            state.measured_utd_ratio,
            "Measured online gradient steps per environment step, initial steps left out.",
        ),
        (
            "awac_replay_oldest_timestamp_seconds",
            reading.oldest_unix_seconds,
            "When the oldest online trajectory of the stream was stored, in Unix time.",
        ),
        (
            "awac_replay_policy_published_timestamp_seconds",
            reading.published_unix_seconds,
            "When the newest policy version was published, in Unix time.",
        ),
    ):
        if value is not None:
            yield GaugeMetricFamily(name, text, value)
    phase = GaugeMetricFamily("awac_replay_phase", "1 for the phase that the run is in.", labels=["phase"])
    for candidate in Phase:
        phase.add_metric([candidate.value], float(candidate is state.phase))
    yield phase
    if reading.offline_evaluation is not None:
        yield from _offline_success(reading.offline_evaluation)


def _offline_success(evaluation: Evaluation) -> Iterator[Metric]:
    text = "Return of the policy that was handed over to the online phase."
    yield GaugeMetricFamily("awac_replay_offline_episode_return", text, evaluation.episode_return)
    if evaluation.success_any is None or evaluation.success_final is None or evaluation.success_fraction is None:
        return
    success = GaugeMetricFamily(
        "awac_replay_offline_success_ratio",
        "Success of the policy that was handed over to the online phase: kinds as in awac_evaluation_success_ratio.",
        labels=["kind"],
    )
    success.add_metric(["any"], evaluation.success_any)
    success.add_metric(["final"], evaluation.success_final)
    success.add_metric(["fraction"], evaluation.success_fraction)
    yield success


def register_run_metrics(registry: CollectorRegistry, read: Callable[[], RunReading]) -> None:
    """Register the run's metrics; `read` makes one reading."""
    registry.register(RunCollector(read))
