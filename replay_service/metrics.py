"""Prometheus metrics of the replay service: the run as a whole, read from Redis at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from replay_service.run_state import Phase, RunState

_COUNTERS = (
    ("awac_replay_env_steps", "appended_steps", "Online environment steps stored, later quarantined ones included."),
    ("awac_replay_episodes", "episodes", "Training episodes ended."),
    ("awac_replay_successes", "successes", "Training episodes that met the goal at any step."),
    ("awac_replay_duplicate_steps", "duplicate_steps", "Steps refused because they were stored already."),
    ("awac_replay_quarantined_steps", "quarantined_steps", "Steps taken out of the stream as malformed."),
    ("awac_replay_quarantined_messages", "quarantined_messages", "Messages put into quarantine."),
    ("awac_replay_actor_restarts", "actor_restarts", "Crashed actors that were replaced."),
    ("awac_replay_learner_restarts", "learner_restarts", "Learners that were started again after a crash."),
    ("awac_replay_evaluations", "evaluations_done", "Policy versions that were evaluated."),
)
_GAUGES = (
    ("awac_replay_retained_transitions", "retained_steps", "Online transitions in the stream."),
    ("awac_replay_seed_transitions", "seed_steps", "Offline transitions in the seed stream."),
    ("awac_replay_leased_steps", "leased_steps", "Steps that actors were admitted for and have not stored."),
    ("awac_replay_grad_steps", "grad_steps", "Gradient steps as the learner last reported them."),
    ("awac_replay_policy_version", "policy_version", "Newest published policy version."),
)


class RunCollector:
    """Turns one reading of the run's state, and of Redis's memory, into metrics."""

    def __init__(self, read: Callable[[], tuple[RunState, int]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering does not ask Redis."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read once and yield every metric; nothing at all while Redis does not answer."""
        try:
            state, memory_bytes = self._read()
        except Exception:
            return  # a scrape during an outage shows a gap, which is the truth
        for name, field, text in _COUNTERS:
            yield CounterMetricFamily(name, text, value=getattr(state, field))
        for name, field, text in _GAUGES:
            yield GaugeMetricFamily(name, text, value=getattr(state, field))
        yield GaugeMetricFamily("awac_replay_redis_memory_bytes", "Memory that Redis uses for data.", memory_bytes)
        if state.measured_utd_ratio is not None:
            text = "Measured online gradient steps per environment step, initial steps left out."
            yield GaugeMetricFamily("awac_replay_utd_ratio", text, state.measured_utd_ratio)
        phase = GaugeMetricFamily("awac_replay_phase", "1 for the phase that the run is in.", labels=["phase"])
        for candidate in Phase:
            phase.add_metric([candidate.value], float(candidate is state.phase))
        yield phase


def register_run_metrics(registry: CollectorRegistry, read: Callable[[], tuple[RunState, int]]) -> None:
    """Register the run's metrics; `read` returns the state and Redis's memory in bytes."""
    registry.register(RunCollector(read))
